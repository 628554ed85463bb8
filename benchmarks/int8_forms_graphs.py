"""Linear layers and convolutions in eight bits, in the forms that a graph can be written in. Weights are random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
# What activations are clipped to: beyond six standard deviations of the random ones.
REACH = 6.0
FLOAT = "float32"


@dataclass
class Graph:
    """Nodes and constants under construction; `number` is int8, uint8 or float32 (nothing rounded)."""

    number: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def const(self, values: NDArray[np.generic] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def op(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> str:
        """Append a node and return its first output; the others have the same name with _1, _2."""
        name = f"t{len(self.nodes)}"
        names = [name, *(f"{name}_{at}" for at in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return name

    def normal(self, *shape: int, scale: float) -> NDArray[np.float32]:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def step(self, low: float) -> np.float32:
        """The scale for values from `low` to REACH; symmetric int8 covers −REACH to REACH whatever `low` is."""
        return np.float32((REACH - low) / 255 if self.number == "uint8" else REACH / 127)

    def rounded(self, value: str, low: float) -> str:
        """Put a Q/DQ pair behind `value`, whose values go from `low` to REACH."""
        if self.number == FLOAT:
            return value
        scale = self.step(low)
        zero = np.uint8(np.rint(-low / scale)) if self.number == "uint8" else np.int8(0)
        names = [self.const(scale), self.const(zero)]
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [value, *names]), *names])

    def dequantised(self, values: NDArray[np.float32], axis: int, scale: NDArray[np.float32]) -> str:
        """Store `values` as integers with one scale per channel: int32 for biases, (channels,), else int8."""
        kind = np.int32 if values.ndim == 1 else np.int8
        shape = [-1 if at == axis else 1 for at in range(values.ndim)]
        stored = np.rint(values / scale.reshape(shape)).astype(kind)
        inputs = [self.const(stored), self.const(scale), self.const(np.zeros(scale.shape, kind))]
        return self.op("DequantizeLinear", inputs, axis=axis)

    def model(self, result: str, shape: Sequence[int | str]) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", result)]
        graph = helper.make_graph(self.nodes, "forms", ends[:1], ends[1:], self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(made)
        return made


def scales(weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """One scale per channel that puts its largest weight on 127."""
    others = tuple(at for at in range(weights.ndim) if at != axis)
    return np.asarray(np.abs(weights).max(axis=others) / 127, np.float32)


# --- linear layers


@dataclass(frozen=True)
class Linear:
    """A form of a linear layer.

    Args:
        bias: added as (width,) or (1, 1, width), or int32 inside a Gemm.
        dynamic: the scale of activations is found at run time.
    """

    number: str = "uint8"
    bias: str = "width"
    dynamic: bool = False
    free_batch: bool = False


LINEAR: Mapping[str, Linear] = {
    FLOAT: Linear(FLOAT),
    "uint8, MatMul + Add of a bias (width), rows known": Linear(),
    "uint8, the same, batch not known": Linear(free_batch=True),
    "uint8, MatMul + Add of a bias (1, 1, width)": Linear(bias="1, 1, width"),
    "uint8, Gemm, int32 bias": Linear(bias="int32"),
    "int8, MatMul + Add of a bias (1, 1, width)": Linear("int8", bias="1, 1, width"),
    "int8, Gemm, int32 bias": Linear("int8", bias="int32"),
    "dynamic quantisation": Linear(dynamic=True),
}


def perceptrons(
    form: Linear, *, rows: int = 197, width: int = 768, hidden: int = 3072, layers: int = 2
) -> onnx.ModelProto:
    """MLPs of a transformer, with their normalisation and residual sum, on (1, rows, width)."""
    graph = Graph(form.number)
    one, zero = graph.const(np.ones(width, np.float32)), graph.const(np.zeros(width, np.float32))
    x = "x"
    for _ in range(layers):
        y = graph.op("LayerNormalization", [x, one, zero], axis=-1)
        y = graph.op("Gelu", [_linear(graph, form, y, width, hidden)])
        x = graph.op("Add", [x, _linear(graph, form, y, hidden, width)])
    return graph.model(x, ["batch" if form.free_batch else 1, rows, width])


def _linear(graph: Graph, form: Linear, x: str, inner: int, outer: int) -> str:
    weights, bias = graph.normal(inner, outer, scale=inner**-0.5), graph.normal(outer, scale=0.1)
    if form.number == FLOAT:
        return graph.op("Add", [graph.op("MatMul", [x, graph.const(weights)]), graph.const(bias)])
    steps = scales(weights, 1)
    if form.dynamic:
        return _dynamic(graph, x, np.rint(weights / steps).astype(np.int8), steps, bias)
    if form.bias == "int32":
        flat = graph.op("Reshape", [graph.rounded(x, -REACH), graph.const(np.array([-1, inner]))])
        stored = graph.dequantised(bias, 0, graph.step(-REACH) * steps)
        y = graph.op("Gemm", [flat, graph.dequantised(weights, 1, steps), stored])
        return graph.op("Reshape", [y, graph.const(np.array([1, -1, outer]))])
    y = graph.op("MatMul", [graph.rounded(x, -REACH), graph.dequantised(weights, 1, steps)])
    return graph.op("Add", [y, graph.const(bias if form.bias == "width" else bias[None, None])])


def _dynamic(
    graph: Graph, x: str, weights: NDArray[np.int8], steps: NDArray[np.float32], bias: NDArray[np.float32]
) -> str:
    """ONNX's own operators for it; ONNX Runtime makes one kernel of them."""
    stored = graph.op("DynamicQuantizeLinear", [x], outputs=3)
    zeros = graph.const(np.zeros(steps.shape, np.int8))
    sums = graph.op("MatMulInteger", [stored, graph.const(weights), f"{stored}_2", zeros])
    scale = graph.op("Mul", [f"{stored}_1", graph.const(steps)])
    y = graph.op("Mul", [graph.op("Cast", [sums], to=TensorProto.FLOAT), scale])
    return graph.op("Add", [y, graph.const(bias)])


