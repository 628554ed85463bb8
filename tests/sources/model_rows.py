"""One row per model family in the table of docs/models.md: how to make a tiny random one, and what must come out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitesse.sources.source import Source


@dataclass(frozen=True)
class ModelRow:
    """What a family must show; every number is exact.

    Args:
        name: as in the table: "RT-DETR v2".
        how: what a user types, with a placeholder: "hf:./rtdetr_v2_folder".
        source: makes the tiny random model inside the folder and opens it as a user would.
        size: image (height, width) to export at.
        parameters: of the tiny model.
        layer_norms: normalisation nodes after fusing (LayerNormalization).
        attention_blocks: softmax attentions the architecture has (counted by hand from the tiny config).
        attention_fused: Attention nodes after clean and fuse; the table shows fused / blocks.
        dynamic: axes that the row is exported with and verified at another value of.
        int8: whether INT8 Q/DQ applies and the quantised graph runs with finite outputs.
        tolerance: largest absolute difference to the framework's own answer, outputs of order 1.
        loader: the class of transformers that the row stands for; empty for other sources.
        note: why something is not fused or not dynamic; empty where there is nothing to say.
    """

    name: str
    how: str
    source: Callable[[Path], Source]
    size: tuple[int, int]
    parameters: int
    layer_norms: int
    attention_blocks: int
    attention_fused: int
    dynamic: frozenset[str] = frozenset({"batch"})
    int8: bool = True
    tolerance: float = 1e-4
    loader: str = ""
    note: str = ""
