"""Operators → more basic ones, for runtimes that lack or miscompute them: a table; naming a rewrite loads it.

`lowering.lower.lower_model` applies rewrites; `lowering.needed` finds out which of them a runtime needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitesse.fusion.rules import Fusion


@dataclass(frozen=True)
class Rewrite:
    """One rewrite.

    Args:
        name: what a user types, and the key of its count; also the module under `vitesse.lowering` that has it.
        operator: the standard operator it removes.
        emits: what it writes instead.
        opset: lowest version of the default domain that has what it emits.
        why: for which targets, and why.
    """

    name: str
    operator: str
    emits: tuple[str, ...]
    opset: int
    why: str

    def fusion(self) -> Fusion:
        """Load and return its rules."""
        found: Fusion = import_module(f"vitesse.lowering.{self.name}").LOWERING
        return found


_REWRITES = (
    Rewrite(
        "attention",
        "Attention",
        ("Reshape", "Transpose", "Mul", "MatMul", "Add", "Where", "Softmax", "Concat", "Unsqueeze"),
        13,
        "runtimes of before opset 23; TensorRT fuses the written-out form as well",
    ),
    Rewrite(
        "einsum",
        "Einsum",
        ("Transpose", "Reshape", "Unsqueeze", "MatMul", "Mul", "ReduceSum"),
        13,
        "runtimes without Einsum, or with one that transposes at every call",
    ),
    Rewrite("gelu", "Gelu", ("Mul", "Erf", "Tanh", "Add"), 13, "runtimes of before opset 20"),
    Rewrite(
        "grid_sample",
        "GridSample",
        (
            *(
                "Add",
                "Cast",
                "Clip",
                "Concat",
                "Equal",
                "Floor",
                "Gather",
                "GatherND",
                "MatMul",
                "Mul",
                "Reshape",
            ),
            *("Round", "Shape", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
        ),
        16,
        "TensorRT 10.13 to 11.1 compiles GridSample wrongly; OpenVINO has none for volumes",
    ),
    Rewrite(
        "group_norm",
        "GroupNormalization",
        ("Reshape", "ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div", "Shape"),
        13,
        "runtimes of before opset 21; TensorRT up to 10.16 computes a single group wrongly",
    ),
    Rewrite("hard_swish", "HardSwish", ("Mul", "Add", "Clip"), 13, "runtimes of before opset 14"),
    Rewrite(
        "layer_norm",
        "LayerNormalization",
        ("ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div", "Cast"),
        13,
        "runtimes of before opset 17; in FP16 only with the casts to FP32 that it writes",
    ),
    Rewrite(
        "resize",
        "Resize",
        ("Gather", "MatMul", "Identity"),
        13,
        "modes a runtime lacks or ignores: antialiasing in OpenVINO, bicubic in many others; static sizes only",
    ),
    Rewrite(
        "rms_norm",
        "RMSNormalization",
        ("ReduceMean", "Mul", "Add", "Sqrt", "Div", "Cast"),
        13,
        "runtimes of before opset 23",
    ),
)
REWRITES: Mapping[str, Rewrite] = {rewrite.name: rewrite for rewrite in _REWRITES}


def rewrite_of(operator: str) -> Rewrite | None:
    """The rewrite that removes a standard operator, or None."""
    return next((rewrite for rewrite in _REWRITES if rewrite.operator == operator), None)
