"""Attention, however it is written, → the standard `Attention` operator (opset 23)."""

from __future__ import annotations

from vitesse.fusion import (
    attention_einsum,
    attention_heads,
    attention_linear,
    attention_scores,
    attention_selected,
)
from vitesse.fusion.picked_index import PICKED_INDEX
from vitesse.fusion.rules import Fusion

ATTENTION_FUSIONS: tuple[Fusion, ...] = (
    Fusion("einsum_to_matmul", attention_einsum.rules(), commute=False),
    Fusion("attention", attention_scores.rules(), opset=23, commute=False),
    Fusion("attention_heads", attention_heads.rules(), opset=23, commute=False),
    Fusion("linear_between_layouts", attention_linear.rules()),
    PICKED_INDEX,
    Fusion("selected_token", attention_selected.rules(), commute=False),
)
