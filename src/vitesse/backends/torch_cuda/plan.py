"""A graph for one set of input shapes as a list of bound calls over a table of slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.ahead import compile_ahead
from vitesse.backends.torch_cuda.binding import Binder, Call, Row, fed, is_constant
from vitesse.backends.torch_cuda.candidates import Kernels, Run, kernels
from vitesse.backends.torch_cuda.checking import check_plan, example_feeds
from vitesse.backends.torch_cuda.device import products
from vitesse.backends.torch_cuda.rewrite import rewrite
from vitesse.backends.torch_cuda.specialise import specialise
from vitesse.backends.torch_cuda.tactics import MOST_TACTICS, TacticCache
from vitesse.backends.torch_cuda.weights import Constants

Shapes = Mapping[str, tuple[int, ...]]
_NONE = -1


@dataclass(frozen=True)
class Making:
    """How a plan is made.

    Args:
        measure: tactics that the cache lacks are found by measuring; otherwise its nearest entry or the first guess.
        check: hold the outputs against plain torch on the same graph.
        seconds: of measuring, for one signature; most: tactics of each kernel that are tried.
        kernels: to choose from; None = all that load here.
    """

    measure: bool = False
    check: bool = False
    seconds: float = 0.2
    most: int = MOST_TACTICS
    kernels: Kernels | None = None


@dataclass(frozen=True)
class _Bound:
    run: Run
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    drops: tuple[int, ...]


class Plan:
    """Bound calls. It holds no state of a run, so that the sessions of an engine share it.

    Attributes:
        shapes: of the inputs, by name.
        changes: how often each rewrite was done, also 0.
        notes: why rewrites were not done, and which kernels do not load here.
    """

    def __init__(
        self,
        model: onnx.ModelProto | ir.Model,
        shapes: Shapes,
        device: torch.device,
        cache: TacticCache,
        constants: Constants,
        making: Making | None = None,
    ) -> None:
        """Specialise, rewrite and bind; runs every step once.

        Args:
            cache: of tactics; what is measured is added.
            constants: on the device, shared by the plans of an engine.

        Raises:
            ModelError: an operator is not supported, or a shape depends on values.
            DataError: the shapes do not fit the graph.
            BackendError: the plan does not compute what the graph says; names the first wrong node.
        """
        making = making or Making()
        found = making.kernels or kernels()
        self.shapes = dict(shapes)
        static = specialise(model, shapes)
        fused, self.changes, said = rewrite(static)
        missing = (f"{name}: {reason}" for name, reason in found.missing.items())
        self.notes: tuple[str, ...] = (*said, *missing)
        binder = Binder(device, cache, constants, found, making.measure, making.seconds, making.most)
        with torch.no_grad(), products(tf32=False):
            feeds = example_feeds(static, device)
            if making.measure and device.type == "cuda":
                compile_ahead(binder, fused.graph, feeds)
            calls = tuple(binder.bound(fused.graph, feeds))
            self._table(fused.graph, calls, constants)
            self._rows = tuple(call.row for call in calls)
            if making.check:
                check_plan(static, calls, fused.graph, binder, feeds, self.run(feeds))

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once on the current stream; the feeds have the plan's shapes and the graph's dtypes, on its device."""
        slots = list(self._fixed)
        for name, slot in self._inputs.items():
            slots[slot] = feeds[name]
        for call in self._calls:
            given = [None if slot == _NONE else slots[slot] for slot in call.inputs]
            for slot, made in zip(call.outputs, call.run(*given), strict=False):
                if slot != _NONE:
                    slots[slot] = made
            for slot in call.drops:
                slots[slot] = None
        outputs = {name: slots[slot] for name, slot in self._outputs.items()}
        return {name: tensor for name, tensor in outputs.items() if tensor is not None}

    def describe(self) -> tuple[Row, ...]:
        """Return one row a node, in the order of running."""
        return self._rows

    @property
    def guessed(self) -> tuple[str, ...]:
        """Names of the steps whose tactic was not measured at this size."""
        return tuple(row.node for row in self._rows if row.guessed)

    def _table(self, graph: ir.Graph, calls: tuple[Call, ...], constants: Constants) -> None:
        """Give every value a slot; constants are in theirs from the start, one for the host and one for the device."""
        self._fixed: list[Tensor | None] = []
        places: dict[object, int] = {}

        def slot(key: object, tensor: Tensor | None = None) -> int:
            if key not in places:
                places[key] = len(self._fixed)
                self._fixed.append(tensor)
            return places[key]

        def fixed(value: ir.Value, host: bool) -> int:
            assert value.const_value is not None
            return slot((value, host), constants.tensor(value.const_value, host=host))

        def place(value: ir.Value | None, host: bool = False) -> int:
            if value is None:
                return _NONE
            return fixed(value, host) if is_constant(value) else slot(value)

        self._inputs = {str(value.name): slot(value) for value in fed(graph)}
        self._calls = tuple(
            _Bound(
                call.run,
                tuple(place(value, number in call.host) for number, value in enumerate(call.inputs)),
                tuple(place(value) for value in call.outputs),
                tuple(place(value) for value in call.drops if not is_constant(value)),
            )
            for call in calls
        )
        self._outputs = {str(value.name): place(value) for value in graph.outputs}
