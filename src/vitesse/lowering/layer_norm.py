"""LayerNormalization → means, squares and a quotient (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion
from vitesse.lowering.building import (
    OperatorRule,
    float_type,
    given,
    integer,
    number,
    rank_of,
    required,
    version,
)
from vitesse.lowering.normalised import Normalisation


@dataclass(frozen=True)
class _Plan:
    x: ir.Value
    scale: ir.Value
    bias: ir.Value | None
    form: Normalisation


class LayerNormRule(OperatorRule):
    """The same for RMSNormalization, which differs in that no mean is taken off."""

    operator = "LayerNormalization"
    centred = True

    def prepare(self, node: ir.Node) -> _Plan:
        """See `OperatorRule`."""
        x, axis = required(node, 0), integer(node, "axis", -1)
        start = axis if axis < 0 else axis - rank_of(x)
        form = Normalisation(
            range(start, 0),
            number(node, "epsilon", 1e-5),
            float_type(x),
            version(node),
            self.centred,
            integer(node, "stash_type", 1) == ir.DataType.FLOAT,
        )
        return _Plan(x, required(node, 1), given(node, 2), form)

    def build(self, op: Any, plan: _Plan) -> Any:
        """See `FusionRule`."""
        y = op.Mul(plan.form.write(op, plan.x), plan.scale)
        return y if plan.bias is None else op.Add(y, plan.bias)


LOWERING = Fusion("layer_norm", (LayerNormRule.rule(),), opset=13)
