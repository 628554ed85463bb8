"""OpenVINO's own INT8: NNCF's post-training quantisation, calibrated on a stream of feeds."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

# NNCF reports its use over the network unless this is set before it is imported; Vitesse sends nothing anywhere.
os.environ.setdefault("NNCF_CI", "1")

import nncf
import openvino
import rich

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.openvino_ir import IR_SUFFIX, pack_ir
from vitesse.backends.protocol import Built, Tensors
from vitesse.errors import BackendError, DataError

# Operators by which NNCF's transformer scheme (no INT8 between the products of attention) is worth taking.
_ATTENTION = {"Softmax", "ScaledDotProductAttention"}


def quantize(
    artifact: Artifact,
    store: Store,
    feeds: Iterable[Tensors],
    *,
    ignored: Sequence[str] = (),
    images: int = 300,
) -> Built:
    """Quantise an ONNX artifact to INT8 for OpenVINO.

    Args:
        artifact: an ONNX file.
        store: where the result is put.
        feeds: calibration inputs, read one at a time but in several passes: a generator will not do.
        ignored: names of nodes that stay in float32.
        images: how many feeds to calibrate on at most.

    Returns:
        The artifact (OpenVINO's format, one file) and how many quantisers were inserted.

    Raises:
        DataError: no feeds.
        BackendError: OpenVINO or NNCF refuses the graph, or an ignored name is not in it.
    """
    if iter(feeds) is feeds:
        raise DataError(
            "the calibration feeds can be read only once",
            expected="an iterable that starts anew in each pass, such as a list or a class with __iter__",
            cause="a generator",
        )
    if next(iter(feeds), None) is None:
        raise DataError("there is nothing to calibrate on", expected="at least one image")
    try:
        model = openvino.Core().read_model(artifact.path)
        transformer = any(node.get_type_name() in _ATTENTION for node in model.get_ops())
        with _quietly():
            quantized = nncf.quantize(
                model,
                nncf.Dataset(feeds, dict),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                subset_size=images,
                ignored_scope=nncf.IgnoredScope(names=list(ignored)) if ignored else None,
            )
    except Exception as error:  # NNCF has no base class of its own for its errors
        raise BackendError(
            f"NNCF {nncf.__version__} refuses {artifact.path}: {' '.join(str(error).split())}",
            cause="a node to ignore that is not in the graph" if ignored else "",
        ) from error
    kinds = [node.get_type_name() for node in quantized.get_ops()]
    options = {"images": str(images), "nncf": nncf.__version__, "ignored": ",".join(ignored)}
    provenance = Provenance("nncf:openvino", artifact.sha256, options)
    packed = pack_ir(quantized)
    stored = store.put(packed, artifact.spec, provenance, backend="openvino", suffix=IR_SUFFIX)
    return Built(stored, {"FakeQuantize": kinds.count("FakeQuantize")})


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep NNCF's progress bars and notes, which go to rich's global console, out of the caller's output."""
    console = rich.get_console()
    before, console.quiet = console.quiet, True
    nncf.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = before
