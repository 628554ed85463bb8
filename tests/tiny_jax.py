"""Small JAX models: Vision Transformers in flax's two interfaces, a hybrid, a detector in plain JAX."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

SIZE = (32, 48)
TOKENS, WIDTH, CLASSES = 4 * 6 + 1, 48, 5


class LinenBlock(linen.Module):
    """Pre-norm block as google-research/vision_transformer builds it."""

    @linen.compact
    def __call__(self, x: Any, *, deterministic: bool) -> Any:
        y = linen.LayerNorm()(x)
        y = linen.MultiHeadDotProductAttention(num_heads=3, dropout_rate=0.1, deterministic=deterministic)(y)
        x = x + linen.Dropout(0.1)(y, deterministic=deterministic)
        y = linen.gelu(linen.Dense(96)(linen.LayerNorm()(x)))
        y = linen.Dense(WIDTH)(linen.Dropout(0.1)(y, deterministic=deterministic))
        return x + linen.Dropout(0.1)(y, deterministic=deterministic)


class LinenViT(linen.Module):
    """Two blocks, a class token, dropout that is on unless told otherwise."""

    @linen.compact
    def __call__(self, images: Any, *, train: bool = True) -> Any:
        x = linen.Conv(WIDTH, (8, 8), strides=(8, 8), padding="VALID")(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        token = self.param("cls", linen.initializers.normal(1.0), (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(token, [x.shape[0], 1, 1]), x], axis=1)
        x = x + self.param("position", linen.initializers.normal(1.0), (1, TOKENS, WIDTH))
        for _ in range(2):
            x = LinenBlock()(x, deterministic=not train)
        return linen.Dense(CLASSES)(linen.LayerNorm()(x)[:, 0])


class NnxBlock(nnx.Module):
    """The same block in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, WIDTH, decode=False, dropout_rate=0.1, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(WIDTH, 96, rngs=rngs), nnx.Linear(96, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.narrow(jax.nn.gelu(self.wide(self.norm2(x)))))


class NnxViT(nnx.Module):
    """Two blocks and a class token."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, WIDTH, (8, 8), strides=(8, 8), padding="VALID", rngs=rngs)
        self.token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        self.position = nnx.Param(jax.random.normal(rngs.params(), (1, TOKENS, WIDTH)))
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.norm, self.head = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, WIDTH))
        x = jnp.concatenate([token, x], axis=1) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class StdConv(linen.Conv):
    """Weight standardisation at every call, by overriding `param`, as the R+ViT hybrids have it."""

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        value = super().param(name, *args, **kwargs)
        return standardised(value) if name == "kernel" else value


class Hybrid(linen.Module):
    """A convolution, GroupNorm and a head; `conv` is StdConv, or Conv where the kernels are standardised already."""

    conv: Any = StdConv

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = self.conv(8, (5, 5), strides=(2, 2), use_bias=False, name="root")(images)
        x = linen.relu(linen.GroupNorm(4)(x))
        return linen.Dense(CLASSES)(x.reshape(x.shape[0], -1))


def standardised(kernel: Any) -> Any:
    """Mean 0 and standard deviation 1 over height, width and input channels."""
    kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    return kernel / (jnp.std(kernel, axis=(0, 1, 2)) + 1e-5)


def variables_of(module: linen.Module) -> Any:
    """Random parameters, as numpy arrays."""
    dropout = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return jax.tree.map(np.asarray, module.init(dropout, jnp.zeros((1, *SIZE, 3))))


def vit_as_jax2onnx_writes_it(jax2onnx: Any, interface: str, opset: int) -> tuple[Any, Any]:
    """(ONNX model with its own default options, function of images that answers in JAX)."""
    answer: Any
    if interface == "linen":
        variables = variables_of(LinenViT())

        def answer(images: Any) -> Any:
            return LinenViT().apply(variables, images, train=False)
    else:
        answer = NnxViT(nnx.Rngs(0))
        answer.eval()
    names = {"input_names": ["images"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax2onnx reads NNX parameters in a way that is deprecated
        return jax2onnx.to_onnx(answer, [("B", *SIZE, 3)], opset=opset, **names), answer


def detector(params: Any, images: Any) -> dict[str, Any]:
    """Seven boxes from the mean colours of 8×8 patches, with what training code returns beside them."""
    patches = images.reshape(images.shape[0], SIZE[0] // 8, 8, SIZE[1] // 8, 8, 3).mean((2, 4))
    x = jnp.tanh(patches.reshape(images.shape[0], -1) @ params["mix"])
    queries = x[:, None, :] * params["queries"]
    logits, boxes = queries @ params["classes"], jax.nn.sigmoid(queries @ params["boxes"])
    return {"logits": logits, "boxes": boxes, "layers": [{"logits": logits * 0.5}]}


def detector_params() -> Any:
    """Random parameters of `detector`."""
    generator = np.random.default_rng(3)
    sizes = {"mix": (72, 16), "queries": (7, 16), "classes": (16, 4), "boxes": (16, 4)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
