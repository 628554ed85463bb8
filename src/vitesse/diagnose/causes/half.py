"""FP16: values above 65504 become infinite, those below 6e-8 zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from vitesse.backends.protocol import Array
from vitesse.diagnose.case import Case
from vitesse.diagnose.graph import Graph
from vitesse.diagnose.rules import Cause, Confidence, Suspicion, tried
from vitesse.diagnose.symptom import Number
from vitesse.diagnose.tracing import FP16_LARGEST

_LOST = ("overflow", "nan")
_COARSE = ("differs", "constant", "zeros")
# Between a product of queries and keys and its softmax lie a scale, a mask, casts.
_TO_SOFTMAX = 6
_ROOTS = frozenset({"Div", "Sqrt", "Reciprocal", "Log", "Pow"})
_REMEDY = "vitesse optimize {against} --data {data} --precisions fp16   (keeps such nodes in FP32)"


def _is_lost(case: Case) -> bool:
    return case.number is Number.HALF and case.symptom is not None and case.symptom.kind in _LOST


def _is_square(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type == "Pow":
        return graph.scalar(node.input[1]) == 2
    return node.op_type == "Mul" and node.input[0] == node.input[1]


def _peak(case: Case) -> str:
    seen = case.seen.get(case.symptom.tensor) if case.symptom is not None else None
    if seen is None or seen.original is None:
        return ""
    return f"; it reaches {seen.peak:.4g} in the original, FP16 ends at {FP16_LARGEST:g}"


def _beyond(case: Case) -> bool:
    """Whether the original's values do not fit FP16: then overflow is explained."""
    seen = case.seen.get(case.symptom.tensor) if case.symptom is not None else None
    return seen is not None and (seen.original is None or seen.peak > FP16_LARGEST)


def _layer_norm(case: Case) -> Suspicion | None:
    """x² of a normalisation written out: a square whose mean is taken."""
    if not _is_lost(case) or case.node is None:
        return None
    for node in (case.node, *(_makers(case.graph, case.node))):
        if not _is_square(case.graph, node):
            continue
        if any(
            one.op_type in ("ReduceMean", "ReduceSum") for one in case.graph.downstream(node.output[0], 2)
        ):
            text = (
                f"`{node.output[0]}` squares the values of a normalisation that is written out as operators"
            )
            return Suspicion(Confidence.LIKELY, text + _peak(case))
    return None


def _makers(graph: Graph, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node before, where the wrong one takes the mean: FP16 sums may overflow where squares do not."""
    if node.op_type in ("ReduceMean", "ReduceSum"):
        maker = graph.maker(node.input[0])
        if maker is not None:
            yield maker


def _attention(case: Case) -> Suspicion | None:
    if not _is_lost(case) or case.symptom is None:
        return None
    graph, node = case.graph, case.node
    inside = node is None and any(one.op_type == "Attention" for one in graph.nodes)
    fused = node is not None and node.op_type == "Attention"
    product = (
        node is not None
        and node.op_type in ("MatMul", "Einsum", "Mul", "Div", "Add")
        and any(one.op_type == "Softmax" for one in graph.downstream(node.output[0], _TO_SOFTMAX))
    )
    if not (inside or fused or (product and _from_product(graph, case.symptom.tensor))) or not _beyond(case):
        return None
    where = "inside the Attention operator" if fused or inside else "before the softmax"
    return Suspicion(Confidence.LIKELY, f"the products of queries and keys overflow {where}{_peak(case)}")


def _from_product(graph: Graph, tensor: str) -> bool:
    for far, node in enumerate(graph.upstream(tensor)):
        if node.op_type in ("MatMul", "Einsum"):
            return len(graph.computed(node)) == 2
        if far > _TO_SOFTMAX:
            break
    return False


def _constants(case: Case) -> Iterator[tuple[onnx.NodeProto, int, Array, Array | None]]:
    """Yield (node, which input, the half constant, the original's) of the candidate."""
    for node in case.graph.nodes:
        for place, name in enumerate(node.input):
            value = case.graph.constant(name) if name else None
            if value is None or value.dtype != np.float16 or node.op_type in ("Cast", "Identity"):
                continue
            other = case.counterpart(node)
            before = None
            if other is not None and case.reference is not None and place < len(other.input):
                before = case.reference.constant(other.input[place])
            fits = before is not None and before.shape == value.shape
            yield node, place, value, before if fits else None


def _mask(case: Case) -> Suspicion | None:
    if not _is_lost(case):
        return None
    for node, place, value, before in _constants(case):
        to_softmax = [one.op_type for one in case.graph.downstream(node.output[0], _TO_SOFTMAX)]
        if (
            not np.isinf(value).any()
            or "Softmax" not in to_softmax
            or node.op_type not in ("Add", "Where", "Mul", "Sub")
        ):
            continue
        was = "" if before is None else f", {before[np.isinf(value)].flat[0]:.4g} in the original,"
        lowest = np.clip(value.astype(np.float32), -FP16_LARGEST, FP16_LARGEST)
        found = (
            f"the mask `{node.input[place]}`{was} is infinite in FP16: where all is masked, softmax gives NaN"
        )
        return tried(_cured(case, node, place, lowest), found)
    return None


def _too_large(case: Case) -> Suspicion | None:
    if not _is_lost(case):
        return None
    for node, place, value, before in _constants(case):
        if np.isinf(value).any() and (before is None or np.isfinite(before).all()):
            was = "" if before is None else f" ({np.abs(before).max():.4g} in the original)"
            found = f"the constant `{node.input[place]}` of {node.op_type}{was} is infinite in FP16"
            return tried(before is not None and _cured(case, node, place, before), found)
    return None


def _flushed(case: Case) -> Suspicion | None:
    """A constant that is zero in FP16, on the way to a division or a root."""
    if not _is_lost(case):
        return None
    for node, place, value, before in _constants(case):
        used = [one.op_type for one in case.graph.downstream(node.output[0], 2)]
        if value.any() or not (_ROOTS & {node.op_type, *used}) or (before is not None and not before.any()):
            continue
        was = "" if before is None else f", {before.flat[0]:.4g} in the original,"
        found = f"the constant `{node.input[place]}`{was} is zero in FP16, and a division or root follows"
        return tried(before is not None and _cured(case, node, place, before), found)
    return None


def _cured(case: Case, node: onnx.NodeProto, place: int, value: Array) -> bool:
    """Whether the constant in float32 is the remedy."""
    runnable = case.candidate.runnable
    changed = onnx.ModelProto.FromString(runnable.SerializeToString())
    name = node.input[place]
    kept = [tensor for tensor in changed.graph.initializer if tensor.name != name]
    if len(kept) == len(changed.graph.initializer):
        return False
    del changed.graph.initializer[:]
    changed.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(value.astype(np.float32), name)])
    return case.cures(changed)


