"""Decomposed layer normalisation → LayerNormalization (opset 17).

y = (x − mean(x)) / sqrt(mean((x − mean(x))²) + ε) · scale + bias over the last axes (Ba et al. 2016,
arXiv:1607.06450); also the variance of flax, max(0, mean(x²) − mean(x)²). As a chain in FP16 the square
overflows from |x| = 256 on; the single operator computes it in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import OrValue

from vitesse.fusion.normalisation import (
    ARRANGEMENTS,
    arranged,
    check_parameter,
    checked_epsilon,
    deviation_root,
    mean_of,
    normalised_sizes,
    parameter,
    scaled,
    square,
)
from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, either, scalar


@dataclass(frozen=True)
class _Plan:
    x: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None
    sizes: tuple[int, ...]
    epsilon: float


class _LayerNorm(FusionRule):
    """One arrangement of the last steps; `biased` has the final Add as root."""

    def __init__(self, form: str, swapped: bool) -> None:
        super().__init__(f"layer_norm_{form}{'_swapped' if swapped else ''}")
        self._form, self._swapped = form, swapped

    def pattern(self, op: Any, x: Any, epsilon: Any, one: Any, zero: Any, scale: Any, bias: Any) -> Any:
        mean = mean_of(op, x, "mean")
        deviation = op.Sub(x, mean, _outputs=["deviation"])
        root = deviation_root(op, _variance(op, x, mean, deviation, zero), epsilon)
        if self._form == "biased":
            terms = (scaled(op, deviation, root, one, scale), bias)
            return op.Add(*(terms[::-1] if self._swapped else terms))
        return arranged(op, self._form, self._swapped, deviation, root, one, scale)

    def plan(
        self,
        *,
        x: ir.Value,
        epsilon: ir.Value,
        one: ir.Value | None,
        zero: ir.Value | None,
        scale: ir.Value | None,
        bias: ir.Value | None,
        mean: ir.Value,
        mean_of_squares: ir.Value,
        **_: ir.Value,
    ) -> _Plan:
        number = checked_epsilon(x, one, epsilon)
        if zero is not None and scalar(zero) != 0.0:
            raise LeftAlone("the variance is clipped at something else than the constant 0")
        sizes = normalised_sizes(x, (mean, mean_of_squares))
        assert x.shape is not None
        check_parameter("scale", scale, sizes, len(x.shape))
        check_parameter("bias", bias, sizes, len(x.shape))
        return _Plan(x, scale, bias, sizes, number)

    def build(self, op: Any, plan: _Plan) -> Any:
        inputs = [plan.x, parameter(op, plan.scale, plan.sizes, like=plan.x)]
        if plan.bias is not None:
            inputs.append(parameter(op, plan.bias, plan.sizes, like=plan.x))
        return op.LayerNormalization(*inputs, axis=-len(plan.sizes), epsilon=plan.epsilon, stash_type=1)


def _variance(op: Any, x: Any, mean: Any, deviation: Any, zero: Any) -> Any:
    centred = mean_of(op, square(op, deviation), "mean_of_squares")
    difference = op.Sub(mean_of(op, square(op, x), "mean_of_squares"), square(op, mean))
    clipped = OrValue([either(op.Max, difference, zero), op.Relu(difference)])
    return OrValue([centred, difference, clipped])


LAYER_NORM = Fusion(
    "layer_norm",
    tuple(
        _LayerNorm.rule(form, swapped)
        for form, swapped in (("biased", False), ("biased", True), *ARRANGEMENTS)
    ),
    opset=17,
)
