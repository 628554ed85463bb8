"""A graph for one set of input shapes: every shape known, everything computed that does not depend on the input.

Shapes come from running the plain operators on meta tensors, so that there is no second set of shape rules. Constants
are computed by the same operators on the CPU, in the graph's own types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from vitesse.backends.torch_cuda.operators import Operator, described, operator_of
from vitesse.backends.torch_cuda.operators.constants import onnx_dtype, to_ir, to_torch, torch_dtype
from vitesse.backends.torch_cuda.steps import E4M3
from vitesse.errors import DataError, ModelError

# A weight in these types stays in them, with its DequantizeLinear: what reads it may multiply in them.
_WEIGHT_TYPES = (E4M3, torch.int8, torch.uint8)
# With a result of the shape of input 0 they change nothing.
_RESHAPING = frozenset({"Reshape", "Expand", "Flatten", "Squeeze", "Unsqueeze", "Tile"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Pow"})


def specialise(model: onnx.ModelProto | ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """Return a new graph for these shapes; `model` stays as it is.

    Every value has a static shape and a type. What depends on constants and shapes alone is an initialiser; so is a
    weight of eight bits, whose DequantizeLinear stays. Operators that change nothing are gone, as are nodes and
    initialisers that nobody reads. A constant that an element-wise operator adds to a batch, the same for every image,
    has 1 in place of the batch. Names, metadata and the signature stay.

    Args:
        shapes: the shape of every input.

    Raises:
        DataError: an input is missing or unknown, or a shape contradicts the graph's.
        ModelError: an operator that is not supported, or a shape that depends on the values of an input.
    """
    made = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model.clone()
    state = _Values(_inputs(made, shapes))
    for node in made.graph:
        state.compute(node)
    _declare_shapes(made, state)
    _Emission(made, state).run()
    RemoveUnusedNodesPass()(made)
    return made


@dataclass
class _Values:
    """What is known of each value: its numbers, or its shape and type (a meta tensor)."""

    shaped: dict[ir.Value, Tensor]
    known: dict[ir.Value, Tensor] = field(default_factory=dict)

    def compute(self, node: ir.Node) -> None:
        """Find out what the node puts out."""
        operator = operator_of(node)
        values = [None if value is None or value.name == "" else value for value in node.inputs]
        unknown = {at for at, value in enumerate(values) if value is not None and self.numbers(value) is None}
        given = [None if value is None else self.of(value) for value in values]
        constant = operator.by_shape or not unknown
        if not constant:
            self._refuse_unknown_sizes(node, operator, unknown)
            given = [
                one if one is None or at in operator.host else one.to("meta") for at, one in enumerate(given)
            ]
        where = self.known if constant else self.shaped
        for value, tensor in zip(node.outputs, operator(node, given), strict=False):
            if tensor is not None:
                where[value] = tensor

    def numbers(self, value: ir.Value) -> Tensor | None:
        """Return the numbers of a constant or of what was computed; None for what depends on an input."""
        if value not in self.known and value.const_value is not None and value.is_initializer():
            self.known[value] = to_torch(value.const_value)
        return self.known.get(value)

    def of(self, value: ir.Value) -> Tensor:
        """Return a tensor of the value's shape and type."""
        return self.known[value] if value in self.known else self.shaped[value]

    def _refuse_unknown_sizes(self, node: ir.Node, operator: Operator, unknown: set[int]) -> None:
        deciding = sorted(unknown & (operator.host | ({0} if operator.by_value else set())))
        if deciding:
            value = node.inputs[deciding[0]]
            raise ModelError(
                f"{described(node)}: its result depends in shape on the values of {value and value.name!r}",
                expected="shapes that follow from the shapes of the inputs",
                cause="an operator such as NonZero, or a size that the network computes from the image",
                fix="export the model without it, or build for another target, such as cuda",
            )


