"""GroupNormalization → a layer normalisation of each group (Wu and He 2018, arXiv:1803.08494).

The form of opset 21, with a scale and a bias per channel; the one of opset 18, per group, is no valid ONNX any more.
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
    form: Normalisation


class _GroupNorm(OperatorRule):
    operator = "GroupNormalization"

    def prepare(self, node: ir.Node) -> _Plan:
        x, scale, bias = (required(node, place) for place in range(3))
        rank = rank_of(x)
        lengths = [length_of(x, axis) for axis in range(1, rank)]
        known = [length for length in lengths if length is not None]
        form = Normalisation(
            (-1,),
            number(node, "epsilon", 1e-5),
            float_type(x),
            version(node),
            stash=integer(node, "stash_type", 1) == ir.DataType.FLOAT,
        )
        shape = [0, *known] if len(known) == len(lengths) else None
        groups = node.attributes["num_groups"].as_int()
        return _Plan(x, scale, bias, groups, rank, shape, form)

    def build(self, op: Any, plan: _Plan) -> Any:
        shape = op.Shape(plan.x) if plan.shape is None else integers(op, plan.shape)
        y = plan.form.write(op, op.Reshape(plan.x, integers(op, [0, plan.groups, -1])))
        channels = integers(op, [-1] + [1] * (plan.rank - 2))
        scaled = op.Mul(op.Reshape(y, shape), op.Reshape(plan.scale, channels))
        return op.Add(scaled, op.Reshape(plan.bias, channels))


LOWERING = Fusion("group_norm", (_GroupNorm.rule(),), opset=13)
