"""An operator that was set otherwise on the way: found beside the original, tried with the original's settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from vitesse.diagnose.case import Case
from vitesse.diagnose.graph import NORMALISATIONS, Graph, copy_of
from vitesse.diagnose.rules import Cause, Confidence, Suspicion, tried
from vitesse.sources.signature import opset_of

# An epsilon is a positive number below this that is added under a root or before a division.
_EPSILON = 1e-2
# How the names of GridSample's interpolation changed at opset 20.
_MODES = {"bilinear": "linear", "bicubic": "cubic"}
_NAMED = ("GridSample", "CumSum", "Resize")
_EXPORT = "vitesse export MODEL -o {model}"


def _changed(
    case: Case, *operators: str
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, Mapping[str, Any]]]:
    """Yield (candidate's node, original's, differing settings of the original's) of these operators."""
    if case.reference is None:
        return
    for node in case.graph.of_type(*operators):
        other = case.counterpart(node)
        if other is None or other.op_type != node.op_type:
            continue
        ours, theirs = _settings(case.graph, node), _settings(case.reference, other)
        differing = {name: value for name, value in theirs.items() if ours.get(name) != value}
        differing |= {name: None for name in ours if name not in theirs}
        if differing:
            yield node, other, differing


def _settings(graph: Graph, node: onnx.NodeProto) -> dict[str, Any]:
    found = dict(graph.settings(node))
    if node.op_type == "GridSample":
        found["mode"] = _MODES.get(str(found.get("mode")), found.get("mode"))
    return found


def _as_original(case: Case, operators: tuple[str, ...]) -> onnx.ModelProto:
    """Return the candidate with the original's attributes on all nodes of these operators."""
    changed = copy_of(case.candidate.runnable)
    theirs = {tuple(node.output): other for node, other, _ in _changed(case, *operators)}
    for node in changed.graph.node:
        other = theirs.get(tuple(node.output))
        if other is not None:
            del node.attribute[:]
            node.attribute.extend(other.attribute)
    return changed


def _set_otherwise(case: Case, *operators: str) -> Suspicion | None:
    for node, _, differing in _changed(case, *operators):
        ours = _settings(case.graph, node)
        words = ", ".join(
            f"{name} = {ours.get(name)!r}, in the original {was!r}" for name, was in differing.items()
        )
        found = f"{node.op_type} `{node.output[0]}` has {words}"
        cured = case.cures(_as_original(case, (node.op_type,)))
        if cured or _is_first(case, node):
            suspicion = tried(cured, found)
            return Suspicion(suspicion.confidence, suspicion.text, node.output[0])
        return Suspicion(Confidence.POSSIBLE, found, node.output[0])
    return None


def _is_first(case: Case, node: onnx.NodeProto) -> bool:
    return case.symptom is not None and case.symptom.tensor in node.output


def _grid_sample(case: Case) -> Suspicion | None:
    return _set_otherwise(case, "GridSample")


def _cumsum(case: Case) -> Suspicion | None:
    return _set_otherwise(case, "CumSum")


def _resize(case: Case) -> Suspicion | None:
    return _set_otherwise(case, "Resize")


def _other(case: Case) -> Suspicion | None:
    """Any other operator, the first wrong one first."""
    known = {*_NAMED, *NORMALISATIONS, "Gelu", "Dropout"}
    kinds = dict.fromkeys(node.op_type for node in case.graph.nodes if node.op_type not in known)
    first = () if case.node is None or case.node.op_type in known else (case.node.op_type,)
    return (
        _set_otherwise(case, *first)
        if first
        else None
        if case.node is not None
        else _set_otherwise(case, *kinds)
    )


def _epsilons(graph: Graph, nodes: list[onnx.NodeProto]) -> set[float]:
    """The small numbers in or added inside normalisations."""
    found = {float(graph.settings(node)["epsilon"]) for node in nodes if "epsilon" in graph.settings(node)}
    for node in nodes:
        if node.op_type == "Add" and any(
            one.op_type in ("Sqrt", "Pow", "Reciprocal", "Div") for one in graph.downstream(node.output[0], 1)
        ):
            found |= {value for name in node.input if (value := graph.scalar(name)) is not None}
    return {float(np.float32(value)) for value in found if 0 <= value < _EPSILON}


def _epsilon(case: Case) -> Suspicion | None:
    if case.reference is None or case.symptom is None:
        return None
    ours, theirs = (_epsilons(graph, case.region(graph)) for graph in (case.graph, case.reference))
    if not ours or not theirs or ours == theirs or len(ours) > 1 or len(theirs) > 1:
        return None
    here, there = ours.pop(), theirs.pop()
    found = f"the epsilon is {here:.3g}, in the original {there:.3g}"
    return tried(case.cures(_with_epsilon(case, here, there)), found)


def _with_epsilon(case: Case, here: float, there: float) -> onnx.ModelProto:
    changed = copy_of(case.candidate.runnable)
    for node in changed.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and np.isclose(attribute.f, here, rtol=1e-5, atol=0):
                attribute.f = there
        if node.op_type in NORMALISATIONS and not any(one.name == "epsilon" for one in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("epsilon", there))
    for tensor in changed.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.size == 1 and value.dtype.kind == "f" and np.isclose(value.item(), here, rtol=1e-5, atol=0):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(value, there), tensor.name))
    return changed


