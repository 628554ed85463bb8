"""Where a ViT's weights stand in an `.npz`: the names of google-research/vision_transformer and of big_vision.

Names differ by age. The released files count modules before Linen (`LayerNorm_0`, `MultiHeadDotProductAttention_1`,
`LayerNorm_2`, `MlpBlock_3`), newer ones anew for every class (`_0`, `_0`, `_1`, `_0`). Some stack the blocks in one
array with a leading layer axis, some stand below a prefix. Arrays are turned: convolution kernels HWIO → OIHW, dense
kernels (in, out) → (out, in), attention kernels (D, heads, D/heads) → (D, D).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitesse.errors import ModelError
from vitesse.sources.vit import Pooling, ViTConfig
from vitesse.sources.vit_resnet import GROUPS, StemConfig, needs_projection, standardise, units_of

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]

# Where a checkpoint may begin: the plain layout, a training state, and big_vision's, alone or beside a text tower.
PREFIXES = ("", "opt/target/", "params/", "params/img/", "img/")
# Written by training beside the parameters, and of no use afterwards.
_TRAINING_STATE = ("opt/", "extra/", "chrono/", "state/")
_POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
_FORMS = (
    (r"MixerBlock_\d+/", "an MLP-Mixer checkpoint, which has no attention"),
    (r"(^|/)txt/", "an image-text model (LiT, SigLIP): it compares pictures with text and has no classes of its own"),
    (r"^(params/)?resnet/", "a ResNet (BiT) without a transformer"),
    (r"^opt/state/", "an optimizer state without the parameters"),
    (r"^blocks\.0\.|\.weight$", "a checkpoint of PyTorch saved as .npz"),
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of the model: array `name` of `shape` in the file, turned to become `target` of the state dict.

    `layer` is the row of a stacked array; `shape` is then that of the whole array.
    """

    name: str
    shape: tuple[int, ...]
    target: str
    turn: Callable[[Array], Array]
    layer: int | None = None

    def tensor(self, arrays: Arrays) -> Array:
        """Return the tensor in the model's layout."""
        array = arrays[self.name]
        return np.ascontiguousarray(self.turn(array if self.layer is None else array[self.layer]))


@dataclass(frozen=True)
class Naming:
    """How a file names its arrays. `position` is empty where it has no position embedding."""

    prefix: str
    norm2: str
    attention: str
    mlp: str
    position: str
    pool: str
    stacked: bool

    @property
    def encoder(self) -> str:
        """What stands before the name of a block."""
        return f"{self.prefix}Transformer/"


def naming_of(path: Path, names: Sequence[str]) -> Naming:
    """Find out how the file names its arrays; raises ModelError, saying what it seems to be, for another model."""
    for what in (what for pattern, what in _FORMS[:2] if any(re.search(pattern, name) for name in names)):
        raise _other_model(path, names, what)
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}embedding/kernel" in names), None)
    if prefix is None:
        found = (what for pattern, what in _FORMS if any(re.search(pattern, name) for name in names))
        raise _other_model(path, names, next(found, "no checkpoint of a ViT"))
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    old = any("/MultiHeadDotProductAttention_1/" in name or "/MlpBlock_3/" in name for name in inside)
    return Naming(
        prefix=prefix,
        norm2="LayerNorm_2" if old else "LayerNorm_1",
        attention="MultiHeadDotProductAttention_1" if old else "MultiHeadDotProductAttention_0",
        mlp="MlpBlock_3" if old else "MlpBlock_0",
        position=next((f"{prefix}{place}" for place in _POSITIONS if place in inside), ""),
        pool=prefix if "probe" in inside else f"{prefix}MAPHead_0/",
        stacked=any(name.startswith("Transformer/encoderblock/") for name in inside),
    )


def parameters_of(naming: Naming, names: Sequence[str]) -> list[str]:
    """Return the names that belong to the model: those below the prefix, less what training keeps beside them."""
    inside = [name for name in names if name.startswith(naming.prefix)]
    return [name for name in inside if not name.removeprefix(naming.prefix).startswith(_TRAINING_STATE)]


def _other_model(path: Path, names: Sequence[str], what: str) -> ModelError:
    shown = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
    return ModelError(
        f"{path} is {what}; it has {len(names)} arrays: {shown or 'none'}",
        expected="a ViT or hybrid classifier in the names of google-research/vision_transformer "
        "(embedding/kernel, Transformer/encoderblock_0/…, head/kernel)",
    )


