"""Gelu → x · ½ · (1 + erf(x / √2)), or its tanh approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion
from vitesse.lowering.building import OperatorRule, float_type, numbers, required, text


@dataclass(frozen=True)
class _Plan:
    x: ir.Value
    dtype: ir.DataType
    approximate: str


class _Gelu(OperatorRule):
    operator = "Gelu"

    def prepare(self, node: ir.Node) -> _Plan:
        x = required(node, 0)
        return _Plan(x, float_type(x), text(node, "approximate", "none"))

    def build(self, op: Any, plan: _Plan) -> Any:
        def scalar(value: float) -> Any:
            return numbers(op, value, plan.dtype)

        x = plan.x
        if plan.approximate == "tanh":
            # x (1 + 0.044715 x²), not x + 0.044715 x³: the cube of a float16 overflows from 41 on.
            square = op.Add(op.Mul(op.Mul(x, x), scalar(0.044715)), scalar(1.0))
            gate = op.Tanh(op.Mul(op.Mul(x, square), scalar(math.sqrt(2 / math.pi))))
        else:
            gate = op.Erf(op.Mul(x, scalar(math.sqrt(0.5))))
        return op.Mul(x, op.Add(op.Mul(gate, scalar(0.5)), scalar(0.5)))


LOWERING = Fusion("gelu", (_Gelu.rule(),), opset=13)
