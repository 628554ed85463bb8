"""Weights that are not the original's: of the layer that makes the first wrong tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx

from vitesse.backends.protocol import Array
from vitesse.diagnose.case import Case
from vitesse.diagnose.graph import WEIGHTED, with_constant
from vitesse.diagnose.rules import Cause, Confidence, Suspicion, tried
from vitesse.diagnose.symptom import Number
from vitesse.verify.diverge import difference_of

# Standardised weights carry this under the root or beside it, by framework.
_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-10, 0.0)


class _Weight(NamedTuple):
    node: onnx.NodeProto
    place: int
    ours: Array
    theirs: Array


def _weights(case: Case) -> Iterator[_Weight]:
    """Yield the constants of the first wrong layer that differ from the original's, rounding apart."""
    if case.number is not Number.EXACT or case.reference is None or case.symptom is None:
        return
    for node in case.region(case.graph):
        other = case.counterpart(node)
        if other is None or other.op_type != node.op_type:
            continue
        for place, (name, was) in enumerate(zip(node.input, other.input, strict=False)):
            ours, theirs = case.graph.constant(name), case.reference.constant(was)
            if ours is None or theirs is None or ours.dtype.kind != "f" or ours.size < 2:
                continue
            if ours.shape != theirs.shape or not np.allclose(
                ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max()
            ):
                yield _Weight(node, place, ours, theirs)


def _restored(case: Case, weight: _Weight) -> bool:
    return case.cures(with_constant(case.candidate.runnable, weight.node, weight.place, weight.theirs))


def _named(case: Case, weight: _Weight) -> str:
    module = case.graph.module(weight.node.output[0])
    return f"`{weight.node.input[weight.place]}` of {weight.node.op_type}" + (
        f" in {module}" if module else ""
    )


def _unstandardised(case: Case) -> Suspicion | None:
    """A hybrid ViT's convolutions subtract the mean of each kernel and divide by its deviation, when applied."""
    for weight in _weights(case):
        if weight.ours.ndim != 4 or weight.ours.shape != weight.theirs.shape:
            continue
        kernels = np.asarray(weight.ours, np.float64)
        centred = kernels - kernels.mean(axis=(1, 2, 3), keepdims=True)
        spread = centred.std(axis=(1, 2, 3), keepdims=True)
        forms = [centred / (spread + eps) for eps in _EPSILONS]
        forms += [centred / np.sqrt(spread**2 + eps) for eps in _EPSILONS]
        if any(np.allclose(form, weight.theirs, rtol=1e-3, atol=1e-4) for form in forms):
            found = f"{_named(case, weight)} is not standardised; (w − mean) / std of it is the original's"
            return tried(_restored(case, weight), found)
    return None


def _transposed(case: Case) -> Suspicion | None:
    for weight in _weights(case):
        ours, theirs = weight.ours, weight.theirs
        if (
            ours.ndim == 2
            and ours.shape == theirs.shape[::-1]
            and np.allclose(ours.T, theirs, rtol=1e-4, atol=1e-6)
        ):
            found = f"{_named(case, weight)} is the original's, transposed"
            return tried(_restored(case, weight), found)
    return None


def _stale(case: Case) -> Suspicion | None:
    for weight in _weights(case):
        ours, theirs = weight.ours, weight.theirs
        how = (
            f"has shape {ours.shape}, in the original {theirs.shape}"
            if ours.shape != theirs.shape
            else f"differs from the original's by {100 * difference_of(theirs, ours).rms:.3g} %"
        )
        return tried(_restored(case, weight), f"the weight {_named(case, weight)} {how}")
    return _regrouped(case)


def _regrouped(case: Case) -> Suspicion | None:
    """Layers that the original computes by other operators, such as queries, keys and values in one product."""
    if case.number is not Number.EXACT or case.reference is None or case.node is None:
        return None
    for node in case.region(case.graph):
        other = case.counterpart(node)
        beside = other is not None and other.op_type == node.op_type
        constants = [case.graph.constant(name) is not None for name in node.input[:2]]
        if node.op_type in WEIGHTED and constants == [False, True] and not beside:
            module = case.graph.module(node.output[0])
            text = (
                f"`{node.input[1]}` of {node.op_type}{f' in {module}' if module else ''}: what the layer reads agrees, "
                "what comes of it does not, and the original has no such layer to lay it beside"
            )
            return Suspicion(Confidence.POSSIBLE, text)
    return None


def _replaced(case: Case) -> Suspicion | None:
    """Another operator makes the first wrong tensor."""
    if case.node is None or case.number is not Number.EXACT or case.reference is None:
        return None
    other = case.reference.maker(case.node.output[0])
    if other is None or other.op_type == case.node.op_type:
        return None
    return Suspicion(
        Confidence.POSSIBLE, f"it is made by {case.node.op_type}, in the original by {other.op_type}"
    )


FAULTS = (
    Cause(
        "weight_standardisation",
        "weight standardisation was lost in the export",
        "a kernel, standardised, equals the original's; tried with the original's",
        "vitesse export MODEL.npz -o {model}   (standardises the kernels beforehand)",
        _unstandardised,
    ),
    Cause(
        "transposed_weight",
        "a weight is transposed",
        "a constant of the first wrong layer equals the original's, transposed; tried with the original's",
        "vitesse export MODEL -o {model}",
        _transposed,
    ),
    Cause(
        "stale_weights",
        "a weight is not the original's",
        "a constant of the first wrong layer differs from the original's; tried with the original's",
        "vitesse export MODEL -o {model}   (from the weights that {against} was made from)",
        _stale,
    ),
    Cause(
        "replaced_operator",
        "a rewrite changed what is computed",
        "another operator than in the original makes the first wrong tensor",
        "vitesse optimize {against} --data {data}   (verifies every rewrite, and says which one fails)",
        _replaced,
    ),
)