def infer_config(path: Path, arrays: Arrays, naming: Naming) -> ViTConfig:
    """Read the sizes off the shapes; `size` is one patch, for only the position embedding knows it.

    Raises:
        ModelError: an array that shows a size is missing or has another number of axes.
    """
    prefix, block = naming.prefix, f"{naming.encoder}encoderblock{'' if naming.stacked else '_0'}/"

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in arrays:
            raise ModelError(
                f"{path} has no array {name!r}, which shows the sizes of the model",
                expected="the names of google-research/vision_transformer",
            )
        if arrays[name].ndim != axes or not arrays[name].size:
            raise ModelError(
                f"{name!r} in {path} has shape {arrays[name].shape}",
                expected=f"{axes} axes, none of them empty",
            )
        return arrays[name].shape

    if f"{prefix}head/kernel" not in arrays:
        raise ModelError(
            f"{path} has no head: it gives features, not classes",
            expected="head/kernel (features, classes) and head/bias",
            fix="take the fine-tuned checkpoint, or train a head and save it with the rest",
        )
    rows, columns, _, hidden = shape(f"{prefix}embedding/kernel", 4)
    if rows != columns:
        raise ModelError(f"the patches of {path} have {rows}×{columns} pixels", expected="square patches")
    stacked = int(naming.stacked)
    query = shape(f"{block}{naming.attention}/query/kernel", 3 + stacked)
    mlp = shape(f"{block}{naming.mlp}/Dense_0/kernel", 2 + stacked)
    pre_logits, root = f"{prefix}pre_logits/kernel", f"{prefix}conv_root/kernel"
    stem = _infer_stem(path, arrays, prefix, shape(root, 4)[3]) if root in arrays else None
    side = rows * (stem.stride if stem else 1)
    return ViTConfig(
        size=(side, side),
        patch=rows,
        hidden=hidden,
        layers=query[0] if naming.stacked else _count(arrays, rf"{naming.encoder}encoderblock_(\d+)/"),
        heads=query[-2],
        mlp=mlp[-1],
        classes=shape(f"{prefix}head/kernel", 2)[1],
        pooling=_infer_pooling(arrays, naming),
        representation=shape(pre_logits, 2)[1] if pre_logits in arrays else None,
        stem=stem,
    )


def _infer_pooling(arrays: Arrays, naming: Naming) -> Pooling:
    if f"{naming.pool}probe" in arrays:
        return Pooling.MAP
    return Pooling.TOKEN if f"{naming.prefix}cls" in arrays else Pooling.GAP


def _infer_stem(path: Path, arrays: Arrays, prefix: str, width: int) -> StemConfig:
    if width % GROUPS:
        raise ModelError(f"the stem of {path} is {width} channels wide", expected=f"a multiple of {GROUPS}")
    stages = _count(arrays, rf"{prefix}block(\d+)/", first=1)
    depths = (_count(arrays, rf"{prefix}block{i + 1}/unit(\d+)/", first=1) for i in range(stages))
    return StemConfig(width, tuple(depths))


def _count(arrays: Arrays, pattern: str, first: int = 0) -> int:
    """Return the highest number in the names plus one; a gap in the count shows later, as missing arrays."""
    found = (re.match(pattern, name) for name in arrays)
    return max((int(match.group(1)) for match in found if match), default=first - 1) + 1 - first


def entries(config: ViTConfig, naming: Naming) -> Iterator[Entry]:
    """Yield every tensor of the model but class token and position embedding, which are put together apart."""
    prefix, hidden = naming.prefix, config.hidden
    if config.stem:
        yield from _stem(config.stem, prefix)
    channels = config.stem.channels if config.stem else 3
    kernel = (config.patch, config.patch, channels, hidden)
    yield Entry(f"{prefix}embedding/kernel", kernel, "embedding.weight", _convolution)
    yield Entry(f"{prefix}embedding/bias", (hidden,), "embedding.bias", _same)
    for layer in range(config.layers):
        yield from _block(config, naming, layer)
    yield from _norm(f"{naming.encoder}encoder_norm", hidden, "norm")
    if config.pooling is Pooling.MAP:
        pool = naming.pool
        yield Entry(f"{pool}probe", (1, 1, hidden), "pool.probe", _same)
        yield from _attention(f"{pool}MultiHeadDotProductAttention_0", config, "pool.attention")
        yield from _norm(f"{pool}LayerNorm_0", hidden, "pool.norm")
        yield from _mlp(f"{pool}MlpBlock_0", config, "pool.mlp")
    if config.representation:
        yield from _dense(f"{prefix}pre_logits", hidden, config.representation, "pre_logits")
    yield from _dense(f"{prefix}head", config.representation or hidden, config.classes, "head")


