"""HardSwish → x · clip(x / 6 + ½, 0, 1) (Howard et al. 2019, arXiv:1905.02244)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion
from vitesse.lowering.building import OperatorRule, float_type, numbers, required


@dataclass(frozen=True)
class _Plan:
    x: ir.Value
    dtype: ir.DataType


class _HardSwish(OperatorRule):
    operator = "HardSwish"

    def prepare(self, node: ir.Node) -> _Plan:
        x = required(node, 0)
        return _Plan(x, float_type(x))

    def build(self, op: Any, plan: _Plan) -> Any:
        slope, half, zero, one = (numbers(op, value, plan.dtype) for value in (1 / 6, 0.5, 0.0, 1.0))
        return op.Mul(plan.x, op.Clip(op.Add(op.Mul(plan.x, slope), half), zero, one))


LOWERING = Fusion("hard_swish", (_HardSwish.rule(),), opset=13)
