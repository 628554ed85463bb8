"""Value ranges of activations on real images, by ONNX Runtime's calibrators, one image in memory at a time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from vitesse.artifact import Artifact
from vitesse.backends.protocol import Tensors
from vitesse.errors import DataError, ModelError
from vitesse.recipe import Int8Options

METHODS = {"percentile": CalibrationMethod.Percentile, "minmax": CalibrationMethod.MinMax}
# What the calibrators and the quantiser raise on graphs they cannot take.
REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, AssertionError)


class OneFeed(CalibrationDataReader):  # type: ignore[misc]
    """Hands a single feed to a calibrator, which would otherwise keep every image's activations until the end."""

    def __init__(self, feed: Tensors) -> None:
        self._feeds: Iterator[Tensors] = iter((feed,))

    def get_next(self) -> Tensors | None:
        """Return the feed, then None."""
        return next(self._feeds, None)


def calibrate(
    artifact: Artifact,
    feeds: Iterable[Tensors],
    op_types: Iterable[str],
    options: Int8Options,
) -> Any:
    """Return ONNX Runtime's `TensorsData`: the range of every input and output of `op_types` nodes.

    `percentile` cuts the rarest values (options.percentile of them stay inside), which keeps a few outliers from
    coarsening all other values; `minmax` keeps all.

    Args:
        feeds: one image each (batch 1), read once as a stream.

    Raises:
        DataError: no calibration image.
        ModelError: ONNX Runtime's calibrator cannot take the graph.
    """
    # The symmetric range of the percentile calibrator would waste half of uint8 behind a ReLU.
    extra = {"percentile": options.percentile, "symmetric": False} if options.method == "percentile" else {}
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder, quiet():
        try:
            calibrator = create_calibrator(
                artifact.path,
                list(op_types),
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=METHODS[options.method],
                extra_options=extra,
            )
            count = 0
            for feed in feeds:
                calibrator.collect_data(OneFeed(feed))
                count += 1
            if not count:
                raise DataError(
                    "no calibration image was read",
                    expected="at least one image",
                    fix="name a folder with images: --calib-data FOLDER",
                )
            return calibrator.compute_data()
        except REFUSALS as error:
            raise refused(artifact, error) from error


def refused(artifact: Artifact, error: Exception) -> ModelError:
    """Say that ONNX Runtime's quantiser cannot take a graph."""
    return ModelError(
        f"ONNX Runtime's quantiser cannot take {artifact.path.name}: {error}",
        expected="convolutions or linear layers with constant weights and known shapes",
        fix="go on without INT8: --precisions fp32",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the quantiser's advice to pre-process, which cleaning has replaced, and its prints."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(previous)
