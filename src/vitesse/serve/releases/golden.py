"""A few images and the original's answers to them, kept in the run: is a release right on this machine?

Engines and kernels that are right where they were built can be wrong elsewhere, silently; so before a release is ready
it answers the golden images here, and stays not ready where it differs by more than its precision explains.

RUN/golden.npz: `images` (uint8 RGB, one array each), the original's outputs on them, made by ONNX Runtime on the CPU
with every optimisation off, and the sha256 of the original they belong to. It travels with the run, so that another
machine is held against the one that made it; a run without it gets it where it is served first.
"""

from __future__ import annotations

import io
import json
import logging
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from vitesse.backends import backend
from vitesse.backends.protocol import Array, LoadOptions, Session, Tensors
from vitesse.data.dataset import open_dataset
from vitesse.data.images import Pixels
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.errors import DataError, RunFolderError, SpecError, StorageError, VitesseError
from vitesse.ledger import Ledger, Row
from vitesse.recipe import SMALLER
from vitesse.run import Run, artifact_of, spec_of
from vitesse.serve.logs import NAME
from vitesse.serve.releases.agreement import agreement
from vitesse.spec import ModelSpec, Resize
from vitesse.storage import write_atomically
from vitesse.verify.gate import Limits
from vitesse.verify.health import HealthMeter
from vitesse.verify.parity import ParityMeter

FILE = "golden.npz"
COUNT = 8
# Larger images are made smaller before they are kept: 8 of them take at most 24 MB.
_MOST_PIXELS = 1_000_000
_LOG = logging.getLogger(NAME)


@dataclass(frozen=True, eq=False)
class Golden:
    """Images, uint8 (height, width, 3) RGB, and the original's outputs on each at batch 1.

    kind: "validation" images, or "made" ones where the data was not at hand; spec: the original's.
    """

    images: tuple[Pixels, ...]
    outputs: tuple[Mapping[str, Array], ...]
    spec: ModelSpec
    source_sha256: str
    kind: str


@dataclass(frozen=True)
class Tolerances:
    """How far a release may be from the original on the golden images.

    max_rel, min_cosine: as in `verify.parity`; None where the outputs are not those of the original's network, or its
    scores are not comparable place by place. agreement: least mean of `releases.agreement`.
    """

    max_rel: float | None
    min_cosine: float | None
    agreement: float


def tolerances_of(row: Row, ledger: Ledger) -> Tolerances:
    """Return what a row's precision explains, and never less than twice what its own verification measured.

    float32: the gate's limits of another runtime. 16 bits: five times them. 8 bits, and networks made smaller by a
    lever: agreement alone, because single numbers may lie far off in a detector that finds the same boxes.
    """
    limits = Limits()
    if _smaller(row, ledger) or any(bits in row.stage for bits in ("int8", "fp8")):
        return Tolerances(None, None, 0.85)
    measured = row.parity.max_rel if row.parity is not None and row.parity.max_rel is not None else 0.0
    if any(bits in row.stage for bits in ("fp16", "bf16")):
        return Tolerances(max(5 * limits.build_max_rel, 2 * measured), 0.99, 0.9)
    return Tolerances(max(limits.build_max_rel, 2 * measured), limits.build_min_cosine, 0.95)


