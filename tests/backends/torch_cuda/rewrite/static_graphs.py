"""Graphs made static, rewritten, and held against ONNX Runtime, which runs them as they were written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fusing import Arrays, run
from vitesse.backends.torch_cuda.execute import Plain
from vitesse.backends.torch_cuda.specialise import specialise
from vitesse.backends.torch_cuda.steps import DOMAIN

Rule = Callable[[ir.Model], int]


def static(model: onnx.ModelProto, feeds: Arrays) -> ir.Model:
    """The graph for the shapes of these inputs."""
    return specialise(model, {name: array.shape for name, array in feeds.items()})


def plain(graph: ir.Model, feeds: Arrays) -> list[NDArray[Any]]:
    """All outputs, in plain torch on the CPU."""
    made = Plain(graph, torch.device("cpu")).run(
        {name: torch.from_numpy(array) for name, array in feeds.items()}
    )
    return [tensor.numpy() for tensor in made.values()]


def apply(graph: ir.Model, *rules: Rule) -> None:
    """One rule after the other, with what nobody reads any more taken away in between."""
    for rule in rules:
        rule(graph)
        RemoveUnusedNodesPass()(graph)


def rewritten(model: onnx.ModelProto, feeds: Arrays, *rules: Rule, atol: float = 2e-6) -> ir.Model:
    """Apply rules, and assert that the outputs are those of the graph as it was written."""
    graph = static(model, feeds)
    apply(graph, *rules)
    for expected, found in zip(run(model, feeds), plain(graph, feeds), strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        wide = expected.astype(np.float64)
        np.testing.assert_allclose(found.astype(np.float64), wide, rtol=0, atol=atol * np.abs(wide).max())
    return graph


def kinds(graph: ir.Model) -> Counter[str]:
    """How often each operator occurs; a step is preceded by a colon."""
    return Counter((":" if node.domain == DOMAIN else "") + node.op_type for node in graph.graph)


def only(graph: ir.Model, step: str) -> ir.Node:
    """The only step of this kind."""
    (found,) = (node for node in graph.graph if node.domain == DOMAIN and node.op_type == step)
    return found


def keywords(step: ir.Node) -> dict[str, Any]:
    """Its attributes."""
    return {
        name: tuple(one.value) if isinstance(one.value, list | tuple) else one.value
        for name, one in step.attributes.items()
    }


def given(step: ir.Node) -> list[str | None]:
    """Names of its inputs."""
    return [None if value is None else value.name for value in step.inputs]