class _Emission:
    """Puts into the graph what was computed, and takes out what does nothing."""

    def __init__(self, model: ir.Model, state: _Values) -> None:
        self._graph, self._state = model.graph, state
        self._constants: dict[ir.Value, ir.Value] = {}
        self._per_image: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for node in list(self._graph):
            if any(value in self._state.shaped for value in node.outputs):
                self._bypass(node)
        for node in list(self._graph):
            if any(value in self._state.shaped for value in node.outputs):
                self._feed(node)
        for at, value in enumerate(self._graph.outputs):
            if value in self._state.known:
                self._graph.outputs[at] = self._constant(value)

    def _feed(self, node: ir.Node) -> None:
        """Have a node that stays read initialisers instead of the nodes that computed them."""
        for at, value in enumerate(node.inputs):
            if value is None or value not in self._state.known:
                continue
            maker = value.producer()
            if maker is not None and self._is_weight(maker):
                self._feed(maker)
            elif self._is_the_same_for_every_image(node, value):
                node.replace_input_with(at, self._without_batch(value))
            else:
                node.replace_input_with(at, self._constant(value))

    def _is_weight(self, node: ir.Node) -> bool:
        """Whether a node dequantises a weight, or converts or turns one that was dequantised."""
        source = node.inputs[0] if node.op_type in ("Cast", "Transpose") else None
        if source is not None and (maker := source.producer()) is not None:
            return self._is_weight(maker)
        quantised = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        return quantised is not None and self._state.known[quantised].dtype in _WEIGHT_TYPES

    def _is_the_same_for_every_image(self, node: ir.Node, value: ir.Value) -> bool:
        if node.op_type not in _ELEMENTWISE or node.domain != "":
            return False
        tensor, result = self._state.known[value], self._state.of(node.outputs[0])
        if tensor.ndim < 3 or tensor.ndim != result.ndim or tensor.shape[0] == 1:
            return False
        others = (self._state.of(one) for one in node.inputs if one is not None and one is not value)
        if not any(one.ndim == tensor.ndim and one.shape[0] == tensor.shape[0] for one in others):
            return False
        return bool(torch.equal(tensor, tensor[:1].expand_as(tensor)))

    def _constant(self, value: ir.Value) -> ir.Value:
        """The initialiser that holds what a node computed, under the same name."""
        if value.is_initializer():
            return value
        if value not in self._constants:
            name, value.name = value.name or "constant", None
            self._constants[value] = self._stored(self._state.known[value], name)
        return self._constants[value]

    def _without_batch(self, value: ir.Value) -> ir.Value:
        if value not in self._per_image:
            whole = self._constants.get(value, value)
            self._per_image[value] = self._stored(self._state.known[value][:1], f"{whole.name}/per_image")
        return self._per_image[value]

    def _stored(self, tensor: Tensor, name: str) -> ir.Value:
        stored = ir.Value(name=name, const_value=to_ir(tensor, name))
        _declare(stored, tensor)
        self._graph.register_initializer(stored)
        self._state.known[stored] = tensor
        return stored

    def _bypass(self, node: ir.Node) -> None:
        """Have the readers of a node that changes nothing read what it reads."""
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or not self._changes_nothing(node, source, result):
            return
        if result.is_graph_output():
            if source.is_graph_output() or source.producer() is None or source in self._state.known:
                return
            at = list(self._graph.outputs).index(result)
            name, result.name = result.name, None
            self._graph.outputs[at], source.name = source, name
        result.replace_all_uses_with(source)

    def _changes_nothing(self, node: ir.Node, source: ir.Value, result: ir.Value) -> bool:
        if node.domain not in ("", "ai.onnx") or any(value.uses() for value in node.outputs[1:]):
            return False
        before, after = self._state.of(source), self._state.of(result)
        if before.shape != after.shape or before.dtype != after.dtype:
            return False
        if node.op_type == "Transpose":
            perm = (
                node.attributes["perm"].as_ints() if "perm" in node.attributes else range(before.ndim)[::-1]
            )
            moved = [axis for axis in perm if before.shape[axis] != 1]
            return moved == sorted(moved)
        if node.op_type == "Concat":
            return len(node.inputs) == 1
        return node.op_type in {"Identity", "Dropout", "Cast", "CastLike"} | _RESHAPING


def _inputs(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[ir.Value, Tensor]:
    """Meta tensors of the inputs; an initialiser that is listed as an input is a constant."""
    inputs = {
        value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers
    }
    if inputs.keys() != shapes.keys():
        raise DataError(
            f"shapes for the inputs {sorted(shapes)}",
            expected=f"a shape for each of {sorted(inputs)}",
            fix="name each input of the graph once",
        )
    for name, value in inputs.items():
        declared, given = value.shape, tuple(shapes[name])
        fits = declared is None or (
            len(declared) == len(given)
            and all(
                not isinstance(one, int) or one == size for one, size in zip(declared, given, strict=True)
            )
        )
        if not fits or any(size < 1 for size in given):
            raise DataError(
                f"shape {list(given)} for input {name!r}",
                expected=f"{declared} with a positive number for each free dimension",
                cause="" if fits else "the graph was exported for another size",
                fix="give a shape that the graph takes, or export it with that dimension free",
            )
    return {
        value: torch.empty(tuple(shapes[name]), dtype=torch_dtype(value.dtype, name), device="meta")
        for name, value in inputs.items()
    }


def _declare_shapes(model: ir.Model, state: _Values) -> None:
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value in state.shaped or value in state.known:
            _declare(value, state.of(value))


def _declare(value: ir.Value, tensor: Tensor) -> None:
    value.shape, value.dtype = ir.Shape(tuple(tensor.shape)), onnx_dtype(tensor.dtype)
