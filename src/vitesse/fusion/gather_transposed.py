"""One index picked from a transposed tensor → picked from the tensor itself.

JAX exports read the class token as Gather on axis 0 of (tokens, batch, width), transposing every token to read one;
picked from (batch, tokens, width), it can also be moved up through the last block (`attention_selected`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, constant


@dataclass(frozen=True)
class _Pick:
    x: ir.Value
    index: ir.Value
    axis: int


class _GatherOfTranspose(FusionRule):
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
        return _Pick(x, index, axis)

    def build(self, op: Any, plan: _Pick) -> Any:
        return op.Gather(plan.x, plan.index, axis=plan.axis)


GATHER_OF_TRANSPOSE = Fusion("gather_of_transpose", (_GatherOfTranspose.rule(),))
