"""Cleaning a graph: nothing is computed differently, only what need not be computed at run time goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateHashedInitializersPass,
    InlinePass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.optimizer import FOLDED_FROM_KEY
from onnxscript.rewriter.rules import common as library

from vitesse.fusion.auxiliary import LAYERS, OUTPUTS, drop_outputs, pick_before_heads
from vitesse.fusion.folding import fold, lift_constants
from vitesse.fusion.rules import Fusion, apply
from vitesse.fusion.shape_rules import CONSTANT_SHAPES, POSITIVE_INDICES
from vitesse.fusion.shapes import infer_shapes

_NO_OPS = Fusion(
    "no_ops",
    (
        library.dropout_inference_rule,
        library.dropout_zero_rule,
        library.no_op_cast_rule,
        library.cast_cast_rule,
        library.no_op_transpose_rule,
        library.transpose_transpose_rule,
        library.no_op_expand_rule,
        library.reshape_reshape_rule,
        library.unsqueeze_unsqueeze_rule,
        library.squeeze_reshape_1d_rule,
        *library.mul_by_1_rule.commute(),
        *library.add_0_rule.commute(),
        library.sub_0_rule,
        library.div_by_1_rule,
        *library.expand_before_binary_op_rules,
    ),
)
_SHAPES = (CONSTANT_SHAPES, POSITIVE_INDICES)
# Names of all counts, in the order they are reported.
STEPS = (
    "inlined_functions",
    "default_inputs",
    OUTPUTS,
    LAYERS,
    "constant_folding",
    *(fusion.name for fusion in _SHAPES),
    _NO_OPS.name,
    "identities",
    "common_subexpressions",
    "dead_nodes",
    "unused_initializers",
    "duplicate_initializers",
)
# What one round folds can make the next shape static; models at hand need two or three.
_MOST_ROUNDS = 6


def clean(
    model: ir.Model, keep: Collection[str] = ()
) -> tuple[ir.Model, dict[str, int], dict[str, tuple[str, ...]]]:
    """Clean `model`, which must not be used afterwards.

    `keep` names the outputs that are read; auxiliary ones beside them are dropped. Empty: all outputs stay.

    Returns:
        (the cleaned model, step → count for all of STEPS, step → reasons why something was left).
    """
    counts = Counter(dict.fromkeys(STEPS, 0))
    reasons: dict[str, tuple[str, ...]] = {}
    _prepare(model, counts)
    for _ in range(_MOST_ROUNDS):
        before = counts.total()
        infer_shapes(model)
        model, folded, unfolded = fold(model)
        counts["constant_folding"] += folded
        if unfolded:
            reasons["constant_folding"] = unfolded
        _remove_dead(model, counts)
        applied, left = apply(model, _SHAPES)
        reasons |= {name: why for name, why in left.items() if why}
        counts.update(applied)
        _remove_dead(model, counts)
        counts.update(apply(model, (_NO_OPS,))[0])
        lift_constants(model)
        counts[OUTPUTS] += drop_outputs(model, keep)
        picked, reasons[LAYERS] = pick_before_heads(model)
        counts[LAYERS] += picked
        _remove_dead(model, counts)
        _merge_equal(model, counts)
        _remove_dead(model, counts)
        if counts.total() == before:
            break
    for value in model.graph.initializers.values():
        value.metadata_props.pop(FOLDED_FROM_KEY, None)
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.pop(FOLDED_FROM_KEY, None)
    return model, dict(counts), {name: why for name, why in reasons.items() if why}


def _prepare(model: ir.Model, counts: Counter[str]) -> None:
    counts["inlined_functions"] += len(model.functions)
    InlinePass()(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    RemoveUnusedOpsetsPass()(model)
    inputs = len(model.graph.inputs)
    RemoveInitializersFromInputsPass()(model)
    counts["default_inputs"] += inputs - len(model.graph.inputs)
    lift_constants(model)


def _merge_equal(model: ir.Model, counts: Counter[str]) -> None:
    initializers = len(model.graph.initializers)
    DeduplicateHashedInitializersPass()(model)
    counts["duplicate_initializers"] += initializers - len(model.graph.initializers)
    nodes = len(model.graph)
    CommonSubexpressionEliminationPass()(model)
    counts["common_subexpressions"] += nodes - len(model.graph)


def _remove_dead(model: ir.Model, counts: Counter[str]) -> None:
    before = Counter(node.op_type for node in model.graph)
    initializers = len(model.graph.initializers)
    RemoveUnusedNodesPass()(model)
    gone = before - Counter(node.op_type for node in model.graph)
    counts["identities"] += gone["Identity"]
    counts["dead_nodes"] += gone.total() - gone["Identity"]
    counts["unused_initializers"] += initializers - len(model.graph.initializers)
