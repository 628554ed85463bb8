"""A graph with two blocks of a ViT → the same graph with any number of them.

The first block is copied; each copy reads what the one before it makes, and has matrices of its own: those of the first
block with their input channels rotated. The last block stays the last.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

NORM = "LayerNormalization"
NORMS_IN_A_BLOCK = 2
# Operators through which a stored matrix reaches the product that reads it.
_UNPACKING = ("DequantizeLinear", "Cast")


def repeated(model: onnx.ModelProto, blocks: int) -> onnx.ModelProto:
    """Return a model of `blocks` blocks; `model` has two, each beginning with a LayerNormalization and holding two.

    Raises:
        ValueError: the graph is not of that form.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    enters = [node.input[0] for node in graph.node if node.op_type == NORM]
    if len(enters) != 2 * NORMS_IN_A_BLOCK + 1:
        raise ValueError(
            f"{len(enters)} LayerNormalization: two blocks with two each and one behind them were expected"
        )
    begin, end = enters[0], enters[NORMS_IN_A_BLOCK]
    block = _between(graph, begin, end)
    inside = {name for node in block for name in node.output}
    own = _matrices(graph, block)
    copies: list[onnx.NodeProto] = []
    before = end
    for at in range(1, blocks - 1):
        names = {name: f"{name}/{at}" for name in inside | set(own)} | {begin: before}
        for name, axis in own.items():
            graph.initializer.append(_rotated(own_tensor(graph, name), axis, at, names[name]))
        copies += [_renamed(node, names, at) for node in block]
        before = names[end]
    last = [node for node in graph.node if end in node.input]
    for node in last:
        node.input[:] = [before if name == end else name for name in node.input]
    place = max(at for at, node in enumerate(graph.node) if node in block) + 1
    nodes = [*graph.node[:place], *copies, *graph.node[place:]]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return made


def own_tensor(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def _between(graph: onnx.GraphProto, begin: str, end: str) -> list[onnx.NodeProto]:
    """The nodes that make `end` from `begin`, in the graph's order."""
    makers = {name: node for node in graph.node for name in node.output}
    wanted, open_names = set(), [end]
    while open_names:
        name = open_names.pop()
        if name == begin or name in wanted or name not in makers:
            continue
        wanted.add(name)
        open_names += makers[name].input
    return [node for node in graph.node if wanted.intersection(node.output)]


def _matrices(graph: onnx.GraphProto, block: list[onnx.NodeProto]) -> dict[str, int]:
    """Stored matrix → its axis of input channels, for all that only products of this block read."""
    stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    found = {}
    for node in block:
        for name in node.input:
            if name in stored:
                axes = set(_axes(block, name))
                if len(axes) != 1:
                    raise ValueError(
                        f"the matrix {name} of {node.op_type} is no weight of one MatMul or Gemm"
                    )
                found[name] = axes.pop()
    return found


def _axes(block: list[onnx.NodeProto], name: str) -> Iterator[int]:
    for node in block:
        if name not in node.input:
            continue
        if node.op_type in _UNPACKING:
            yield from _axes(block, node.output[0])
        elif node.op_type in ("MatMul", "Gemm") and node.input[1] == name:
            turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
            yield int(turned)
        else:
            yield -1


def _rotated(tensor: onnx.TensorProto, axis: int, by: int, name: str) -> onnx.TensorProto:
    if axis < 0:
        raise ValueError(f"the matrix {tensor.name} is no weight of a MatMul or Gemm")
    array = numpy_helper.to_array(tensor)
    copy = onnx.TensorProto()
    copy.name, copy.data_type = name, tensor.data_type
    copy.dims.extend(tensor.dims)
    copy.raw_data = np.ascontiguousarray(np.roll(array, by, axis)).tobytes()
    return copy


def _renamed(node: onnx.NodeProto, names: dict[str, str], at: int) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.name}/{at}"
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names[name] for name in node.output]
    for entry in copy.metadata_props:
        entry.value = entry.value.replace("blocks.0", f"blocks.{at}")
    return copy
