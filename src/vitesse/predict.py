"""One image, or many, from pixels to a result with the artifact a run has chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.closing import Closing
from vitesse.backends.protocol import LoadOptions
from vitesse.data.images import ImageSource, decode_image
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.data.results import Detections, Result
from vitesse.errors import UsageError
from vitesse.run import Run, load_options, open_run
from vitesse.storage import storage_error


class Model(Closing):
    """A loaded artifact: call it with an image, or a list of them. Not thread-safe; a context manager."""

    def __init__(self, artifact: Artifact, options: LoadOptions | None = None) -> None:
        self.artifact = artifact
        self._engine = backend(artifact.backend).load(artifact, options)
        self._session = self._engine.session()

    @overload  # a str is a Sequence[str] to the type checker; at run time it is a path
    def __call__(self, images: ImageSource) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[ImageSource]) -> list[Result]: ...

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Result | list[Result]:
        """Return what is in an image, or a list for a list.

        Args:
            images: paths, encoded bytes, PIL images or uint8 arrays (height, width, 3) in RGB.

        Raises:
            DataError: an image that cannot be read, or whose size does not fit; the text names it.
        """
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            return [self._one(image) for image in images]
        return self._one(images)

    def _one(self, source: ImageSource) -> Result:
        pixels = decode_image(source)
        name = str(source) if isinstance(source, str | Path) else ""
        spec = self.artifact.spec
        outcome = self._session.run(feeds([pixels], spec, [name] if name else ()))
        return decode(outcome.outputs, spec, [(pixels.shape[0], pixels.shape[1])])[0]

    def close(self) -> None:
        """Release the session and the weights."""
        self._session.close()
        self._engine.close()


def load(run: Run | Path | str) -> Model:
    """Load the artifact a run has chosen, with the options it was measured with.

    Raises:
        RunFolderError: no finished run there, or the artifact is not the file that was verified.
        MissingExtra: the runtime it was built for is not installed.
    """
    found = run if isinstance(run, Run) else open_run(Path(run))
    return Model(found.artifact, load_options(found.ledger.chosen_row()))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format its suffix names.

    Raises:
        UsageError: no format has that suffix.
        StorageError: the file cannot be written.
    """
    try:
        picture.save(path)
    except ValueError as error:
        raise UsageError(
            f"no picture format has the suffix of {path}",
            expected=".png, .jpg or .webp",
            fix="--draw boxes.png",
        ) from error
    except OSError as error:
        raise storage_error(path, error) from error


def rows_of(result: Result, threshold: float) -> list[dict[str, Any]]:
    """Return what was found as values for JSON: `label`, `score` and, of a box, `box_xyxy` in pixels.

    Boxes scoring at least `threshold`, or the first five classes whatever they score; highest first.
    """
    if isinstance(result, Detections):
        shown = result.above(threshold)
        return [
            {
                "label": name,
                "score": round(float(score), 4),
                "box_xyxy": [round(float(side), 1) for side in box],
            }
            for name, score, box in zip(shown.names, shown.scores, shown.boxes_xyxy, strict=True)
        ]
    return [
        {"label": name, "score": round(float(score), 4)}
        for name, score in zip(result.names[:5], result.scores[:5], strict=True)
    ]


def show(result: Result, path: Path | str, *, threshold: float, as_json: bool) -> str:
    """Return a result as text for the terminal, or as one line of JSON."""
    rows = rows_of(result, threshold)
    if as_json:
        return json.dumps({"image": str(path), "results": rows})
    lines = [f"{path}: nothing scores {threshold:g} or more" if not rows else str(path)]
    for row in rows:
        box = "  " + " ".join(f"{side:7.1f}" for side in row["box_xyxy"]) if "box_xyxy" in row else ""
        lines.append(f"  {row['score']:.3f}  {row['label']:<16}{box}".rstrip())
    return "\n".join(lines)
