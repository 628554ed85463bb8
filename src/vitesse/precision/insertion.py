"""The rewriting itself: which tensors and weights are rounded, on which grid, and who reads the rounded ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitesse.errors import ModelError
from vitesse.precision.bias import corrected_bias
from vitesse.precision.layers import WEIGHT_INPUT, Layer, node_names
from vitesse.precision.ranges import Ranges
from vitesse.precision.weights import activation_grid, restored, rounded_weight
from vitesse.scopes import inherited

_BIAS_INPUT = 2
# Runtimes add biases to 32-bit sums of products: bias / (activation scale · weight scale) must stay inside.
_LARGEST_BIAS = 2.0**30


@dataclass(frozen=True)
class _Bias:
    """Where a layer's bias is added: input `place` of `node`; `values` None where the node has none yet."""

    node: onnx.NodeProto
    place: int
    values: NDArray[np.float32] | None


class Insertion:
    """One graph being rewritten: every tensor and every weight is rounded once, whoever reads it.

    corrected: layers whose bias was corrected, after `run`; without_bias: those that have none to correct.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        chosen: Collection[Layer],
        ranges: Ranges,
        *,
        number: str,
        bits: int,
        correct: bool,
    ) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph, self.ranges = self.model.graph, ranges
        self.number, self.bits, self.correct = number, bits, correct
        self.corrected = self.without_bias = 0
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._taken = {name for node in self.graph.node for name in node.output} | set(self._constants)
        self._layers = {layer.name: layer for layer in chosen}
        self._results = self._conv_results() if number == "int8" and not ranges.symmetric else {}
        self._made: list[onnx.NodeProto] = []
        self._rounded: dict[str, str] = {}  # tensor → the one behind its Q/DQ
        self._weights: dict[tuple[str, int], tuple[str, NDArray[np.float32]]] = {}
        self._least = self._least_scales()

    def run(self) -> onnx.ModelProto:
        """Rewrite and return the graph."""
        for name, node in zip(node_names(self.graph), list(self.graph.node), strict=True):
            layer = self._layers.get(name)
            self._read_rounded_results(node)
            if layer is not None:
                self._lower(node, layer)
            self._made.append(node)
            for output in node.output:
                if output in self._results:
                    self._round(output, self._results[output], node)
        del self.graph.node[:]
        self.graph.node.extend(self._made)
        self._drop_unread_constants()
        return self.model

    def _lower(self, node: onnx.NodeProto, layer: Layer) -> None:
        for place, name in enumerate(node.input[:2]):
            if name in (layer.activation, layer.factor):
                node.input[place] = self._behind(name, node)
        if not layer.weight:
            return
        axis = _channel_axis(node)
        stands, values = self._rounded_weight(layer.weight, axis, node)
        node.input[WEIGHT_INPUT] = stands
        if self.correct:
            self._correct_bias(node, layer, values)

    def _read_rounded_results(self, node: onnx.NodeProto) -> None:
        """Let a node read what convolutions made behind its Q/DQ; a residual sum then reads both its sides so."""
        rounded = [name in self._results and name in self._rounded for name in node.input]
        sums = node.op_type == "Add" and any(rounded)
        for place, name in enumerate(node.input):
            if rounded[place] or (sums and name in self._rounded):
                node.input[place] = self._rounded[name]

    def _behind(self, name: str, node: onnx.NodeProto) -> str:
        """Return the tensor behind the Q/DQ of `name`, which is put before `node` where it is not there yet."""
        if name not in self._rounded:
            self._round(name, self._range(name), node)
        return self._rounded[name]

    def _round(self, name: str, reach: tuple[float, float], beside: onnx.NodeProto) -> None:
        grid = activation_grid(*reach, number=self.number, symmetric=self.ranges.symmetric)
        scale = self._constant(f"{name}_scale", grid.scale)
        zero = self._constant(f"{name}_zero_point", grid.zero_point)
        stored = self._node("QuantizeLinear", [name, scale, zero], f"{name}_quantized", beside)
        self._rounded[name] = self._node(
            "DequantizeLinear", [stored, scale, zero], f"{name}_dequantized", beside
        )

    def _rounded_weight(
        self, name: str, axis: int, beside: onnx.NodeProto
    ) -> tuple[str, NDArray[np.float32]]:
        """Return the tensor that stands for a weight and the values it has."""
        if (name, axis) not in self._weights:
            weight = numpy_helper.to_array(self._constants[name])
            stored, grid = rounded_weight(
                weight, axis, number=self.number, bits=self.bits, least=self._least.get((name, axis))
            )
            inputs = [
                self._constant(f"{name}_quantized", stored),
                self._constant(f"{name}_scale", grid.scale),
                self._constant(f"{name}_zero_point", grid.zero_point),
            ]
            made = self._node("DequantizeLinear", inputs, f"{name}_dequantized", beside, axis=axis)
            self._weights[name, axis] = made, restored(stored, grid, axis)
        return self._weights[name, axis]

    def _correct_bias(self, node: onnx.NodeProto, layer: Layer, rounded: NDArray[np.float32]) -> None:
        seen, bias = self.ranges.channels.get(layer.activation), self._bias(node, layer)
        if bias is None or seen is None:
            self.without_bias += 1
            return
        weight = numpy_helper.to_array(self._constants[layer.weight])
        shift = corrected_bias(
            weight,
            rounded,
            seen.mean,
            op_type=layer.op_type,
            group=int(_attribute(node, "group", 1)),
            trans_b=bool(_attribute(node, "transB", 0)),
        )
        # A Gemm computes alpha · product + beta · bias.
        shift = shift * _attribute(node, "alpha", 1) / _attribute(node, "beta", 1)
        values = np.zeros(shift.shape, np.float32) if bias.values is None else bias.values
        name = self._constant(f"{layer.name}_bias", (values + shift.reshape(values.shape)).astype(np.float32))
        if bias.place < len(bias.node.input):
            bias.node.input[bias.place] = name
        else:
            bias.node.input.append(name)
        self.corrected += 1

    def _bias(self, node: onnx.NodeProto, layer: Layer) -> _Bias | None:
        """Return the bias of a layer, of a MatMul that of the Add behind it; None where none can be had."""
        if node.op_type != "MatMul":
            if _attribute(node, "beta", 1) == 0:
                return None
            name = node.input[_BIAS_INPUT] if len(node.input) > _BIAS_INPUT else ""
            values = self._array(name)
            return _Bias(node, _BIAS_INPUT, values) if not name or values is not None else None
        readers = self._readers.get(node.output[0], [])
        if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in self._outputs():
            return None
        place = 1 if readers[0].input[0] == node.output[0] else 0
        values = self._array(readers[0].input[place])
        width = self._constants[layer.weight].dims[1]
        if values is None or values.shape[-1:] != (width,) or values.size != width:
            return None
        return _Bias(readers[0], place, values)

    def _least_scales(self) -> dict[tuple[str, int], NDArray[np.float32]]:
        """Return by weight and axis the scales that keep every reader's bias inside 32 bits."""
        least: dict[tuple[str, int], NDArray[np.float32]] = {}
        for name, node in zip(node_names(self.graph), self.graph.node, strict=True):
            layer = self._layers.get(name)
            bias = self._bias(node, layer) if layer is not None and layer.weight else None
            if layer is None or bias is None or bias.values is None:
                continue
            reach = self._range(layer.activation)
            step = activation_grid(*reach, number=self.number, symmetric=self.ranges.symmetric).scale
            key = layer.weight, _channel_axis(node)
            needed = np.abs(bias.values).reshape(-1) / (step * np.float32(_LARGEST_BIAS))
            least[key] = np.maximum(least.get(key, np.float32(0)), needed)
        return least

    def _conv_results(self) -> dict[str, tuple[float, float]]:
        """Return what lowered convolutions make, behind a ReLU that alone reads it, and its range.

        ONNX Runtime computes a convolution in integers only when its result is rounded, too; uint8 takes the ReLU in.
        """
        found: dict[str, tuple[float, float]] = {}
        for layer in self._layers.values():
            if layer.op_type != "Conv":
                continue
            result, (low, high) = layer.output, self._range(layer.output)
            readers = self._readers.get(result, [])
            if len(readers) == 1 and readers[0].op_type == "Relu" and result not in self._outputs():
                result = readers[0].output[0]
                low, high = self.ranges.by_tensor.get(result, (0.0, max(high, 0.0)))
            if result not in self._outputs():
                found[result] = (low, high)
        return found

    def _range(self, tensor: str) -> tuple[float, float]:
        if tensor not in self.ranges.by_tensor:
            raise ModelError(
                f"there is no range for the tensor `{tensor}`",
                expected="ranges calibrated on this very graph, for all layers to be lowered",
                cause="the ranges are those of another graph, or of fewer layers",
                fix="calibrate again: precision.calibration.calibrate(artifact, feeds, layers, options)",
            )
        return self.ranges.by_tensor[tensor]

    def _outputs(self) -> set[str]:
        return {value.name for value in self.graph.output}

    def _array(self, name: str) -> NDArray[np.float32] | None:
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor), np.float32)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        name = self._free(name)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _node(
        self, op_type: str, inputs: Iterable[str], output: str, beside: onnx.NodeProto, **attributes: int
    ) -> str:
        output = self._free(output)
        node = helper.make_node(op_type, list(inputs), [output], f"{op_type}_{output}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        notes = {entry.key: entry.value for entry in beside.metadata_props}
        for key, note in inherited(beside.name, notes).items():
            node.metadata_props.add(key=key, value=note)
        self._made.append(node)
        return output

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _drop_unread_constants(self) -> None:
        read = {name for node in self.graph.node for name in node.input} | self._outputs()
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a layer's weight along which its output channels lie."""
    return 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 1


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else float(helper.get_attribute_value(found))