def load_golden(folder: Path) -> Golden | None:
    """Return what a run keeps, None where it keeps none.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            told = json.loads(str(held["about"]))
            images = tuple(held[f"image/{index}"] for index in range(told["images"]))
            outputs = tuple(
                {name: held[f"output/{index}/{name}"] for name in told["outputs"]}
                for index in range(len(images))
            )
        return Golden(images, outputs, spec_of(folder), told["source_sha256"], told["kind"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunFolderError(
            f"cannot read {path}: {error}",
            expected="the golden images and outputs that the server keeps",
            cause="the file was cut off or edited",
            fix=f"delete it: the next `vitesse serve {folder}` makes it again",
        ) from error


def golden_of(run: Run, images: Sequence[Pixels] = ()) -> Golden:
    """Return what the run keeps, or make and keep it from `images`, else from its own validation images.

    Where the data is not at hand, images are made: smooth colours and shapes, the same everywhere. They show wrong
    arithmetic as well; what they show of accuracy is less.

    Raises:
        RunFolderError: the kept file is damaged, or the original is gone. BackendError: the original does not run.
    """
    kept = load_golden(run.folder)
    source = run.ledger.rows[0]
    if kept is not None and source.artifact is not None and kept.source_sha256 == source.artifact.sha256:
        return kept
    spec = spec_of(run.folder)
    found = list(images) or _validation_images(run.ledger)
    chosen = tuple(map(_bounded, found[:COUNT])) if _fixed(spec) is None else tuple(found[:COUNT])
    kind = "validation" if chosen else "made"
    artifact = replace(artifact_of(run.folder, source, spec), backend="onnxruntime")
    options = LoadOptions(reference=True)
    chosen = chosen or made_images(spec)
    with backend("onnxruntime").load(artifact, options) as engine, engine.session() as session:
        outputs = tuple(answers(session, chosen, spec))
    golden = Golden(chosen, outputs, spec, artifact.sha256, kind)
    try:
        _save(run.folder, golden)
    except (
        StorageError
    ) as error:  # a run on a read-only disk is compared all the same, and made again next time
        _LOG.warning("the golden images of %s are not kept: %s", run.folder, error)
    return golden


def answers(session: Session, images: Sequence[Pixels], spec: ModelSpec) -> list[dict[str, Array]]:
    """Run images one by one, prepared as the spec says; outputs are copies. Raises BackendError, DataError."""
    found = []
    for image in images:
        outcome = session.run(feeds([image], spec))
        found.append({name: np.array(array) for name, array in outcome.outputs.items()})
    return found


def check(session: Session, spec: ModelSpec, golden: Golden, tolerances: Tolerances) -> tuple[str, ...]:
    """Run a release on the golden images; return why it must not become ready, nothing where it is right.

    Args:
        spec: the release's own: it may be fed smaller images than the original.
    """
    try:
        found = answers(session, golden.images, spec)
    except VitesseError as error:
        return (f"the golden images could not be run: {error.what}",)
    return compare(found, golden, tolerances, spec)


def compare(
    found: Sequence[Tensors], golden: Golden, tolerances: Tolerances, spec: ModelSpec | None = None
) -> tuple[str, ...]:
    """Return in words how a release's outputs differ from the golden ones beyond the tolerances; none: it fits.

    Args:
        found: outputs by image, in the golden order. spec: how they are read; default: as the original's.

    Raises:
        ValueError: not one per golden image.
    """
    health = HealthMeter()
    for outputs in found:
        health.add(outputs)
    broken = tuple(finding.text for finding in health.findings() if finding.fatal)
    if broken:
        return broken
    reasons = _numbers(found, golden, tolerances) if tolerances.max_rel is not None else ()
    return (*reasons, *_meaning(found, golden, tolerances, spec or golden.spec))


def _numbers(found: Sequence[Tensors], golden: Golden, tolerances: Tolerances) -> tuple[str, ...]:
    meter = ParityMeter(golden.spec)
    for index, (expected, outputs) in enumerate(zip(golden.outputs, found, strict=True)):
        meter.add(expected, outputs, image=f"golden image {index + 1}")
    fatal = tuple(finding.text for finding in meter.findings() if finding.fatal)
    parity = meter.parity()
    if fatal or parity is None:
        return fatal or ("no output could be compared with the original's",)
    assert tolerances.max_rel is not None and tolerances.min_cosine is not None
    # Written as "not inside", so that NaN never counts as equal.
    inside = parity.max_rel is not None and parity.max_rel <= tolerances.max_rel
    if inside and parity.cosine >= tolerances.min_cosine:
        return ()
    relative = "an unknown part" if parity.max_rel is None else f"{100 * parity.max_rel:.3g} %"
    return (
        f"the output `{parity.worst_output}` differs from the original's by up to {relative} on {len(found)} golden "
        f"images (allowed {100 * tolerances.max_rel:g} %), smallest cosine {parity.cosine:.6f} (at least "
        f"{tolerances.min_cosine:g})",
    )


def _meaning(
    found: Sequence[Tensors], golden: Golden, tolerances: Tolerances, spec: ModelSpec
) -> tuple[str, ...]:
    sizes = [(image.shape[0], image.shape[1]) for image in golden.images]
    agreed = []
    try:
        for outputs, expected, size in zip(found, golden.outputs, sizes, strict=True):
            agreed.append(agreement(decode(outputs, spec, [size]), decode(expected, golden.spec, [size])))
    except SpecError as error:
        return (f"the outputs cannot be read: {error.what}",)
    mean = float(np.mean(agreed))
    if mean >= tolerances.agreement:
        return ()
    return (
        f"the answers to {len(agreed)} golden images agree with the original's by {mean:.3f} (at least "
        f"{tolerances.agreement:g})",
    )


def _smaller(row: Row, ledger: Ledger) -> bool:
    """Whether what makes a network smaller passed before the row, or made it: the outputs are another network's."""
    before = ledger.rows[: ledger.rows.index(row) + 1]
    made = any(one.stage.startswith(SMALLER) and (one is row or one.verdict == "PASS") for one in before)
    return made or row.preprocessing is not None or row.input_size is not None


