"""Tiny random models of Vitesse's own definitions and of JAX, and what must come out of them."""

from __future__ import annotations

from pathlib import Path

from sources.model_rows import ModelRow
from vitesse.sources.source import Source

ANY_SIZE = frozenset({"batch", "height", "width"})


def detr(folder: Path) -> Source:
    from sources.detr_models import random_detr, save
    from vitesse.sources.detr_checkpoint import open_detr

    return open_detr(save(folder / "detr.pth", random_detr()))


def vit(folder: Path) -> Source:
    from sources import vit_files
    from vitesse.sources.vit_checkpoint import open_vit

    return open_vit(vit_files.save(folder / "vit.npz", vit_files.arrays()))


def hybrid_vit(folder: Path) -> Source:
    from sources import vit_files
    from vitesse.sources.vit_checkpoint import open_vit

    return open_vit(vit_files.save(folder / "hybrid.npz", vit_files.hybrid((1, 1), 2, 5)))


def flax_vit(folder: Path) -> Source:
    from vitesse.sources.jax.function import from_jax

    import tiny_jax  # isort: skip

    model = tiny_jax.LinenViT()
    return from_jax(model, tiny_jax.variables_of(model), ("B", *tiny_jax.SIZE, 3))


# One encoder layer, three decoder layers with two attentions each.
FOLDED = (
    "the self-attention of the first decoder layer sees the queries alone, no image: it is folded into a constant, "
    "with its LayerNorm"
)

ROWS: tuple[ModelRow, ...] = (
    ModelRow("DETR, one size", "detr-r50-e632da11.pth", detr, (64, 96), 82672, 11, 7, 6, note=FOLDED),
    ModelRow(
        "DETR, any size",
        "detr-r50-e632da11.pth",
        detr,
        (64, 96),
        82672,
        11,
        7,
        6,
        dynamic=ANY_SIZE,
        note=FOLDED,
    ),
    ModelRow("ViT, one size", "ViT-B_16.npz", vit, (8, 8), 1675, 5, 2, 2),
    ModelRow("ViT, any size", "ViT-B_16.npz", vit, (8, 12), 1675, 5, 2, 2, dynamic=ANY_SIZE),
    ModelRow("R+ViT hybrid", "R50+ViT-B_16.npz", hybrid_vit, (32, 32), 128811, 5, 2, 2),
    ModelRow("ViT (flax)", "flax:own_package.models:vit", flax_vit, (32, 48), 48773, 5, 2, 2),
)
