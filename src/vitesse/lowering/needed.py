"""Which operators of a model a runtime lacks: each is run alone, and its answer held against the reference.

Asking the runtime itself is better than a list by version: it also finds what a runtime accepts and then computes
otherwise, such as OpenVINO 2026.4, which ignores the antialiasing of Resize.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.protocol import Array, Backend, LoadOptions, Tensors
from vitesse.errors import VitesseError
from vitesse.fusion import Fused
from vitesse.fusion.opset import opset_of
from vitesse.fusion.rules import constant
from vitesse.fusion.shapes import infer_shapes
from vitesse.lowering import rewrite_of
from vitesse.lowering.lower import lower_model
from vitesse.spec import ModelSpec

# Largest difference over the largest value from which on it is another result, not rounding.
_ANOTHER_RESULT = 1e-2
_OPEN_LENGTH = 2  # fed where a length is not static
_PREFIX = "lowered:"

# Operator as it stands in a graph → why the runtime cannot be given it, or nothing; for as long as the process lives.
_known: dict[tuple[str, str, str], str] = {}


@dataclass(frozen=True)
class Need:
    """A rewrite a runtime needs for a model, and why, in one sentence."""

    rewrite: str
    why: str


def lower_for(runtime: Backend, model: onnx.ModelProto, spec: ModelSpec) -> Fused | None:
    """Rewrite what `runtime` lacks of `model`; None where it lacks nothing that a rewrite exists for.

    Returns:
        The model; `changes` are counted under "lowered:NAME", and `reasons` say there why the rewrite is needed and
        what it left alone.

    Raises:
        ModelError, NotVerified: as `lower_model`.
    """
    found = needs(runtime, model, spec)
    if not found:
        return None
    lowered = lower_model(model, [need.rewrite for need in found])
    reasons = {_PREFIX + need.rewrite: (need.why, *lowered.reasons.get(need.rewrite, ())) for need in found}
    return Fused(lowered.model, {_PREFIX + name: count for name, count in lowered.changes.items()}, reasons)


def needs(runtime: Backend, model: onnx.ModelProto, spec: ModelSpec) -> tuple[Need, ...]:
    """Find the rewrites that `runtime` needs for `model`: what it distrusts itself, refuses, or computes otherwise."""
    graph = ir.from_proto(model)
    found: dict[str, Need] = {}
    shaped = False
    for node in graph.graph:
        rewrite = rewrite_of(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is None or rewrite.name in found:
            continue
        if rewrite.name in runtime.distrusts:
            found[rewrite.name] = Need(
                rewrite.name, f"{runtime.name} is known to compute {node.op_type} wrongly"
            )
            continue
        if not shaped:
            infer_shapes(graph)
            shaped = True
        why = _why_not(runtime, node, opset_of(graph), spec)
        if why:
            found[rewrite.name] = Need(rewrite.name, why)
    return tuple(found.values())


def _why_not(runtime: Backend, node: ir.Node, opset: int, spec: ModelSpec) -> str:
    alone = _alone(node, opset)
    if alone is None:
        return ""
    content = alone.SerializeToString()
    key = (runtime.name, runtime.probe().version, hashlib.sha256(content).hexdigest())
    if key not in _known:
        _known[key] = _tried(runtime, alone, content, spec)
    return _known[key]


def _tried(runtime: Backend, alone: onnx.ModelProto, content: bytes, spec: ModelSpec) -> str:
    """Run a model of one node; what the reference itself cannot run is not held against a runtime."""
    operator = alone.graph.node[0].op_type
    with tempfile.TemporaryDirectory(prefix="vitesse-probe-") as folder:
        path = Path(folder) / "alone.onnx"
        path.write_bytes(content)
        artifact = Artifact(path, "", len(content), spec, Provenance("probe"))
        feeds = _feeds(alone)
        try:
            expected = _answer(
                backend("onnxruntime"), artifact, LoadOptions(threads=1, reference=True), feeds
            )
        except VitesseError:
            return ""
        try:
            found = _answer(runtime, artifact, LoadOptions(threads=1), feeds)
        except VitesseError:
            return f"{runtime.name} refuses {operator}"
    off = _distance(expected, found)
    if off <= _ANOTHER_RESULT:
        return ""
    return f"{runtime.name} computes {operator} otherwise: off by {100 * off:.0f} % of its largest value"


def _answer(runtime: Backend, artifact: Artifact, options: LoadOptions, feeds: Tensors) -> list[Array]:
    with runtime.load(artifact, options) as engine, engine.session() as session:
        return [np.array(array) for array in session.run(feeds).outputs.values()]


def _distance(expected: list[Array], found: list[Array]) -> float:
    """Largest difference over the largest value; infinite for other shapes and where a NaN is on one side only."""
    if [array.shape for array in expected] != [array.shape for array in found]:
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        r, c = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if not np.array_equal(np.isfinite(r), np.isfinite(c)):
            return float("inf")
        usable = np.isfinite(r)
        peak = float(np.abs(r[usable]).max(initial=0.0))
        worst = max(worst, float(np.abs(r[usable] - c[usable]).max(initial=0.0)) / (peak or 1.0))
    return worst


def _alone(node: ir.Node, opset: int) -> onnx.ModelProto | None:
    """A model of this node, constants as they are; None where an input has no known shape or cannot be made up."""
    proto = ir.to_proto(node)
    proto.name = "alone"  # the same operator elsewhere in a graph is the same question
    del proto.metadata_props[:]
    inputs, weights = [], []
    for place, value in enumerate(node.inputs):
        if value is None:
            continue
        name = proto.input[place] = f"input{place}"
        array = constant(value)
        if array is not None:
            weights.append(onnx.numpy_helper.from_array(array, name))
        elif value.shape is None or value.dtype is None or not _can_be_made_up(value.dtype):
            return None
        else:
            inputs.append(
                onnx.helper.make_tensor_value_info(name, int(value.dtype), _lengths(value.shape, place))
            )
    outputs = []
    for place, value in enumerate(node.outputs):
        proto.output[place] = f"output{place}"
        dtype = value.dtype or node.inputs[0].dtype if node.inputs[0] is not None else None
        outputs.append(onnx.helper.make_tensor_value_info(f"output{place}", int(dtype or 1), None))
    graph = onnx.helper.make_graph([proto], "alone", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=onnx.helper.find_min_ir_version_for(opsets), producer_name=""
    )


def _lengths(shape: ir.Shape, place: int) -> list[int | str]:
    return [length if isinstance(length, int) else f"open{place}_{at}" for at, length in enumerate(shape)]


def _can_be_made_up(dtype: ir.DataType) -> bool:
    return dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BOOL)


def _feeds(alone: onnx.ModelProto) -> dict[str, Array]:
    """Standard normal numbers, which also lie outside −1..1; of booleans two in three are true."""
    random = np.random.default_rng(0)
    return {info.name: _made_up(info, random) for info in alone.graph.input}


def _made_up(info: onnx.ValueInfoProto, random: np.random.Generator) -> Array:
    tensor = info.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else _OPEN_LENGTH for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    array: Array = (
        random.random(shape) < 2 / 3 if dtype == np.bool_ else random.standard_normal(shape).astype(dtype)
    )
    return array
