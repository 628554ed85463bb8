"""Decomposed RMS normalisation → RMSNormalization (opset 23).

y = x / sqrt(mean(x²) + ε) · scale over the last axes (Zhang and Sennrich 2019, arXiv:1910.07467): layer norm
without the mean and the bias, used by DEIMv2. The same FP16 overflow as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.normalisation import (
    ARRANGEMENTS,
    arranged,
    check_parameter,
    checked_epsilon,
    deviation_root,
    mean_of,
    normalised_sizes,
    parameter,
    square,
)
from vitesse.fusion.rules import Fusion, FusionRule


@dataclass(frozen=True)
class _Plan:
    x: ir.Value
    scale: ir.Value | None
    sizes: tuple[int, ...]
    epsilon: float


class _RMSNorm(FusionRule):
    """One arrangement of the last steps."""

    def __init__(self, form: str, swapped: bool) -> None:
        super().__init__(f"rms_norm_{form}{'_swapped' if swapped else ''}")
        self._form, self._swapped = form, swapped

    def pattern(self, op: Any, x: Any, epsilon: Any, one: Any, scale: Any) -> Any:
        root = deviation_root(op, mean_of(op, square(op, x), "mean_of_squares"), epsilon)
        return arranged(op, self._form, self._swapped, x, root, one, scale)

    def plan(
        self,
        *,
        x: ir.Value,
        epsilon: ir.Value,
        one: ir.Value | None,
        scale: ir.Value | None,
        mean_of_squares: ir.Value,
        **_: ir.Value,
    ) -> _Plan:
        number = checked_epsilon(x, one, epsilon)
        sizes = normalised_sizes(x, (mean_of_squares,))
        assert x.shape is not None
        check_parameter("scale", scale, sizes, len(x.shape))
        return _Plan(x, scale, sizes, number)

    def build(self, op: Any, plan: _Plan) -> Any:
        scale = parameter(op, plan.scale, plan.sizes, like=plan.x)
        return op.RMSNormalization(plan.x, scale, axis=-len(plan.sizes), epsilon=plan.epsilon, stash_type=1)


RMS_NORM = Fusion("rms_norm", tuple(_RMSNorm.rule(form, swapped) for form, swapped in ARRANGEMENTS), opset=23)