def _validation_images(ledger: Ledger) -> list[Pixels]:
    """Read some of the images that the run was verified on, where its command's --data is still there."""
    words = shlex.split(ledger.command)
    named = [after for word, after in pairwise(words) if word == "--data"]
    named += [word.removeprefix("--data=") for word in words if word.startswith("--data=")]
    try:
        return [pixels for _, pixels in open_dataset(named[-1]).val.spread(COUNT)] if named else []
    except (DataError, OSError):
        return []


def made_images(spec: ModelSpec) -> tuple[Pixels, ...]:
    """Return images that are the same on every machine: gradients with rectangles in other colours."""
    random = np.random.default_rng(7)
    height, width = _fixed(spec) or spec.preprocessing.size
    rows, columns = np.linspace(0, 255, height)[:, None, None], np.linspace(0, 255, width)[None, :, None]
    images = []
    for _ in range(COUNT):
        weights = random.random((2, 3))
        image = rows * weights[0] / 2 + columns * weights[1] / 2
        for _ in range(4):
            top, left = int(random.integers(0, height)), int(random.integers(0, width))
            image[top : top + height // 3 + 1, left : left + width // 3 + 1] = random.integers(0, 256, 3)
        images.append(image.astype(np.uint8))
    return tuple(images)


def _fixed(spec: ModelSpec) -> tuple[int, int] | None:
    """The size that images must have, None where they may have any."""
    rules = spec.preprocessing
    return rules.size if rules.resize is Resize.NONE and not rules.buckets else None


def _bounded(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    if height * width <= _MOST_PIXELS:
        return image
    scale = (_MOST_PIXELS / (height * width)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(image).resize(size))


def _save(folder: Path, golden: Golden) -> None:
    about = {
        "images": len(golden.images),
        "outputs": list(golden.outputs[0]),
        "source_sha256": golden.source_sha256,
        "kind": golden.kind,
    }
    arrays: dict[str, Array] = {"about": np.array(json.dumps(about))}
    arrays |= {f"image/{index}": image for index, image in enumerate(golden.images)}
    for index, outputs in enumerate(golden.outputs):
        arrays |= {f"output/{index}/{name}": array for name, array in outputs.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    write_atomically(folder / FILE, stream.getvalue())
