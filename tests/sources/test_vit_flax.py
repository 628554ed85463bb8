"""Our ViT against Flax: small Linen models written here, their parameters saved in every naming."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sources import vit_files as files

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of JAX's own, while Flax is imported
    pytest.importorskip("flax", reason="needs Flax: pip install 'vitesse[jax]'")
    import jax
    import jax.numpy as jnp
    from flax import linen as nn
    from flax import traverse_util

from vitesse.sources.vit import Pooling  # noqa: E402
from vitesse.sources.vit_checkpoint import build, read_checkpoint  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jax|flax).*")
HIDDEN, HEADS = 32, 4


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.gelu(nn.Dense(48)(x))
        return nn.Dense(x.shape[-1])(y)


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x)), None


class Transformer(nn.Module):
    layers: int = 2
    scanned: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.scanned:
            scan = nn.scan(
                EncoderBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers
            )
            x, _ = scan(name="encoderblock")(x, None)
        else:
            for index in range(self.layers):
                x, _ = EncoderBlock(name=f"encoderblock_{index}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        probe = self.param("probe", nn.initializers.normal(1.0), (1, 1, HIDDEN))
        x = nn.MultiHeadDotProductAttention(num_heads=HEADS)(jnp.tile(probe, (x.shape[0], 1, 1)), x)
        return (x + MlpBlock()(nn.LayerNorm()(x)))[:, 0]


class StdConv(nn.Conv):
    """A convolution that standardises its kernel at every call."""

    def param(self, name: str, *arguments: Any, **options: Any) -> Any:
        value = super().param(name, *arguments, **options)
        if name != "kernel":
            return value
        axes = (0, 1, 2)
        return (value - value.mean(axes)) / (value.std(axes) + 1e-5)


def conv(width: int, kernel: int, stride: int, name: str) -> Any:
    return StdConv(width, (kernel, kernel), (stride, stride), use_bias=False, name=name)


class Unit(nn.Module):
    planes: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(nn.GroupNorm(name="gn1")(conv(self.planes, 1, 1, "conv1")(x)))
        y = nn.relu(nn.GroupNorm(name="gn2")(conv(self.planes, 3, self.stride, "conv2")(y)))
        y = nn.GroupNorm(name="gn3")(conv(4 * self.planes, 1, 1, "conv3")(y))
        if x.shape[-1] != 4 * self.planes or self.stride != 1:
            x = nn.GroupNorm(name="gn_proj")(conv(4 * self.planes, 1, self.stride, "conv_proj")(x))
        return nn.relu(x + y)


class Stage(nn.Module):
    planes: int
    units: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for index in range(self.units):
            x = Unit(self.planes, 1 if index else self.stride, name=f"unit{index + 1}")(x)
        return x


class LinenViT(nn.Module):
    """A ViT whose parameters have the names of the released Linen checkpoints, or of big_vision's."""

    patch: int = 4
    pooling: str = "token"
    representation: int | None = None
    stages: tuple[int, ...] | None = None
    scanned: bool = False
    big_vision: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.stages is not None:
            x = nn.relu(nn.GroupNorm(name="gn_root")(conv(32, 7, 2, "conv_root")(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for index, units in enumerate(self.stages):
                x = Stage(32 * 2**index, units, 2 if index else 1, name=f"block{index + 1}")(x)
        patch = (self.patch, self.patch)
        x = nn.Conv(HIDDEN, patch, patch, padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, HIDDEN)
        if self.big_vision:
            x = x + self.param("pos_embedding", nn.initializers.normal(0.5), (1, *x.shape[1:]))
        if self.pooling == "token":
            token = self.param("cls", nn.initializers.normal(1.0), (1, 1, HIDDEN))
            x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        if not self.big_vision:
            x = Position(name="posembed_input")(x)
        x = Transformer(scanned=self.scanned, name="Transformer")(x)
        x = MAPHead()(x) if self.pooling == "map" else x[:, 0] if self.pooling == "token" else x.mean(1)
        if self.representation:
            x = jnp.tanh(nn.Dense(self.representation, name="pre_logits")(x))
        return nn.Dense(7, name="head")(x)


class Position(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x + self.param("pos_embedding", nn.initializers.normal(0.5), (1, *x.shape[1:]))


Rename = Callable[[files.Arrays], files.Arrays]


def compare(model: LinenViT, path: Path, rename: Rename, size: tuple[int, int]) -> tuple[float, Any]:
    """Return the largest difference of the logits, and our checkpoint."""
    random = np.random.default_rng(5)
    images = random.standard_normal((2, *size, 3), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), jnp.asarray(images)))["params"]
    drawn = {
        name: draw(random, name, value.shape)
        for name, value in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    params = traverse_util.unflatten_dict(drawn, sep="/")
    wanted = np.asarray(jax.jit(lambda p, x: model.apply({"params": p}, x))(params, images))
    checkpoint = read_checkpoint(files.save(path / "vit.npz", rename(drawn)))
    with torch.no_grad():
        found = build(checkpoint, size)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert wanted.std() > 0.3
    return float(np.abs(found - wanted).max()), checkpoint


def draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a parameter: kernels that keep activations near 1, and norms and biases away from where they begin."""
    values = random.standard_normal(shape, np.float32)
    if name.endswith("kernel"):
        return values * np.float32(values[..., 0].size) ** -0.5
    return 1 + 0.3 * values if name.endswith("scale") else 0.3 * values


def placed(arrays: files.Arrays) -> files.Arrays:
    """Put the position embedding where the released files have it, inside the transformer."""
    return {
        files.POSITION if name == "posembed_input/pos_embedding" else name: array
        for name, array in arrays.items()
    }


def released(arrays: files.Arrays) -> files.Arrays:
    """Name and shape arrays as the released files: numbered before Linen, GroupNorm as (1, 1, 1, C)."""
    before = {new: old for old, new in files.LINEN.items()}
    return {
        "/".join(before.get(part, part) for part in name.split("/")): (
            array.reshape(1, 1, 1, -1) if "gn" in name.split("/")[-2:][0] else array
        )
        for name, array in placed(arrays).items()
    }


@pytest.mark.parametrize(
    ("rename", "pooling", "representation"),
    [(placed, "token", None), (released, "token", 12), (placed, "gap", 12), (released, "gap", None)],
)
def test_a_vit_answers_as_flax(
    tmp_path: Path, rename: Rename, pooling: str, representation: int | None
) -> None:
    model = LinenViT(pooling=pooling, representation=representation)
    difference, checkpoint = compare(model, tmp_path, rename, (16, 16))
    assert difference < 2e-5
    assert checkpoint.config.size == (16, 16) and checkpoint.config.representation == representation


@pytest.mark.parametrize("pooling", ["token", "gap", "map"])
def test_big_vision_with_stacked_blocks_answers_as_flax(tmp_path: Path, pooling: str) -> None:
    model = LinenViT(pooling=pooling, scanned=True, big_vision=True)
    difference, checkpoint = compare(model, tmp_path, lambda arrays: files.below("params/", arrays), (16, 16))
    assert difference < 2e-5
    assert checkpoint.config.pooling is Pooling(pooling) and checkpoint.config.layers == 2


def test_a_pooling_head_without_a_module_of_its_own_is_read_alike(tmp_path: Path) -> None:
    def inlined(arrays: files.Arrays) -> files.Arrays:
        return {name.removeprefix("MAPHead_0/"): array for name, array in arrays.items()}

    difference, _ = compare(LinenViT(pooling="map", big_vision=True), tmp_path, inlined, (16, 16))
    assert difference < 2e-5


@pytest.mark.parametrize(
    ("rename", "stages", "patch", "side"),
    [(placed, (), 2, 32), (released, (2, 1), 1, 32), (placed, (1, 1, 1), 1, 47)],
)
def test_a_hybrid_answers_as_flax(
    tmp_path: Path, rename: Rename, stages: tuple[int, ...], patch: int, side: int
) -> None:
    difference, checkpoint = compare(LinenViT(patch, stages=stages), tmp_path, rename, (side, side))
    assert difference < 1e-4
    assert checkpoint.config.stem is not None and checkpoint.config.stem.depths == stages


def test_a_kernel_that_is_not_standardised_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitesse.sources.vit_layout.standardise", lambda kernel: kernel)
    assert compare(LinenViT(2, stages=()), tmp_path, placed, (32, 32))[0] > 1e-3


def test_the_other_gelu_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, approximate: exact(x))
    assert compare(LinenViT(), tmp_path, placed, (16, 16))[0] > 1e-4
