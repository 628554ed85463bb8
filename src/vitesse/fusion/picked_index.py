"""One index of an axis, picked in a detour → one Gather from the tensor itself.

JAX exports read the class token as Gather on axis 0 of (tokens, batch, width), transposing every token to read one, or
as a Slice that names all axes, and a Squeeze. As Gather from (batch, tokens, width), the pick can also be moved up
through the last block (`attention_selected`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, constant


@dataclass(frozen=True)
class _Pick:
    x: ir.Value
    index: int
    axis: int


class _PickRule(FusionRule):
    def build(self, op: Any, plan: _Pick) -> Any:
        return op.Gather(plan.x, op.Constant(value_int=plan.index), axis=plan.axis)


class _GatherOfTranspose(_PickRule):
    """The picked axis goes; if the others stay in their order, the Transpose did nothing for them."""

    def __init__(self) -> None:
        # The Transpose stays where something else reads it too.
        super().__init__("gather_of_transpose", remove_nodes=False)

    def pattern(self, op: Any, x: Any, index: Any) -> Any:
        transposed = op.Transpose(x, _outputs=["transposed"])
        return op.Gather(transposed, index, _outputs=["picked"])

    def plan(self, *, x: ir.Value, index: ir.Value, transposed: ir.Value, picked: ir.Value) -> _Pick:
        transpose, gather = transposed.producer(), picked.producer()
        assert transpose is not None and gather is not None
        perm = transpose.attributes.get_ints("perm", None)
        if perm is None:
            if x.shape is None:
                raise LeftAlone("the shape of the input is not known")
            perm = list(reversed(range(len(x.shape))))
        at = constant(index)
        if at is None or at.ndim != 0:
            raise LeftAlone("the picked index is not one constant number")
        axis = perm[gather.attributes.get_int("axis", 0) or 0]
        others = [source for source in perm if source != axis]
        if others != sorted(others):
            raise LeftAlone(f"perm {list(perm)} also reorders the axes that are not picked")
        return _Pick(x, int(at), axis)


class _SqueezedSlice(_PickRule):
    """A Slice of length 1 along the axis that is squeezed, and whole along all others."""

    def __init__(self) -> None:
        super().__init__("squeezed_slice", remove_nodes=False)

    def pattern(self, op: Any, x: Any, starts: Any, ends: Any, axes: Any, squeezed: Any) -> Any:
        part = op.Slice(x, starts, ends, axes, _allow_other_inputs=True, _outputs=["part"])
        return op.Squeeze(part, squeezed)

    def plan(
        self,
        *,
        x: ir.Value,
        starts: ir.Value,
        ends: ir.Value,
        axes: ir.Value,
        squeezed: ir.Value,
        part: ir.Value,
    ) -> _Pick:
        node, gone = part.producer(), constant(squeezed)
        assert node is not None
        bounds = [constant(value) for value in (*node.inputs[1:4], *node.inputs[4:])]
        if x.shape is None or gone is None or gone.size != 1 or any(bound is None for bound in bounds):
            raise LeftAlone("")
        rank = len(x.shape)
        axis = int(gone.item()) % rank
        first, last, along, *steps = (np.asarray(bound).ravel().tolist() for bound in bounds)
        if any(step != 1 for step in (steps[0] if steps else [])):
            raise LeftAlone("the slice has steps")
        index = None
        for start, end, at in zip(first, last, (place % rank for place in along), strict=True):
            size = x.shape[at]
            if at == axis and start >= 0 and end == start + 1:
                index = start
            elif start != 0 or end < (size if isinstance(size, int) else np.iinfo(np.int32).max):
                raise LeftAlone("the slice also cuts an axis that is not picked, or counts from the end")
        if index is None:
            raise LeftAlone("")
        return _Pick(x, index, axis)


PICKED_INDEX = Fusion("picked_index", (_GatherOfTranspose.rule(), _SqueezedSlice.rule()))
