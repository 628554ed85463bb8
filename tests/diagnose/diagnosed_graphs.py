"""Small trained-looking graphs with the parts that go wrong in practice; node names tell the modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import tiny_graphs

SIDE, WIDTH, TOKENS, CLASSES = 32, 16, 64, 4
f32 = np.float32
Model = onnx.ModelProto


class Builder:
    """Collects nodes and weights; a node is called `/module/Operator` and its output `module.operator`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self._random = np.random.default_rng(5)

    def add(
        self, operator: str, module: str, *inputs: str, out: str = "", count: int = 1, **attributes: Any
    ) -> str:
        """Append a node and return the name of its first output."""
        names = [
            out or f"{module}.{operator.lower()}",
            *(f"{module}.{operator.lower()}_{at}" for at in range(1, count)),
        ]
        path = f"/{module.replace('.', '/')}/{operator}"
        path += "_1" if any(node.name == path for node in self.nodes) else ""
        self.nodes.append(helper.make_node(operator, list(inputs), names, path, **attributes))
        return names[0]

    def const(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.weights[name] = np.asarray(value, dtype)
        return name

    def random(self, name: str, *shape: int, size: float = 1.0) -> str:
        """Normal numbers that keep the variance of what they multiply."""
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.const(name, size * self._random.normal(size=shape) / np.sqrt(fan_in))

    def linear(self, x: str, module: str, width: int, out: str = "", wide: int = WIDTH) -> str:
        return self.add("MatMul", module, x, self.random(f"{module}.weight", wide, width), out=out)

    def tokens(self) -> str:
        """images → (N, 64, 16)."""
        self.add(
            "Conv",
            "backbone.stem",
            "images",
            self.random("backbone.stem.weight", WIDTH, 3, 4, 4, size=2.0),
            strides=[4, 4],
        )
        self.add(
            "Reshape", "backbone", "backbone.stem.conv", self.const("grid", [0, WIDTH, TOKENS], np.int64)
        )
        return self.add("Transpose", "backbone", "backbone.reshape", perm=[0, 2, 1])

    def norm(self, x: str, module: str, epsilon: float = 1e-5) -> str:
        scale = self.const(f"{module}.weight", np.ones(WIDTH))
        return self.add("LayerNormalization", module, x, scale, axis=-1, epsilon=epsilon)

    def pooled_head(self, x: str) -> str:
        """(N, 64, 16) → logits (N, 4)."""
        mean = self.add("ReduceMean", "pool", x, axes=[1], keepdims=0)
        return self.linear(mean, "head", CLASSES, out="logits")

    def model(
        self,
        outputs: Mapping[str, Sequence[int | str]] | None = None,
        opset: int = 17,
        batch: int | str = "N",
    ) -> Model:
        outputs = outputs or {"logits": ["N", CLASSES]}
        graph = helper.make_graph(
            self.nodes,
            "diagnosed",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 10
        return model


def stacked(index: int = -1) -> Model:
    """A detector whose three decoder layers are stacked, with heads on all of them, and one picked at the end."""
    b = Builder()
    x, layers = b.tokens(), []
    for at in range(3):
        x = b.add("Tanh", f"decoder.layers.{at}", b.linear(x, f"decoder.layers.{at}", WIDTH))
        layers.append(b.add("Unsqueeze", f"decoder.layers.{at}", x, b.const("first", [0], np.int64)))
    hs = b.add("Concat", "decoder", *layers, axis=0)
    pick = b.const("pick", index, np.int64)
    b.add("Gather", "class_embed", b.linear(hs, "class_embed", CLASSES + 1), pick, out="logits", axis=0)
    b.add(
        "Gather",
        "bbox_embed",
        b.add("Sigmoid", "bbox_embed", b.linear(hs, "bbox_embed", 4)),
        pick,
        out="boxes",
        axis=0,
    )
    return b.model({"logits": ["N", TOKENS, CLASSES + 1], "boxes": ["N", TOKENS, 4]})


def with_auxiliary(swapped: bool = False) -> Model:
    """Heads on two decoder layers, both outputs; `swapped`: the inner layer has the final one's name."""
    b = Builder()
    inner = b.add("Tanh", "decoder.layers.0", b.linear(b.tokens(), "decoder.layers.0", WIDTH))
    final = b.add("Tanh", "decoder.layers.1", b.linear(inner, "decoder.layers.1", WIDTH))
    names = ("logits", "aux_logits") if swapped else ("aux_logits", "logits")
    head = b.random("class_embed.weight", WIDTH, CLASSES + 1)
    for hidden, name in zip((inner, final), names, strict=True):
        b.add("MatMul", "class_embed", hidden, head, out=name)
    b.add("Sigmoid", "bbox_embed", b.linear(final, "bbox_embed", 4), out="boxes")
    shape = ["N", TOKENS, CLASSES + 1]
    return b.model({"logits": shape, "boxes": ["N", TOKENS, 4], "aux_logits": shape})


def without_auxiliary() -> Model:
    """The same, the inner layer's prediction not among the outputs."""
    model = with_auxiliary()
    del model.graph.output[2]
    return model


def block() -> Model:
    """A transformer block: LayerNorm, attention written out, residual sums, an MLP with GELU; opset 20."""
    b = Builder()
    x = b.tokens()
    y = b.norm(x, "encoder.layers.0.norm1")
    q, k, v = (b.linear(y, f"encoder.layers.0.attn.{name}", WIDTH) for name in "qkv")
    keys = b.add("Transpose", "encoder.layers.0.attn.k", k, perm=[0, 2, 1])
    scores = b.add("MatMul", "encoder.layers.0.attn", q, keys, out="scores")
    scaled = b.add("Mul", "encoder.layers.0.attn", scores, b.const("quarter", 0.25), out="scaled")
    masked = b.add(
        "Add", "encoder.layers.0.attn", scaled, b.const("mask", np.zeros((TOKENS, TOKENS))), out="masked"
    )
    probabilities = b.add("Softmax", "encoder.layers.0.attn", masked, axis=-1, out="probabilities")
    mixed = b.add("MatMul", "encoder.layers.0.attn.out", probabilities, v, out="attended")
    x = b.add("Add", "encoder.layers.0", x, mixed, out="sum1")
    y = b.norm(x, "encoder.layers.0.norm2", epsilon=1e-6)
    # Round −2.5 GELU is small, and its two formulas differ by a percent.
    m = "encoder.layers.0.mlp"
    low = b.add("Add", f"{m}.fc1", b.linear(y, f"{m}.fc1", 32), b.const("low", -2.5))
    hidden = b.add("Gelu", f"{m}.act", low, out="gelu")
    loud = b.add("MatMul", f"{m}.fc2", hidden, b.random(f"{m}.fc2.weight", 32, WIDTH, size=50))
    x = b.add("Add", m, x, loud, out="sum2")
    x = b.norm(x, "norm")
    mean = b.add("ReduceMean", "pool", x, b.const("one", [1], np.int64), keepdims=0)
    b.linear(mean, "head", CLASSES, out="logits")
    return b.model(opset=20)


def sampling() -> Model:
    """A neck that resizes, sums cumulatively, samples at fixed places and normalises; Dropout behind it; opset 20."""
    b = Builder()
    b.add("Conv", "backbone.stem", "images", b.random("backbone.stem.weight", WIDTH, 3, 4, 4), strides=[4, 4])
    x = b.add("Relu", "backbone", "backbone.stem.conv")
    scales = b.const("scales", [1, 1, 2, 2])
    x = b.add("Resize", "neck.up", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    x = b.add("CumSum", "neck.positions", x, b.const("axis", 3, np.int64))
    places = np.random.default_rng(1).uniform(-1, 1, size=(1, 8, 8, 2))
    x = b.add("GridSample", "decoder.sampling", x, b.const("places", places), mode="linear", align_corners=0)
    x = b.add("Dropout", "decoder.drop", x, b.const("ratio", 0.5), b.const("training", False, np.bool_))
    x = b.add("Flatten", "head.flat", x)
    b.linear(x, "head", CLASSES, out="logits", wide=WIDTH * 64)
    return b.model({"logits": [1, CLASSES]}, opset=20, batch=1)


def tail(*steps: Any, before: float = 1.0) -> Model:
    """A classifier between whose tokens and head lie `steps`: functions (builder, tensor) → tensor."""
    b = Builder()
    x = b.add("Mul", "backbone.scale", b.tokens(), b.const("before", before))
    for step in steps:
        x = step(b, x)
    b.pooled_head(x)
    return b.model()


def written_out_norm(b: Builder, x: str) -> str:
    """LayerNorm as ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div."""
    m = "encoder.norm"
    centred = b.add("Sub", m, x, b.add("ReduceMean", m, x, axes=[-1], out="mean"), out="centred")
    squares = b.add("Pow", m, centred, b.const("two", 2.0), out="squares")
    variance = b.add("ReduceMean", m, squares, axes=[-1], out="variance")
    return b.add(
        "Div",
        m,
        centred,
        b.add("Sqrt", m, b.add("Add", m, variance, b.const("eps", 1e-5), out="with_eps")),
        out="normed",
    )


def attention(b: Builder, x: str) -> str:
    """softmax(x · xᵀ / 1000) · x: the products are large before they are scaled."""
    m = "encoder.attn"
    scores = b.add("MatMul", m, x, b.add("Transpose", m, x, perm=[0, 2, 1]), out="scores")
    scaled = b.add("Mul", m, scores, b.const("factor", 1e-3), out="scaled")
    return b.add("MatMul", f"{m}.out", b.add("Softmax", m, scaled, axis=-1), x, out="attended")


def masked_attention(b: Builder, x: str) -> str:
    """Attention in which one query may look at nothing: its row of the mask is −1e9."""
    m = "encoder.attn"
    mask = np.zeros((TOKENS, TOKENS))
    mask[3] = -1e9
    scores = b.add("MatMul", m, x, b.add("Transpose", m, x, perm=[0, 2, 1]), out="scores")
    masked = b.add("Add", m, scores, b.const("mask", mask), out="masked")
    return b.add(
        "MatMul", f"{m}.out", b.add("Softmax", m, masked, axis=-1, out="probabilities"), x, out="attended"
    )


def unit_length(b: Builder, x: str) -> str:
    """x over its own size plus 1e-12; where x is zero, the rest is the small number alone."""
    m = "neck.normalise"
    positive = b.add("Relu", m, x)
    return b.add(
        "Div", m, positive, b.add("Add", m, positive, b.const("tiny", 1e-12), out="with_tiny"), out="unit"
    )


def times(value: float, module: str) -> Any:
    """A step that multiplies."""
    return lambda b, x: b.add("Mul", module, x, b.const(f"{module}.factor", value))


def to_the_fourth(b: Builder, x: str) -> str:
    """√√(x⁴)."""
    m = "neck.power"
    power = b.add("Pow", m, x, b.const("four", 4.0), out="powers")
    return b.add("Sqrt", f"{m}.b", b.add("Sqrt", f"{m}.a", power))


def far_away(b: Builder, x: str) -> str:
    """x + 3000 − 3000, as coordinates in pixels of a large picture are moved and moved back."""
    there = b.add("Add", "head.move", x, b.const("offset", 3000.0), out="moved")
    return b.add("Sub", "head.back", there, "offset", out="back")


def outlier() -> Model:
    """A residual sum and a normalised tensor, one channel of which is hundreds of times the others and is not read."""
    b = Builder()
    x = b.tokens()
    loud = np.ones(WIDTH)
    loud[0] = 2000.0
    x = b.add("Mul", "encoder.loud", x, b.const("loud", loud), out="loud_tokens")
    x = b.add(
        "Add",
        "encoder",
        x,
        b.add("Tanh", "encoder.branch", b.linear("backbone.transpose", "encoder.branch", WIDTH)),
        out="sum",
    )
    quiet = np.ones(WIDTH)
    quiet[0] = 0.0
    x = b.add("Mul", "encoder.select", x, b.const("quiet", quiet), out="selected")
    x = b.norm(x, "norm")
    x = b.add("Mul", "head.scale", x, b.const("loud2", loud), out="scaled")
    mean = b.add("ReduceMean", "pool", x, axes=[1], keepdims=0, out="pooled")
    b.linear(mean, "head", CLASSES, out="logits")
    b.weights["head.weight"][0] = 0.0
    return b.model()


def confident_attention() -> Model:
    """Attention whose scores, some of them masked by −200000, decide the answer."""
    b = Builder()
    x, m = b.add("Mul", "backbone.scale", b.tokens(), b.const("five", 5.0)), "encoder.attn"
    mask = np.zeros((TOKENS, TOKENS))
    mask[:, ::7] = -200000.0
    scores = b.add("MatMul", m, x, b.add("Transpose", m, x, perm=[0, 2, 1]), out="scores")
    masked = b.add("Add", m, scores, b.const("mask", mask), out="masked")
    attended = b.add("MatMul", f"{m}.out", b.add("Softmax", m, masked, axis=-1), x, out="attended")
    b.pooled_head(attended)
    return b.model()


def uneven() -> Model:
    """The tiny detector, one channel of whose inner layer has weights 300 times the others'."""
    model = tiny_graphs.detector()
    value = np.array(tiny_graphs.weight(model, "mix"))
    value[:, 0] *= 300
    tiny_graphs.set_weight(model, "mix", value)
    return model
