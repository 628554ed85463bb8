"""A linear layer between two changes of layout that undo each other → the linear layer alone.

PyTorch's MultiheadAttention turns (batch, tokens, width) to (tokens, batch, width) and further to a matrix before its
projections, and turns the result back. A linear layer works on the last axis only, so the detour changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from vitesse.fusion.attention_layout import LAYOUT_OPERATORS, Factor, size, view_of, wide
from vitesse.fusion.rules import constant


@dataclass(frozen=True)
class _Linear:
    """x @ weight (+ bias); the weight is (in, out), or (out, in) where `transposed`."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool


def _matrix(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.ndim == 2


def _linear(result: ir.Value) -> _Linear | None:
    """The linear layer that made `result`, with constant weights; None when something else did."""
    node = result.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Gemm" and _matrix(node.inputs[1]):
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        vector = constant(bias)
        x, weight = node.inputs[0], node.inputs[1]
        usable = bias is None or (vector is not None and vector.ndim == 1)
        if x is None or weight is None or not usable or any(given.get(k, v) != v for k, v in plain.items()):
            return None
        return _Linear(x, weight, bias, bool(given.get("transB", 0)))
    if node.op_type == "MatMul" and _matrix(node.inputs[1]):
        x, weight = node.inputs[0], node.inputs[1]
        return None if x is None or weight is None else _Linear(x, weight, None, False)
    if node.op_type == "Add":
        for product, bias in (node.inputs, tuple(reversed(node.inputs))):
            vector = constant(bias)
            if vector is None or vector.ndim != 1 or product is None or len(product.uses()) != 1:
                continue
            inner = _linear(product)
            if inner is not None and inner.bias is None:
                return _Linear(inner.x, inner.weight, bias, inner.transposed)
    return None


class LinearBetweenLayouts(RewriteRuleClassBase):
    """Rooted at the last change of layout behind the linear layer."""

    def __init__(self, root: str) -> None:
        super().__init__(f"linear between layouts, up to {root}", remove_nodes=False)
        self._root = root

    def pattern(self, op: Any, x: Any) -> Any:
        """Any Reshape or Transpose."""
        return getattr(op, self._root)(x, _allow_other_inputs=True, _outputs=["result"])

    def check(self, context: Any, x: ir.Value, result: ir.Value, **_: Any) -> MatchResult:
        """Say why the layout has to change around the linear layer."""
        fails = MatchResult().fail("")
        made = _before_layout(x)
        linear = _linear(made) if made is not None else None
        if made is None or linear is None:
            return fails
        before = view_of(linear.x)
        if before is None or before.source is linear.x or len(before.source_axes) != 3 or before.picks:
            return fails
        last = wide(before.axes[-1])
        if before.scale != 1.0 or wide(before.source_axes[-1]) != last or made.shape is None:
            return fails
        width = made.shape[-1]
        out = (Factor(width if isinstance(width, int) else None),)
        after = view_of(result, {made: (*before.axes[:-1], out)})
        if after is None or after.source is not made or after.picks or after.scale != 1.0:
            return fails
        rows = [wide(axis) for axis in after.axes[:-1]]
        if rows != [wide(axis) for axis in before.source_axes[:-1]] or size(after.axes[-1]) != size(out):
            return MatchResult().fail("the layout after the linear layer is not the one before it")
        self._linear, self._source, self._result = linear, before.source, result
        return MatchResult()

    def rewrite(self, op: Any, **_: Any) -> Any:
        """Emit MatMul and Add on the tensor as it was before the detour."""
        weight = self._linear.weight
        if self._linear.transposed:
            array = constant(weight)
            assert array is not None
            name = f"{weight.name}_transposed"
            weight = op.initializer(ir.tensor(np.ascontiguousarray(array.T), name=name), name)
        product = op.MatMul(self._source, weight)
        product.shape, product.type = self._result.shape, self._result.type
        return product if self._linear.bias is None else op.Add(product, self._linear.bias)


def _before_layout(value: ir.Value) -> ir.Value | None:
    """What was computed before the changes of layout that end in `value`; None when others read it on the way."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type not in LAYOUT_OPERATORS or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return None


def rules() -> tuple[RewriteRule, ...]:
    """One rule per operator that may end the detour."""
    return (LinearBetweenLayouts.rule("Transpose"), LinearBetweenLayouts.rule("Reshape"))