# --- convolutions


@dataclass(frozen=True)
class Convolutions:
    """A form of a bottleneck. results: the convolutions' are rounded, too, before a ReLU (relu) or behind it (out)."""

    number: str = "uint8"
    results: str = ""
    rounded_sums: bool = False


CONVOLUTIONS: Mapping[str, Convolutions] = {
    FLOAT: Convolutions(FLOAT),
    "symmetric int8, only inputs rounded": Convolutions("int8"),
    "symmetric int8, also between each convolution and its ReLU": Convolutions("int8", "relu"),
    "uint8, only inputs rounded": Convolutions(),
    "uint8, results rounded, sums in float": Convolutions(results="out"),
    "uint8, results rounded, sums of rounded numbers": Convolutions(results="out", rounded_sums=True),
}


def bottlenecks(
    form: Convolutions, *, width: int, inner: int, height: int, across: int, blocks: int = 3
) -> onnx.ModelProto:
    """Residual blocks of 1×1, 3×3 and 1×1 convolutions on (1, width, height, across), inputs not below 0."""
    graph = Graph(form.number)
    x = "x"
    for _ in range(blocks):
        read = graph.rounded(x, 0.0)
        y = _convolution(graph, form, read, (inner, width, 1), relu=True)
        y = _convolution(graph, form, graph.rounded(y, 0.0), (inner, inner, 3), relu=True)
        y = _convolution(graph, form, graph.rounded(y, 0.0), (width, inner, 1), relu=False)
        x = graph.op("Relu", [graph.op("Add", [read if form.rounded_sums else x, y])])
    return graph.model(x, [1, width, height, across])


def _convolution(graph: Graph, form: Convolutions, x: str, shape: tuple[int, int, int], *, relu: bool) -> str:
    outer, inner, kernel = shape
    weights = graph.normal(outer, inner, kernel, kernel, scale=(inner * kernel**2) ** -0.5)
    bias = graph.const(graph.normal(outer, scale=0.1))
    stored = (
        graph.const(weights) if form.number == FLOAT else graph.dequantised(weights, 0, scales(weights, 0))
    )
    y = graph.op("Conv", [x, stored, bias], kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
    if form.results == "relu" or (form.results == "out" and not relu):
        y = graph.rounded(y, -REACH)
    return graph.op("Relu", [y]) if relu else y
