"""A graph node by node in plain torch: the reference of a plan, the baseline of its gain, and what always runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.operators import operator_of
from vitesse.backends.torch_cuda.operators.constants import to_torch, torch_dtype
from vitesse.backends.torch_cuda.operators.operator import Bound
from vitesse.errors import DataError

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class _Call:
    """One node: what computes it, where each input must lie, and what nobody reads behind it."""

    compute: Bound
    node: ir.Node
    devices: tuple[torch.device, ...]
    dropped: tuple[ir.Value, ...]


class Plain:
    """Runs a graph, specialised or not, in the types that it has; thread-safe, for a run keeps its own tensors.

    What the numbers of a graph's shapes are computed from (Shape and what follows from it and constants) stays on the
    CPU; everything that meets an input lies on the device.

    Args:
        graph: operators of the table `OPERATORS`.
        device: where it runs.

    Raises:
        ModelError: an operator or a type that is not supported; names the node.
    """

    def __init__(self, graph: ir.Model, device: torch.device) -> None:
        self.device = device
        initializers = graph.graph.initializers
        self._inputs = tuple(value for value in graph.graph.inputs if value.name not in initializers)
        self._outputs = tuple(graph.graph.outputs)
        self._calls = _calls(graph, self._inputs, device)
        self._constants = self._placed(initializers.values())

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs, on the device.

        Args:
            feeds: every input by name; copied to the device where they lie elsewhere.

        Raises:
            DataError: an input is missing, unknown, or has another type or rank than the graph's.
            ModelError: a node cannot compute what it is given; names it.
        """
        self._check(feeds)
        held = {value: feeds[value.name or ""].to(self.device) for value in self._inputs}
        with torch.no_grad():
            for call in self._calls:
                found = zip(call.node.inputs, call.devices, strict=True)
                made = call.compute([self._read(held, value, where) for value, where in found])
                for value, tensor in zip(call.node.outputs, made, strict=False):
                    if value.name and tensor is not None:
                        held[value] = tensor
                for value in call.dropped:
                    held.pop(value, None)
        return {value.name or "": self._given(held, value) for value in self._outputs}

    def _read(
        self, held: Mapping[ir.Value, Tensor], value: ir.Value | None, where: torch.device
    ) -> Tensor | None:
        if value is None or value.name == "":
            return None
        placed = self._constants.get((value, where))
        return held[value].to(where) if placed is None else placed

    def _given(self, held: Mapping[ir.Value, Tensor], value: ir.Value) -> Tensor:
        if value in held:
            return held[value].to(self.device)
        return self._constants[value, self.device].clone()  # the caller may write into what is his

    def _placed(self, constants: Iterable[ir.Value]) -> dict[tuple[ir.Value, torch.device], Tensor]:
        """Every constant on each device where a node or the caller reads it."""
        wanted = {
            (value, where)
            for call in self._calls
            for value, where in zip(call.node.inputs, call.devices, strict=True)
        }
        wanted |= {(value, self.device) for value in self._outputs}
        placed: dict[tuple[ir.Value, torch.device], Tensor] = {}
        for value in constants:
            places = [where for where in {_HOST, self.device} if (value, where) in wanted]
            if places and value.const_value is not None:
                tensor = to_torch(value.const_value)
                placed.update({(value, where): tensor.to(where) for where in places})
        return placed

    def _check(self, feeds: Mapping[str, Tensor]) -> None:
        expected = {value.name or "": value for value in self._inputs}
        if feeds.keys() != expected.keys():
            raise DataError(
                f"inputs {sorted(feeds)}", expected=f"inputs {sorted(expected)}", fix="give each by its name"
            )
        for name, value in expected.items():
            given, dtype = feeds[name], torch_dtype(value.dtype, name)
            rank = given.ndim if value.shape is None else len(value.shape)
            if given.dtype != dtype or given.ndim != rank:
                raise DataError(
                    f"input {name!r} is {tuple(given.shape)} {given.dtype}",
                    expected=f"{dtype} of shape {'any' if value.shape is None else value.shape}",
                )


def _calls(graph: ir.Model, inputs: Sequence[ir.Value], device: torch.device) -> tuple[_Call, ...]:
    nodes = list(graph.graph)
    last = {value: at for at, node in enumerate(nodes) for value in node.inputs if value is not None}
    last |= dict.fromkeys(graph.graph.outputs, len(nodes))
    on_device = set(inputs)
    calls = []
    for at, node in enumerate(nodes):
        operator = operator_of(node)
        computed_from = [value for at, value in enumerate(node.inputs) if at not in operator.host]
        placed = device if on_device.intersection(computed_from) else _HOST
        if placed == device and not operator.by_shape:
            on_device.update(node.outputs)
        devices = tuple(_HOST if at in operator.host else placed for at in range(len(node.inputs)))
        read = dict.fromkeys((*node.inputs, *node.outputs))
        dropped = tuple(value for value in read if value is not None and last.get(value, -1) <= at)
        calls.append(_Call(operator.bound(node), node, devices, dropped))
    return tuple(calls)
