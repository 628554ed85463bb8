"""Transformer layers with random weights, in the forms between which `ort_lowering.py` measures.

Encoder layers are those of a Vision Transformer (pre-norm, GELU), decoder layers those of DETR (post-norm, ReLU:
attention among the queries, attention to the memory, feed-forward). Every form computes the same function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """Sizes of one model; `memory` is the number of tokens a decoder attends to, 0 for an encoder."""

    tokens: int
    width: int
    heads: int
    layers: int
    hidden: int
    memory: int = 0

    def feeds(self) -> dict[str, Floats]:
        rng = np.random.default_rng(1)
        lengths = {"x": self.tokens} | ({"memory": self.memory} if self.memory else {})
        return {name: rng.standard_normal((1, n, self.width), np.float32) for name, n in lengths.items()}


CASES = {
    "tiny ViT": Case(50, 128, 4, 6, 512),
    "ViT-B/16": Case(197, 768, 12, 2, 3072),  # 2 of its 12 layers
    "small decoder": Case(25, 128, 8, 6, 512, memory=64),
    "DETR decoder": Case(100, 256, 8, 2, 2048, memory=950),  # 2 of its 6 layers
}


@dataclass(frozen=True)
class Form:
    """How the same layers are written."""

    attention: str = "Attention"
    projections: str = "separate"
    norm: str = "LayerNormalization"
    gelu: str = "Gelu"


@dataclass(frozen=True)
class Linear:
    weight: Floats  # (in, out)
    bias: Floats

    def beside(self, *others: Linear) -> Linear:
        """One layer whose results lie side by side."""
        every = (self, *others)
        return Linear(np.concatenate([o.weight for o in every], 1), np.concatenate([o.bias for o in every]))


class Builder:
    """A graph under construction; the weights depend on the case only, never on the form."""

    def __init__(self, case: Case, form: Form) -> None:
        self.case, self.form = case, form
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def linear(self, rows: int, columns: int) -> Linear:
        weight = self.rng.standard_normal((rows, columns), np.float32) * np.float32(rows**-0.5)
        return Linear(weight, self.rng.standard_normal(columns, np.float32) * np.float32(0.1))

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, contrib: bool = False, **attributes: Any) -> Any:
        names = [f"n{len(self.nodes)}_{i}" for i in range(outputs)]
        domain = CONTRIB if contrib else ""
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def apply(self, layer: Linear, x: str) -> str:
        made: str = self.op(
            "Add", self.op("MatMul", x, self.constant(layer.weight)), self.constant(layer.bias)
        )
        return made

    def split(self, layer: Linear, x: str, parts: int) -> list[str]:
        made: list[str] = self.op("Split", self.apply(layer, x), outputs=parts, axis=-1, num_outputs=parts)
        return made

    def norm(self, x: str) -> str:
        scale, offset = (self.rng.standard_normal(self.case.width, np.float32) for _ in range(2))
        made: str = self.op(
            "LayerNormalization",
            x,
            self.constant(1 + scale / 10),
            self.constant(offset / 10),
            epsilon=1e-6,
            axis=-1,
        )
        return made

    def residual_norm(self, x: str, y: str) -> tuple[str, str]:
        """(x + y, norm(x + y))."""
        if self.form.norm == "LayerNormalization":
            total = self.op("Add", x, y)
            return total, self.norm(total)
        scale, offset = (self.rng.standard_normal(self.case.width, np.float32) for _ in range(2))
        weights = (self.constant(1 + scale / 10), self.constant(offset / 10))
        made = self.op("SkipLayerNormalization", x, y, *weights, outputs=4, contrib=True, epsilon=1e-6)
        return made[3], made[0]

    def heads(self, x: str, tokens: int) -> str:
        shape = self.constant(np.array([1, tokens, self.case.heads, -1], np.int64))
        made: str = self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3])
        return made

    def written_out(self, q: str, k: str, v: str, keys: int) -> str:
        case = self.case
        root = self.constant(np.float32((case.width // case.heads) ** -0.25))
        q = self.op("Mul", self.heads(q, case.tokens), root)
        k = self.op("Mul", self.op("Transpose", self.heads(k, keys), perm=[0, 1, 3, 2]), root)
        weights = self.op("Softmax", self.op("MatMul", q, k), axis=-1)
        result = self.op("Transpose", self.op("MatMul", weights, self.heads(v, keys)), perm=[0, 2, 1, 3])
        made: str = self.op(
            "Reshape", result, self.constant(np.array([1, case.tokens, case.width], np.int64))
        )
        return made

    def attend(self, q: str, k: str, v: str, keys: int) -> str:
        """Attention of projected queries, keys and values (1, n, width)."""
        if self.form.attention == "written out":
            return self.written_out(q, k, v, keys)
        n = self.case.heads
        if self.form.attention == "Attention":
            made: str = self.op("Attention", q, k, v, q_num_heads=n, kv_num_heads=n)
        else:
            made = self.op("MultiHeadAttention", q, k, v, contrib=True, num_heads=n)
        return made

    def attention(self, x: str, memory: str, keys: int) -> str:
        """Projections, attention and output projection."""
        layers = [self.linear(self.case.width, self.case.width) for _ in range(4)]
        q, k, v, out = layers
        if self.form.attention == "MultiHeadAttention with bias":
            mixed = self._with_bias(q, k, v, x, memory)
        elif self.form.attention == "com.microsoft.Attention":
            packed = q.beside(k, v)
            weights = (self.constant(packed.weight), self.constant(packed.bias))
            mixed = self.op("Attention", x, *weights, contrib=True, num_heads=self.case.heads)
        elif self.form.projections == "packed" and x == memory:
            mixed = self.attend(*self.split(q.beside(k, v), x, 3), keys)
        else:
            mixed = self.attend(self.apply(q, x), self.apply(k, memory), self.apply(v, memory), keys)
        return self.apply(out, mixed)

    def gelu(self, layer: Linear, x: str) -> str:
        form = self.form.gelu
        if form in ("FastGelu", "BiasGelu"):
            product = self.op("MatMul", x, self.constant(layer.weight))
            made: str = self.op(form, product, self.constant(layer.bias), contrib=True)
            return made
        x = self.apply(layer, x)
        if form == "Gelu":
            made = self.op("Gelu", x)
            return made
        root, one, half = (self.constant(np.float32(n)) for n in (2**0.5, 1.0, 0.5))
        raised = self.op("Add", self.op("Erf", self.op("Div", x, root)), one)
        made = self.op("Mul", x, self.op("Mul", half, raised))
        return made

    def encoder(self) -> str:
        case, x = self.case, "x"
        normed = self.norm(x)
        for _ in range(case.layers):
            x, normed = self.residual_norm(x, self.attention(normed, normed, case.tokens))
            hidden = self.gelu(self.linear(case.width, case.hidden), normed)
            x, normed = self.residual_norm(x, self.apply(self.linear(case.hidden, case.width), hidden))
        return normed

    def decoder(self) -> str:
        case, x = self.case, "x"
        own = replace(self.form, projections="separate")
        crossing = [[self.linear(case.width, case.width) for _ in range(4)] for _ in range(case.layers)]
        packed = self.form.projections == "packed"
        if packed:
            keys, values = (
                self.split(
                    crossing[0][i].beside(*(layer[i] for layer in crossing[1:])), "memory", case.layers
                )
                for i in (1, 2)
            )
        for at, (q, k, v, out) in enumerate(crossing):
            self.form, form = own, self.form
            _, x = self.residual_norm(x, self.attention(x, x, case.tokens))
            if packed:
                mixed = self.attend(self.apply(q, x), keys[at], values[at], case.memory)
            elif form.attention == "MultiHeadAttention with bias":
                mixed = self._with_bias(q, k, v, x, "memory")
            else:
                mixed = self.attend(
                    self.apply(q, x), self.apply(k, "memory"), self.apply(v, "memory"), case.memory
                )
            _, x = self.residual_norm(x, self.apply(out, mixed))
            hidden = self.op("Relu", self.apply(self.linear(case.width, case.hidden), x))
            _, x = self.residual_norm(x, self.apply(self.linear(case.hidden, case.width), hidden))
            self.form = form
        return x

    def _with_bias(self, q: Linear, k: Linear, v: Linear, x: str, memory: str) -> str:
        projected = [
            self.op("MatMul", source, self.constant(layer.weight))
            for layer, source in zip((q, k, v), (x, memory, memory), strict=True)
        ]
        bias = self.constant(q.beside(k, v).bias)
        made: str = self.op("MultiHeadAttention", *projected, bias, contrib=True, num_heads=self.case.heads)
        return made


def layers(case: Case, form: Form) -> onnx.ModelProto:
    """All layers of `case` written as `form`; inputs x (1, tokens, width) and, for a decoder, memory."""
    builder = Builder(case, form)
    last = builder.decoder() if case.memory else builder.encoder()
    builder.nodes.append(helper.make_node("Identity", [last], ["y"]))

    def info(name: str, tokens: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", tokens, case.width])

    inputs = [info("x", case.tokens)] + ([info("memory", case.memory)] if case.memory else [])
    graph = helper.make_graph(builder.nodes, "layers", inputs, [info("y", case.tokens)], builder.weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
