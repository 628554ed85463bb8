"""Reading a static graph and putting fused steps into it: what all rewrites share.

Nothing of `vitesse.fusion` is used here: it needs onnxscript and ONNX Runtime, which this engine does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.torch_cuda.steps import DOMAIN
from vitesse.errors import ModelError
from vitesse.scopes import inherited

# The types that a step may have beside E4M3, and their names in its attribute `out_dtype`.
FLOATS: Mapping[ir.DataType | None, str] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}

AttributeValue = int | float | str | Sequence[int]


def is_op(node: ir.Node | None, *operators: str) -> bool:
    """Whether a node is one of these operators of the ONNX standard."""
    return node is not None and node.op_type in operators and node.domain in ("", "ai.onnx")


def is_step(node: ir.Node | None, *steps: str) -> bool:
    """Whether a node is one of these fused steps."""
    return node is not None and node.op_type in steps and node.domain == DOMAIN


def nodes_of(model: ir.Model, *operators: str) -> list[ir.Node]:
    """The standard operators of these kinds in the order of the graph, for a walk that changes the graph."""
    return [node for node in model.graph if is_op(node, *operators)]


def given(node: ir.Node, place: int) -> ir.Value | None:
    """An optional input; None where it is absent."""
    value = node.inputs[place] if place < len(node.inputs) else None
    return None if value is None or not value.name else value


def needed(node: ir.Node, place: int) -> ir.Value:
    """An input that the operator cannot do without; raises ModelError where it is absent."""
    value = given(node, place)
    if value is None:
        raise ModelError(
            f"{node.op_type} {node.name!r} lacks its input {place}",
            expected="a graph that onnx.checker accepts",
        )
    return value


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array that a value always has, or None. An initialiser that is a graph input, too, is a default only."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def lengths(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape of a value, or None where it is not known to the last dimension."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(length) for length in value.shape.numpy())


def sole_reader(value: ir.Value | None) -> ir.Node | None:
    """The only node that reads a value, and only once; None also where the caller of the graph reads it."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return next(iter(value.uses())).node


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Of a node with two inputs the one that is not `value`; None where both are."""
    others = [given for given in node.inputs if given is not value]
    return others[0] if len(others) == 1 and len(node.inputs) == 2 else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute as Python has it, lists as tuples, or `default` where the node has none."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return tuple(found.value) if isinstance(found.value, list | tuple) else found.value


def initializer(
    model: ir.Model, name: str, array: NDArray[Any], dtype: ir.DataType | None = None
) -> ir.Value:
    """Add a constant under `name`, or a name made from it where that one is taken.

    Args:
        dtype: what the numbers are, where numpy's type does not tell.
    """
    taken = model.graph.initializers
    while name in taken:
        name += "_"
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype, name=name)
    made = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(made)
    return made


def put_step(
    model: ir.Model,
    step: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, AttributeValue],
    replaced: Sequence[ir.Node],
    *,
    named: ir.Node | None = None,
) -> ir.Node:
    """Put one step in the place of a chain of nodes, whose last one's first output it makes.

    It stands where the last one stood, so that everything that any of them read is there by then.

    Args:
        inputs: as the step's function takes them; trailing None are left out.
        attributes: by the keywords of the step's function.
        replaced: the nodes, first to last; nothing but them reads what the others make.
        named: the node whose name and module the step takes over; the first of `replaced` where it is not given.
    """
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    of, last = named or replaced[0], replaced[-1]
    made = ir.node(
        step,
        given,
        dict(attributes),
        domain=DOMAIN,
        num_outputs=1,
        name=of.name,
        metadata_props=inherited(of.name or "", of.metadata_props),
    )
    model.graph.insert_before(last, made)
    take_over(last.outputs[0], made.outputs[0])
    model.graph.remove([*reversed(replaced)], safe=True)
    model.graph.opset_imports.setdefault(DOMAIN, 1)
    return made


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Put a value in the place of another of the same numbers, with its name, for all readers and the caller."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def bypass(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """Remove a node whose first output equals `value` and is no output of the graph."""
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    model.graph.remove(node, safe=True)