def _gelu_form(graph: Graph, nodes: list[onnx.NodeProto]) -> str:
    """`erf`, `tanh`, or nothing: which GELU these nodes compute."""
    for node in nodes:
        if node.op_type == "Gelu":
            return "tanh" if graph.settings(node).get("approximate") == "tanh" else "erf"
        if node.op_type == "Erf":
            return "erf"
        if node.op_type == "Tanh" and any(
            one.op_type == "Mul" for one in graph.downstream(node.output[0], 2)
        ):
            return "tanh"
    return ""


def _gelu(case: Case) -> Suspicion | None:
    if case.reference is None or case.symptom is None:
        return None
    ours, theirs = (_gelu_form(graph, case.region(graph)) for graph in (case.graph, case.reference))
    if not ours or not theirs or ours == theirs:
        return None
    changed = copy_of(case.candidate.runnable)
    for node in changed.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            if theirs == "tanh":
                node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    found = f"GELU is computed by its {ours} formula, in the original by {theirs}"
    return tried(case.cures(changed), found)


def _dropout(case: Case) -> Suspicion | None:
    for node in case.graph.of_type("Dropout", "BatchNormalization"):
        training = (
            len(node.input) > 2 and bool(case.graph.scalar(node.input[2]))
            if node.op_type == "Dropout"
            else bool(case.graph.settings(node).get("training_mode"))
        )
        if training:
            changed = copy_of(case.candidate.runnable)
            for one in changed.graph.node:
                if one.op_type == "Dropout":
                    del one.input[1:]
            found = f"{node.op_type} `{node.output[0]}` is in training mode"
            suspicion = tried(case.cures(changed), found)
            return Suspicion(max(suspicion.confidence, Confidence.LIKELY), suspicion.text, node.output[0])
    return None


def _mode_name(case: Case) -> Suspicion | None:
    for node in case.graph.of_type("GridSample"):
        if opset_of(case.graph.model) >= 20:
            mode = case.graph.settings(node).get("mode")
            text = (
                f"GridSample `{node.output[0]}` names its mode {mode!r}, as from opset 20 on; "
                "TensorRT's parser knew the older name"
            )
            return Suspicion(Confidence.POSSIBLE, text, node.output[0])
    return None


def _miscompiled(case: Case) -> Suspicion | None:
    nodes = case.graph.of_type("GridSample")
    if not nodes:
        return None
    text = f"{len(nodes)} GridSample nodes: TensorRT from 10.13 to 11.1 was seen to compile them wrongly, in FP32 too"
    return Suspicion(Confidence.POSSIBLE, text, nodes[0].output[0])


def _reverse_cumsum(case: Case) -> Suspicion | None:
    for node in case.graph.of_type("CumSum"):
        if case.graph.settings(node).get("reverse"):
            text = f"CumSum `{node.output[0]}` sums backwards; TensorRT was seen to ignore `reverse`"
            return Suspicion(Confidence.POSSIBLE, text, node.output[0])
    return None


FAULTS = (
    Cause(
        "training_mode",
        "the graph was exported in training mode",
        "a Dropout whose training_mode is true; the same image gives other answers",
        _EXPORT + "   (exports in evaluation mode)",
        _dropout,
    ),
    Cause(
        "grid_sample",
        "GridSample samples otherwise",
        "mode, align_corners or padding_mode differ from the original's; tried with the original's",
        _EXPORT + "   (or `vitesse optimize {against} --data {data} --lower grid_sample`)",
        _grid_sample,
    ),
    Cause(
        "cumsum",
        "CumSum sums otherwise",
        "reverse or exclusive differ from the original's; tried with the original's",
        "vitesse optimize {against} --data {data}   (cleaning computes constant position encodings beforehand)",
        _cumsum,
    ),
    Cause(
        "resize",
        "Resize interpolates otherwise",
        "its mode, coordinates or antialiasing differ from the original's; tried with the original's",
        "vitesse optimize {against} --data {data} --lower resize",
        _resize,
    ),
    Cause(
        "epsilon",
        "a normalisation has another epsilon",
        "the small number inside the first wrong normalisation differs; tried with the original's",
        _EXPORT,
        _epsilon,
    ),
    Cause(
        "gelu",
        "GELU by tanh in place of erf, or the other way",
        "the first wrong tensor comes from one formula here, from the other in the original; tried with that",
        _EXPORT + "   (keeps the formula the weights were trained with)",
        _gelu,
    ),
    Cause(
        "other_setting",
        "an operator is set otherwise",
        "an attribute of the operator at the first wrong tensor differs; tried with the original's",
        _EXPORT,
        _other,
    ),
)
HAZARDS = (
    Cause(
        "grid_sample_mode_name",
        "GridSample in the words of opset 20",
        "a GridSample in a graph of opset 20 or later",
        "vitesse optimize {model} --data {data} --lower grid_sample",
        _mode_name,
        hazard=True,
    ),
    Cause(
        "grid_sample_in_tensorrt",
        "GridSample, which TensorRT compiles wrongly",
        "a GridSample in the graph",
        "vitesse optimize {model} --data {data} --lower grid_sample",
        _miscompiled,
        hazard=True,
    ),
    Cause(
        "reverse_cumsum",
        "a CumSum that sums backwards",
        "a CumSum with reverse = 1",
        "vitesse optimize {model} --data {data}   (cleaning computes constant position encodings beforehand)",
        _reverse_cumsum,
        hazard=True,
    ),
)
