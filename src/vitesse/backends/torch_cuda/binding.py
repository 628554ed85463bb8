"""From the nodes of a static graph to bound calls: each step with the tactic that suits the tensors that come to it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import PLAIN, Kernels, Run
from vitesse.backends.torch_cuda.operators import operator_of
from vitesse.backends.torch_cuda.operators.operator import domain_of
from vitesse.backends.torch_cuda.problem import Problem
from vitesse.backends.torch_cuda.steps import DOMAIN, STEPS
from vitesse.backends.torch_cuda.tactics import MOST_TACTICS, Choice, TacticCache, choose
from vitesse.backends.torch_cuda.weights import Constants
from vitesse.scopes import path_of

Given = tuple[Tensor | None, ...]
# The steps of a plan with an input in 8 bits and those in 16, for what is said of a plan.
_PRODUCTS = ("Linear", "NormLinear", "Conv", "ConvPair", "ConvChain", "ConvPool", "Patches")


@dataclass(frozen=True)
class Row:
    """One node of a plan, for reports.

    Args:
        node: its name.
        scope: the module of the original network, such as "encoder.layers.0"; "" where nothing tells.
        step: "Linear", …, or the standard operator.
        tactic: in one line; "plain" for plain torch.
        microseconds: as measured at the build; None where it was not, and for plain torch.
        dtype: of what it multiplies: "float16", "float8_e4m3fn", …; "" for what is no product.
        guessed: its tactic was not measured at this size.
    """

    node: str
    scope: str
    step: str
    tactic: str
    microseconds: float | None = None
    dtype: str = ""
    guessed: bool = False


@dataclass(frozen=True)
class Call:
    """One bound node: `run` gets the values of `inputs` (None = not given) and makes those of `outputs`.

    `plain` computes the same in plain torch; `drops` are read for the last time, `host` are the
    positions of inputs that lie on the CPU.
    """

    run: Run
    plain: Run
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value | None, ...]
    drops: tuple[ir.Value, ...]
    host: frozenset[int]
    row: Row


@dataclass(frozen=True)
class Binder:
    """Binds the nodes of one graph.

    Args:
        measure: tactics that the cache lacks are measured; see `tactics.choose`.
        seconds: of measuring, for one signature; most: tactics of each kernel.
    """

    device: torch.device
    cache: TacticCache
    constants: Constants
    kernels: Kernels
    measure: bool = False
    seconds: float = 0.2
    most: int = MOST_TACTICS

    def bound(self, graph: ir.Graph, feeds: Mapping[str, Tensor]) -> Iterator[Call]:
        """Yield the calls of a graph in order, running each, so that the next is chosen for what really comes to it."""
        kept = {*graph.outputs, *graph.inputs}
        left = Counter(value for node in graph for value in set(node.inputs) if value is not None)
        values: dict[ir.Value, Tensor | None] = {value: feeds[str(value.name)] for value in fed(graph)}
        for node in graph:
            inputs = padded(node)
            given = tuple(self.given(node, number, values) for number in range(len(inputs)))
            run, plain, row = self._node(node, given, tuple(map(is_constant, inputs)))
            outputs = tuple(value if _is_read(value, kept) else None for value in node.outputs)
            for value, made in zip(outputs, run(*given), strict=False):
                if value is not None:
                    values[value] = made
            read = {value for value in node.inputs if value is not None}
            left.subtract(read)
            done = tuple(value for value in read if not left[value] and value not in kept)
            for value in done:
                values.pop(value, None)
            yield Call(run, plain, inputs, outputs, done, operator_of(node).host, row)

    def given(self, node: ir.Node, number: int, values: Mapping[ir.Value, Tensor | None]) -> Tensor | None:
        """Return the tensor of an input: a constant, on the host where the operator needs it there, or a value."""
        value = padded(node)[number]
        if value is None:
            return None
        if value.const_value is not None:
            return self.constants.tensor(value.const_value, host=number in operator_of(node).host)
        return values[value]

    def _node(self, node: ir.Node, given: Given, constant: tuple[bool, ...]) -> tuple[Run, Run, Row]:
        path = path_of(node.name or "", node.metadata_props)
        scope = ".".join(path or ())
        if domain_of(node) != DOMAIN and not self.kernels.of(node.op_type):
            run = _standard(node)
            return run, run, Row(node.name or "", scope, node.op_type, PLAIN.text())
        problem = problem_of(node, given, constant)
        choice, run = self.chosen(problem)
        return run, problem.plain, _row(node, scope, given, choice)

    def chosen(self, problem: Problem) -> tuple[Choice, Run]:
        """Return the choice for a step and the call that computes it, see `tactics.choose`."""
        return choose(
            problem,
            self.kernels,
            self.device,
            self.cache,
            measure=self.measure,
            seconds=self.seconds,
            most=self.most,
        )


def problem_of(node: ir.Node, given: Given, constant: tuple[bool, ...]) -> Problem:
    """Return a node as kernels see it: all keywords of its step, and all inputs in order."""
    attributes = {name: _plain_value(attribute.value) for name, attribute in node.attributes.items()}
    if domain_of(node) != DOMAIN:
        return Problem(node.op_type, attributes, given, constant, _standard(node))
    problem = Problem.of(node.op_type, attributes, given, constant)
    if node.op_type == "Norm":
        return replace(problem, attributes={**problem.attributes, "wanted": _wanted(node)})
    return problem


def padded(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Return a node's inputs, those of a step with None for the optional ones that were left out at the end."""
    inputs = tuple(value if value is not None and value.name else None for value in node.inputs)
    if domain_of(node) != DOMAIN:
        return inputs
    return inputs + (None,) * (_arity(node.op_type) - len(inputs))


def _standard(node: ir.Node) -> Run:
    """A standard operator in plain torch; its attributes are read here, not in every run of a plan."""
    compute = operator_of(node).bound(node)
    return lambda *tensors: compute(tensors)


def _row(node: ir.Node, scope: str, given: Given, choice: Choice) -> Row:
    first = next((tensor for tensor in given if tensor is not None), None)
    product = node.op_type in _PRODUCTS and first is not None
    return Row(
        node.name or "",
        scope,
        node.op_type,
        choice.tactic.text(),
        choice.microseconds,
        str(given[1].dtype).removeprefix("torch.") if product and given[1] is not None else "",
        guessed=choice.guessed,
    )


def _wanted(node: ir.Node) -> str:
    """Which of Norm's three outputs anybody reads: "101"."""
    kept = set() if node.graph is None else {*node.graph.outputs}
    read = [_is_read(value, kept) for value in node.outputs]
    return "".join(str(int(flag)) for flag in (*read, False, False)[:3])


def _is_read(value: ir.Value | None, kept: Sequence[ir.Value] | set[ir.Value]) -> bool:
    return value is not None and bool(value.name) and (bool(value.uses()) or value in kept)


def fed(graph: ir.Graph) -> tuple[ir.Value, ...]:
    """Return the inputs that a caller gives: those that are not also weights (IR version below 4)."""
    return tuple(value for value in graph.inputs if not is_constant(value))


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is the same for every image."""
    return value is not None and value.const_value is not None


def _plain_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _arity(step: str) -> int:
    parameters = inspect.signature(STEPS[step]).parameters.values()
    return sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters)
