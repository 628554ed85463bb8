"""Small graphs that half precision breaks, each in one way, with feeds on which it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from fusing import Arrays, graph, normal
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name every node by what it makes."""
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Artifact:
    """Write a model as an artifact."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return as_artifact(path)


def decomposed_layer_norm(epsilon: float = 1e-5) -> onnx.ModelProto:
    """LayerNorm in basic operators behind a linear layer: of values near 500 the squares are beyond 65504."""
    body = """
        t = MatMul(x, w)
        mean = ReduceMean<axes = [-1]>(t)
        centred = Sub(t, mean)
        squares = Pow(centred, two)
        variance = ReduceMean<axes = [-1]>(squares)
        safe = Add(variance, epsilon)
        deviation = Sqrt(safe)
        normalised = Div(centred, deviation)
        y = MatMul(normalised, w)
    """
    return named(graph(body, w=normal(8, 8, seed=1) / 3, two=2.0, epsilon=epsilon))


def attention_with_large_scores() -> onnx.ModelProto:
    """Scores of attention near 8 · 150² = 180,000 between layers that are harmless."""
    body = "q = MatMul(x, w) a = Attention<scale = 1.0>(q, q, x) y = MatMul(a, out)"
    shape, w = "float[N,1,5,8]", np.eye(8, dtype=np.float32)
    return named(graph(body, f"{shape} x", f"{shape} y", opset=23, w=w, out=w / 100))


def large_constant() -> onnx.ModelProto:
    """Values near 3,000 divided by 200,000, which FP16 would take for 65,504."""
    body = "t = MatMul(x, w) scaled = Div(t, large) y = MatMul(scaled, w)"
    return named(graph(body, w=normal(8, 8, seed=1) / 3, large=200_000.0))


def boxes_in_pixels() -> onnx.ModelProto:
    """Boxes cxcywh in 0..1 → times the image's size of about 4000 pixels, beside class scores that are harmless."""
    body = """
        hidden = MatMul(x, w)
        features = Tanh(hidden)
        logits = MatMul(features, to_logits)
        raw = MatMul(features, to_boxes)
        unit = Sigmoid(raw)
        size = Cast<to = 1>(sizes)
        y = Mul(unit, size)
    """
    outputs = "float[N,5,4] y, float[N,5,3] logits"
    weights = {"w": normal(8, 8, seed=1), "to_logits": normal(8, 3, seed=2), "to_boxes": normal(8, 4, seed=3)}
    return named(graph(body, "float[N,5,8] x, int64[4] sizes", outputs, **weights))


def feeds(count: int = 4, scale: float = 1.0, shape: tuple[int, ...] = (1, 5, 8)) -> list[Arrays]:
    """Normal numbers times `scale`, different for every image."""
    return [{"x": scale * normal(*shape, seed=seed)} for seed in range(count)]
