"""Applying rewrites of the registry to a model."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx_ir.passes.common import DeduplicateHashedInitializersPass, RemoveUnusedNodesPass

from vitesse.errors import UsageError
from vitesse.fusion import Fused, finished
from vitesse.fusion.contract import load, signature_of
from vitesse.fusion.folding import lift_constants
from vitesse.fusion.rules import apply
from vitesse.fusion.shapes import complete_shapes, infer_shapes
from vitesse.lowering import REWRITES


def lower_model(model: onnx.ModelProto, names: Sequence[str]) -> Fused:
    """Stage "lower": replace operators by more basic ones, raising the opset only where needed.

    Args:
        model: the graph; what rewrites do depends on how much of its shapes is static, so clean it first.
        names: rewrites of `lowering.REWRITES`, applied in this order.

    Returns:
        The model; for every name how often it applied, also 0, and why it left an operator as it is.

    Raises:
        UsageError: a name is no rewrite.
        ModelError: `model` is not a valid graph.
        NotVerified: the result broke the contract (see `fusion.contract.verify`).
    """
    unknown = sorted(set(names) - set(REWRITES))
    if unknown:
        raise UsageError(f"unknown rewrite {unknown[0]!r}", expected=f"some of: {', '.join(REWRITES)}")
    graph = load(model)
    before = signature_of(graph)
    infer_shapes(graph)
    changes: dict[str, int] = {}
    reasons: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(names):
        applied, left = apply(graph, (REWRITES[name].fusion(),))
        changes |= applied
        reasons |= {name: why for name, why in left.items() if why}
        complete_shapes(graph)
    lift_constants(graph)
    RemoveUnusedNodesPass()(graph)
    DeduplicateHashedInitializersPass()(graph)
    return finished(graph, before, "lower", changes, reasons)