def _pow(case: Case) -> Suspicion | None:
    if not _is_lost(case) or case.node is None or case.node.op_type not in ("Pow", "Exp", "Mul"):
        return None
    graph, node = case.graph, case.node
    power = graph.scalar(node.input[1]) if node.op_type == "Pow" else None
    cubes = node.op_type == "Mul" and any(
        made is not None and _is_square(graph, made) and node.input[1 - at] in made.input
        for at, made in enumerate(map(graph.maker, node.input))
    )
    if (node.op_type == "Mul" and not cubes) or not _beyond(case):
        return None
    how = (
        f"to the power of {power:g}"
        if power is not None
        else "e to the power of x"
        if node.op_type == "Exp"
        else "x³"
    )
    return Suspicion(Confidence.LIKELY, f"{node.op_type} ({how}) grows beyond FP16{_peak(case)}")


def _overflow(case: Case) -> Suspicion | None:
    if not _is_lost(case) or case.symptom is None or not _beyond(case):
        return None
    text = f"{case.symptom.operator or 'an operator'} makes values that do not fit FP16{_peak(case)}"
    return Suspicion(Confidence.LIKELY, text)


def _rounding(case: Case) -> Suspicion | None:
    """Large coordinates: between 2048 and 4096 FP16 has steps of 2."""
    if case.number is not Number.HALF or case.symptom is None or case.symptom.kind not in _COARSE:
        return None
    inputs = () if case.node is None else case.node.input
    peaks = [
        seen.peak for name in (case.symptom.tensor, *inputs) if (seen := case.seen.get(name)) is not None
    ]
    peak = max(peaks, default=0.0)
    step = float(np.spacing(np.float16(min(peak, FP16_LARGEST / 2))))
    return Suspicion(Confidence.POSSIBLE, f"values up to {peak:.4g} are rounded to steps of {step:.3g}")


FAULTS = (
    Cause(
        "half_layer_norm",
        "a LayerNorm written out as operators overflows in FP16",
        "the first infinite tensor is a square whose mean is taken",
        _REMEDY + "; its fusing step makes one LayerNormalization of it",
        _layer_norm,
    ),
    Cause(
        "half_mask",
        "an attention mask is infinite in FP16",
        "an infinite FP16 constant on the way to a Softmax; tried with FP16's lowest number",
        _REMEDY,
        _mask,
    ),
    Cause(
        "half_constant_flushed",
        "a small constant is zero in FP16, such as an epsilon of 1e-12",
        "an FP16 constant that is zero where the original's is not, before a division or root; tried in FP32",
        _REMEDY,
        _flushed,
    ),
    Cause(
        "half_constant_overflow",
        "a constant is beyond FP16",
        "an infinite FP16 constant that is finite in the original; tried in FP32",
        _REMEDY,
        _too_large,
    ),
    Cause(
        "half_attention",
        "attention overflows in FP16",
        "the first infinite tensor is a product of two activations that leads to a Softmax",
        _REMEDY,
        _attention,
    ),
    Cause(
        "half_pow",
        "a power or exponential overflows in FP16",
        "the first infinite tensor is made by Pow, Exp or x·x²",
        _REMEDY,
        _pow,
    ),
    Cause(
        "half_overflow",
        "values do not fit FP16",
        "the first infinite tensor goes beyond 65504 in the original",
        _REMEDY,
        _overflow,
    ),
    Cause(
        "half_rounding",
        "FP16 is too coarse here",
        "the first wrong tensor is finite and far from the original's",
        _REMEDY,
        _rounding,
    ),
)
