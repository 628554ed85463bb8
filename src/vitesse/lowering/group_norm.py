"""GroupNormalization → a layer normalisation of each group (Wu and He 2018, arXiv:1803.08494).

Opset 18 has a scale and a bias per group, opset 21 per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion
from vitesse.lowering.building import (
    OperatorRule,
    float_type,
    integer,
    integers,
    length_of,
    number,
    rank_of,
    required,
    version,
)
from vitesse.lowering.normalised import Normalisation


@dataclass(frozen=True)
class _Plan:
    """`shape`: of x, 0 for the batch, or None where it is only known at run time."""

    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    groups: int
    rank: int
    shape: list[int] | None
    per_group: bool
    form: Normalisation


class _GroupNorm(OperatorRule):
    operator = "GroupNormalization"

    def prepare(self, node: ir.Node) -> _Plan:
        x, scale, bias = (required(node, place) for place in range(3))
        rank, opset = rank_of(x), version(node)
        lengths = [length_of(x, axis) for axis in range(1, rank)]
        known = [length for length in lengths if length is not None]
        form = Normalisation(
            (-1,),
            number(node, "epsilon", 1e-5),
            float_type(x),
            opset,
            stash=opset >= 21 and integer(node, "stash_type", 1) == ir.DataType.FLOAT,
        )
        shape = [0, *known] if len(known) == len(lengths) else None
        groups = node.attributes["num_groups"].as_int()
        return _Plan(x, scale, bias, groups, rank, shape, opset < 21, form)

    def build(self, op: Any, plan: _Plan) -> Any:
        shape = op.Shape(plan.x) if plan.shape is None else integers(op, plan.shape)
        y = plan.form.write(op, op.Reshape(plan.x, integers(op, [0, plan.groups, -1])))
        if not plan.per_group:
            y = op.Reshape(y, shape)
        # Scale and bias stand on the axis of the groups or of the channels, which is the second.
        axes = integers(op, [-1] + [1] * (1 if plan.per_group else plan.rank - 2))
        y = op.Add(op.Mul(y, op.Reshape(plan.scale, axes)), op.Reshape(plan.bias, axes))
        return op.Reshape(y, shape) if plan.per_group else y


LOWERING = Fusion("group_norm", (_GroupNorm.rule(),), opset=13)
