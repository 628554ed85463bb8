"""Engines of TensorRT for RTX, which compiles without a GPU for those that are named."""

from __future__ import annotations

import onnx
import pytest

from vitesse.backends.tensorrt.options import BuildOptions, Profile, ShapeRange


def compiled(model: onnx.ModelProto, target: str) -> bytes:
    """The engine for one compute capability; BackendError where it is refused."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from vitesse.backends.tensorrt.api import load_api
    from vitesse.backends.tensorrt.builder import build_plan

    free = {
        entry.name: ShapeRange(*(_shape(entry, batch) for batch in (1, 4, 8)))
        for entry in model.graph.input
        if _shape(entry, 1) != _shape(entry, 8)
    }
    options = BuildOptions((Profile(free),) if free else (), compute_capabilities=(target,))
    return build_plan(load_api("tensorrt_rtx"), model.SerializeToString(), options).plan


def _shape(entry: onnx.ValueInfoProto, batch: int) -> tuple[int, ...]:
    dims = entry.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else batch for dim in dims)
