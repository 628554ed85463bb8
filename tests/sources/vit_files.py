"""Tiny random ViT checkpoints in the layout of the released files, and the same in other namings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]
# Size 8×8, patch 4, 8 wide, 2 heads, MLP 16, 3 classes.
HIDDEN, HEADS, MLP, CLASSES, PATCHES = 8, 2, 16, 3, 4
LINEN = {
    "LayerNorm_2": "LayerNorm_1",
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "MlpBlock_3": "MlpBlock_0",
}
STEM_WIDTH = 32
POSITION = "Transformer/posembed_input/pos_embedding"


def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def attention(name: str) -> dict[str, tuple[int, ...]]:
    width = HIDDEN // HEADS
    return {
        **{f"{name}/{part}/kernel": (HIDDEN, HEADS, width) for part in ("query", "key", "value")},
        **{f"{name}/{part}/bias": (HEADS, width) for part in ("query", "key", "value")},
        f"{name}/out/kernel": (HEADS, width, HIDDEN),
        f"{name}/out/bias": (HIDDEN,),
    }


def block(index: int) -> dict[str, tuple[int, ...]]:
    name = f"Transformer/encoderblock_{index}"
    return {
        **norm(f"{name}/LayerNorm_0", HIDDEN),
        **attention(f"{name}/MultiHeadDotProductAttention_1"),
        **norm(f"{name}/LayerNorm_2", HIDDEN),
        **dense(f"{name}/MlpBlock_3/Dense_0", HIDDEN, MLP),
        **dense(f"{name}/MlpBlock_3/Dense_1", MLP, HIDDEN),
    }


def arrays(
    *, layers: int = 2, token: bool = True, representation: int | None = None, tokens: int | None = None
) -> Arrays:
    """Draw a checkpoint under the released names; norms are random, too."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (4, 4, 3, HIDDEN),
        "embedding/bias": (HIDDEN,),
        POSITION: (1, (PATCHES + token) if tokens is None else tokens, HIDDEN),
        **({"cls": (1, 1, HIDDEN)} if token else {}),
        **{name: shape for index in range(layers) for name, shape in block(index).items()},
        **norm("Transformer/encoder_norm", HIDDEN),
        **(dense("pre_logits", HIDDEN, representation) if representation else {}),
        **dense("head", representation or HIDDEN, CLASSES),
    }
    return drawn(shapes)


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def linen(stored: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """Number the modules of a block as Linen does."""
    return {"/".join(LINEN.get(part, part) for part in name.split("/")): stored[name] for name in stored}


def stacked(stored: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """Put the blocks into one array each, with a leading layer axis."""
    start = "Transformer/encoderblock_"
    rest = {name: array for name, array in stored.items() if not name.startswith(start)}
    layers = 1 + max(int(name[len(start) :].partition("/")[0]) for name in stored if name.startswith(start))
    inside = [name.removeprefix(f"{start}0/") for name in stored if name.startswith(f"{start}0/")]
    return rest | {
        f"Transformer/encoderblock/{name}": np.stack([stored[f"{start}{i}/{name}"] for i in range(layers)])
        for name in inside
    }


def below(prefix: str, stored: Mapping[str, NDArray[np.float32]]) -> Arrays:
    return {f"{prefix}{name}": array for name, array in stored.items()}


def save(path: Path, stored: Mapping[str, NDArray[np.generic]]) -> Path:
    np.savez(path, **dict(stored))  # type: ignore[arg-type]
    return path


def stem_arrays(depths: tuple[int, ...], *, old_axes: bool = True) -> Arrays:
    """Draw a stem under the released names; GroupNorm as (1, 1, 1, C), as old files have it, or as (C)."""
    shapes: dict[str, tuple[int, ...]] = {"conv_root/kernel": (7, 7, 3, STEM_WIDTH)}
    norms = {"gn_root": STEM_WIDTH}
    channels = STEM_WIDTH
    for stage, depth in enumerate(depths):
        planes = STEM_WIDTH * 2**stage
        for unit in range(depth):
            name = f"block{stage + 1}/unit{unit + 1}/"
            kernels = {
                "1": (1, 1, channels, planes),
                "2": (3, 3, planes, planes),
                "3": (1, 1, planes, 4 * planes),
            }
            kernels |= {"_proj": (1, 1, channels, 4 * planes)} if unit == 0 else {}
            shapes |= {f"{name}conv{part}/kernel": shape for part, shape in kernels.items()}
            norms |= {f"{name}gn{part}": shape[-1] for part, shape in kernels.items()}
            channels = 4 * planes
    before = (1, 1, 1) if old_axes else ()
    shapes |= {
        f"{name}/{leaf}": (*before, width) for name, width in norms.items() for leaf in ("scale", "bias")
    }
    return drawn(shapes, seed=3)


def hybrid(depths: tuple[int, ...], patch: int, tokens: int, *, old_axes: bool = True) -> Arrays:
    """Draw an R+ViT: a stem of `depths` units a stage, patches of `patch` cells, `tokens` with the class token."""
    plain = arrays(tokens=tokens)
    channels = STEM_WIDTH * 2 ** (len(depths) + 1) if depths else STEM_WIDTH
    embedding = drawn({"embedding/kernel": (patch, patch, channels, HIDDEN)})
    embedding["embedding/kernel"] /= channels**0.5
    return plain | embedding | stem_arrays(depths, old_axes=old_axes)
