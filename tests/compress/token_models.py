"""A tiny ViT as a fused graph, and the same with token merging computed apart, token by token, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fusing import graph

Array = NDArray[np.float64]
WIDTH, HEADS, MLP, CLASSES = 8, 2, 12, 5
EPSILON = 1e-6

BLOCK = """
  n{i} = LayerNormalization <epsilon = 1e-6> (x{i}, scale{i}a, shift{i}a)
  q{i}m = MatMul (n{i}, wq{i}) q{i} = Add (q{i}m, bq{i})
  k{i} = MatMul (n{i}, wk{i}) v{i} = MatMul (n{i}, wv{i})
  o{i} = Attention <q_num_heads = 2, kv_num_heads = 2> ({queries}, k{i}, v{i}{mask})
  p{i}m = MatMul (o{i}, wo{i}) p{i} = Add (p{i}m, bo{i})
  t{i} = Add ({residual}, p{i})
  m{i} = LayerNormalization <epsilon = 1e-6> (t{i}, scale{i}b, shift{i}b)
  h{i}m = MatMul (m{i}, w1{i}) h{i} = Gelu (h{i}m)
  f{i} = MatMul (h{i}, w2{i})
  x{next} = Add (t{i}, f{i})
"""
HEADS_OF = {
    "token": "c = Gather <axis = 1> (xend, zero) y = MatMul (c, head)",
    "mean": "c = ReduceMean <keepdims = 0> (xend, one) y = MatMul (c, head)",
    "patches": """s = Slice (xend, one, many, one) c = ReduceMean <keepdims = 0> (s, one)
        y = MatMul (c, head)""",
}


@dataclass(frozen=True)
class TinyViT:
    """Tokens (batch, tokens, 8) `x` → logits (batch, 5) `y`; `pooling` is token, mean or patches."""

    tokens: int
    blocks: int
    pooling: str
    weights: Mapping[str, NDArray[np.float32]]

    def model(self, body: str | None = None, **constants: Any) -> onnx.ModelProto:
        """The graph; `body` replaces the operators, `constants` join the weights."""
        return graph(
            self.body() if body is None else body,
            f"float[N,{self.tokens},{WIDTH}] x",
            f"float[N,{CLASSES}] y",
            opset=23,
            **{**self.weights, **constants},
        )

    def body(self, mask: str = "") -> str:
        """The operators; `mask` is one for all attentions."""
        blocks = [
            BLOCK.format(
                i=i,
                next=i + 1 if i + 1 < self.blocks else "end",
                mask=f", {mask}" if mask else "",
                queries=f"q{i}",
                residual=f"x{i}",
            )
            for i in range(self.blocks)
        ]
        return "x0 = Identity (x)" + "".join(blocks) + HEADS_OF[self.pooling]


def tiny_vit(*, tokens: int, blocks: int = 3, pooling: str = "token", seed: int = 0) -> TinyViT:
    """Draw the weights."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"head": (WIDTH, CLASSES)}
    for i in range(blocks):
        shapes |= {f"{name}{i}": (WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
        shapes |= {f"{name}{i}": (WIDTH,) for name in ("bq", "bo")}
        shapes |= {f"{name}{i}{part}": (WIDTH,) for name in ("scale", "shift") for part in "ab"}
        shapes |= {f"w1{i}": (WIDTH, MLP), f"w2{i}": (MLP, WIDTH)}
    weights = {
        name: (random.standard_normal(shape) * 0.6).astype(np.float32) for name, shape in shapes.items()
    }
    return TinyViT(
        tokens,
        blocks,
        pooling,
        {
            **weights,
            "zero": np.array(0, np.int64),
            "one": np.array([1], np.int64),
            "many": np.array([2**31], np.int64),
        },
    )


@dataclass(frozen=True)
class Faults:
    """What a wrong implementation would do."""

    unweighted: bool = False  # the plain mean of two tokens, however many they stand for
    not_proportional: bool = False
    class_token_merged: bool = False
    values_compared: bool = False  # matches by the tokens instead of the keys
    plain_pooling: bool = False


def reference(vit: TinyViT, x: NDArray[np.float32], rate: int, faults: Faults = Faults()) -> Array:
    """Logits with `rate` tokens merged in every block, as the paper says it: images and tokens one at a time."""
    return np.stack([_image(vit, tokens, rate, faults) for tokens in x.astype(np.float64)])


def _image(vit: TinyViT, x: Array, rate: int, faults: Faults) -> Array:
    w = {name: array.astype(np.float64) for name, array in vit.weights.items()}
    sizes = [1.0] * len(x)
    protected = vit.pooling != "mean" and not faults.class_token_merged
    for i in range(vit.blocks):
        n = _normalised(x, w[f"scale{i}a"], w[f"shift{i}a"])
        q, k, v = n @ w[f"wq{i}"] + w[f"bq{i}"], n @ w[f"wk{i}"], n @ w[f"wv{i}"]
        logs = np.zeros(len(x)) if faults.not_proportional else np.log(sizes)
        x = x + _attention(q, k, v, logs) @ w[f"wo{i}"] + w[f"bo{i}"]
        if not (vit.pooling == "token" and i == vit.blocks - 1 and faults.class_token_merged):
            keys = x if faults.values_compared else k
            x, sizes = merged(x, keys, sizes, rate, protected=protected, unweighted=faults.unweighted)
        m = _normalised(x, w[f"scale{i}b"], w[f"shift{i}b"])
        x = x + _gelu(m @ w[f"w1{i}"]) @ w[f"w2{i}"]
    start = int(vit.pooling == "patches")
    weights = None if faults.plain_pooling else np.array(sizes[start:])
    pooled = x[0] if vit.pooling == "token" else np.average(x[start:], axis=0, weights=weights)
    return np.asarray(pooled @ w["head"])


def merged(
    x: Array, keys: Array, sizes: list[float], rate: int, *, protected: bool, unweighted: bool = False
) -> tuple[Array, list[float]]:
    """One step of bipartite soft matching for one image: keys (tokens, heads · width)."""
    metric = keys.reshape(len(x), HEADS, -1).mean(axis=1)
    a, b = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    pairs = []
    for i in a:
        if i == 0 and protected:
            continue
        similarities = [_cosine(metric[i], metric[j]) for j in b]
        best = max(range(len(b)), key=lambda j: (similarities[j], -j))
        pairs.append((-similarities[best], i, b[best]))
    pairs.sort()
    gone = pairs[: min(rate, len(pairs) - 1)]
    groups = {j: [j] for j in b}
    for _, i, j in gone:
        groups[j].append(i)
    left = [i for i in a if i not in {i for _, i, _ in gone}]
    tokens, new_sizes = [x[i] for i in left], [sizes[i] for i in left]
    for j in b:
        weights = [1.0 if unweighted else sizes[i] for i in groups[j]]
        tokens.append(np.average([x[i] for i in groups[j]], axis=0, weights=weights))
        new_sizes.append(sum(sizes[i] for i in groups[j]))
    return np.array(tokens), new_sizes


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def _attention(q: Array, k: Array, v: Array, logs: Array) -> Array:
    width = WIDTH // HEADS
    outputs = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width) + logs
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        outputs.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, part])
    return np.concatenate(outputs, axis=1)


def _normalised(x: Array, scale: Array, shift: Array) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON) * scale + shift)


def _gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))
