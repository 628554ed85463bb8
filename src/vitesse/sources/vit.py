"""The Vision Transformer of Dosovitskiy et al. (2021, arXiv:2010.11929), reading the released JAX checkpoints.

Numerics follow google-research/vision_transformer: tanh-approximated GELU, LayerNorm epsilon 1e-6, class token in
front, learned position embedding. Arrays keep the checkpoint's layout on disk and are turned here:
convolution kernels HWIO → OIHW, dense kernels (in, out) → (out, in), attention kernels (D, heads, D/heads) → (D, D).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vitesse.errors import ModelError

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT: square `image` and `patch` in pixels; `hidden` = model width; `mlp` = hidden width of the MLP."""

    image: int
    patch: int
    hidden: int
    layers: int
    heads: int
    mlp: int
    classes: int

    @property
    def tokens(self) -> int:
        """Patches plus the class token."""
        return (self.image // self.patch) ** 2 + 1


class Attention(nn.Module):
    """Multi-head self-attention over (batch, tokens, hidden)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, hidden)."""
        batch, tokens, hidden = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, self.heads, hidden // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(self.query(x)), split(self.key(x)), split(self.value(x)))
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, hidden))
        return merged


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each added to its input."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config.hidden, config.heads)
        self.norm2 = nn.LayerNorm(config.hidden, eps=1e-6)
        self.dense1 = nn.Linear(config.hidden, config.mlp)
        self.dense2 = nn.Linear(config.mlp, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, hidden)."""
        x = x + self.attention(self.norm1(x))
        return x + self.dense2(F.gelu(self.dense1(self.norm2(x)), approximate="tanh"))


class ViT(nn.Module):
    """Images (batch, 3, image, image), normalised to −1..1 → logits (batch, classes)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Conv2d(3, config.hidden, config.patch, config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.hidden))
        self.position = nn.Parameter(torch.randn(1, config.tokens, config.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, eps=1e-6)
        self.head = nn.Linear(config.hidden, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        patches = self.embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(patches.shape[0], -1, -1), patches], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def load_npz(path: Path) -> ViT:
    """Build a ViT from a google-research/vision_transformer checkpoint, its sizes inferred from the arrays.

    Raises:
        ModelError: not an `.npz`, pickled content, or arrays missing, extra or of another shape than the sizes ask for.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"cannot read {path}: {error}",
            expected="an .npz of plain arrays, as google-research/vision_transformer publishes them",
            cause="the download was cut off, or the file needs pickle, which is refused because it can run code",
        ) from error
    model = ViT(infer_config(arrays))
    state = _state_dict(arrays)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [f"{name} {tuple(state[name].shape)}, expected {shape}"
             for name, shape in wanted.items() if name in state and tuple(state[name].shape) != shape]  # fmt: skip
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra or wrong:
        raise ModelError(
            f"{path} does not fit a plain ViT: missing {missing}, not understood {extra}, other shape {wrong}",
            expected=f"arrays for {model.config}",
            cause="a variant this reader does not know (hybrid, pre_logits, another attention)",
        )
    model.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
    )
    return model.eval()


def infer_config(arrays: Arrays) -> ViTConfig:
    """Read the sizes off the shapes; raises ModelError naming the first array that is missing."""
    try:
        patch, _, _, hidden = arrays["embedding/kernel"].shape
        tokens = arrays["Transformer/posembed_input/pos_embedding"].shape[1]
        _, heads, _ = arrays["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"].shape
        mlp = arrays["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"].shape[1]
        classes = arrays["head/kernel"].shape[1]
    except KeyError as error:
        raise ModelError(
            f"the checkpoint has no array {error}",
            expected="the names of google-research/vision_transformer",
        ) from error
    layers = len({name.split("/")[1] for name in arrays if name.startswith("Transformer/encoderblock_")})
    image = patch * round((tokens - 1) ** 0.5)
    return ViTConfig(image, patch, hidden, layers, heads, mlp, classes)


_OUTSIDE_BLOCKS = {
    "embedding": "embedding",
    "Transformer/encoder_norm": "norm",
    "head": "head",
}
_INSIDE_BLOCKS = {
    "LayerNorm_0": "norm1",
    "MultiHeadDotProductAttention_1/query": "attention.query",
    "MultiHeadDotProductAttention_1/key": "attention.key",
    "MultiHeadDotProductAttention_1/value": "attention.value",
    "MultiHeadDotProductAttention_1/out": "attention.out",
    "LayerNorm_2": "norm2",
    "MlpBlock_3/Dense_0": "dense1",
    "MlpBlock_3/Dense_1": "dense2",
}


def _state_dict(arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    state = {}
    for name, array in arrays.items():
        if name == "cls":
            state["cls"] = array
        elif name == "Transformer/posembed_input/pos_embedding":
            state["position"] = array
        else:
            module, _, leaf = name.rpartition("/")
            state[f"{_module_name(module)}.{_leaf_name(leaf)}"] = _torch_layout(module, leaf, array)
    return state


def _module_name(module: str) -> str:
    if module.startswith("Transformer/encoderblock_"):
        block, _, inside = module.removeprefix("Transformer/encoderblock_").partition("/")
        return f"blocks.{block}.{_INSIDE_BLOCKS.get(inside, inside)}"
    return _OUTSIDE_BLOCKS.get(module, module)


def _leaf_name(leaf: str) -> str:
    return {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)


def _torch_layout(module: str, leaf: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    if leaf == "kernel" and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if module.endswith(("/query", "/key", "/value")):
        return array.reshape(array.shape[0], -1).T if leaf == "kernel" else array.reshape(-1)
    if module.endswith("Attention_1/out") and leaf == "kernel":
        return array.reshape(-1, array.shape[-1]).T
    return array.T if leaf == "kernel" else array