def _block(config: ViTConfig, naming: Naming, layer: int) -> Iterator[Entry]:
    name = f"{naming.encoder}encoderblock" + ("" if naming.stacked else f"_{layer}")
    target = f"blocks.{layer}"
    parts = (
        *_norm(f"{name}/LayerNorm_0", config.hidden, f"{target}.norm1"),
        *_attention(f"{name}/{naming.attention}", config, f"{target}.attention"),
        *_norm(f"{name}/{naming.norm2}", config.hidden, f"{target}.norm2"),
        *_mlp(f"{name}/{naming.mlp}", config, f"{target}.mlp"),
    )
    for part in parts:
        stacked = Entry(part.name, (config.layers, *part.shape), part.target, part.turn, layer)
        yield stacked if naming.stacked else part


def _attention(name: str, config: ViTConfig, target: str) -> Iterator[Entry]:
    hidden, heads, width = config.hidden, config.heads, config.hidden // config.heads
    for part in ("query", "key", "value"):
        yield Entry(f"{name}/{part}/kernel", (hidden, heads, width), f"{target}.{part}.weight", _heads_in)
        yield Entry(f"{name}/{part}/bias", (heads, width), f"{target}.{part}.bias", _flat)
    yield Entry(f"{name}/out/kernel", (heads, width, hidden), f"{target}.out.weight", _heads_out)
    yield Entry(f"{name}/out/bias", (hidden,), f"{target}.out.bias", _same)


def _mlp(name: str, config: ViTConfig, target: str) -> Iterator[Entry]:
    yield from _dense(f"{name}/Dense_0", config.hidden, config.mlp, f"{target}.dense1")
    yield from _dense(f"{name}/Dense_1", config.mlp, config.hidden, f"{target}.dense2")


def _dense(name: str, inputs: int, outputs: int, target: str) -> Iterator[Entry]:
    yield Entry(f"{name}/kernel", (inputs, outputs), f"{target}.weight", np.transpose)
    yield Entry(f"{name}/bias", (outputs,), f"{target}.bias", _same)


def _norm(name: str, width: int, target: str) -> Iterator[Entry]:
    yield Entry(f"{name}/scale", (width,), f"{target}.weight", _same)
    yield Entry(f"{name}/bias", (width,), f"{target}.bias", _same)


def _stem(stem: StemConfig, prefix: str) -> Iterator[Entry]:
    yield from _standardised(f"{prefix}conv_root", (7, 7, 3, stem.width), "stem.conv_root")
    yield from _norm(f"{prefix}gn_root", stem.width, "stem.gn_root")
    places = [(stage + 1, unit + 1) for stage, depth in enumerate(stem.depths) for unit in range(depth)]
    channels = stem.width
    for index, ((stage, unit), (planes, stride)) in enumerate(zip(places, units_of(stem), strict=True)):
        name, target = f"{prefix}block{stage}/unit{unit}", f"stem.units.{index}"
        shapes = {"1": (1, 1, channels, planes), "2": (3, 3, planes, planes), "3": (1, 1, planes, 4 * planes)}
        if needs_projection(channels, planes, stride):
            shapes["_proj"] = (1, 1, channels, 4 * planes)
        for part, shape in shapes.items():
            yield from _standardised(f"{name}/conv{part}", shape, f"{target}.conv{part}")
            yield from _norm(f"{name}/gn{part}", shape[-1], f"{target}.gn{part}")
        channels = 4 * planes


def _standardised(name: str, shape: tuple[int, ...], target: str) -> Iterator[Entry]:
    yield Entry(f"{name}/kernel", shape, f"{target}.weight", lambda kernel: _convolution(standardise(kernel)))


def without_group_norm_axes(name: str, array: Array) -> Array:
    """Return scale and bias of a GroupNorm, which old files store as (1, 1, 1, C), as (C)."""
    is_group_norm = re.search(r"(^|/)gn(\d+|_root|_proj)/(scale|bias)$", name) is not None
    return array.reshape(-1) if is_group_norm and array.shape[:-1] == (1, 1, 1) else array


def _same(array: Array) -> Array:
    return array


def _flat(array: Array) -> Array:
    return array.reshape(-1)


def _convolution(kernel: Array) -> Array:
    return kernel.transpose(3, 2, 0, 1)


def _heads_in(kernel: Array) -> Array:
    return kernel.reshape(kernel.shape[0], -1).T


def _heads_out(kernel: Array) -> Array:
    return kernel.reshape(-1, kernel.shape[-1]).T
