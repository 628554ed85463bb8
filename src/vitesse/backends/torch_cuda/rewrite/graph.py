"""What all rules share: reading constants and shapes, and a step in the place of the nodes whose work it does.

Nothing of `vitesse.fusion` is used here: it needs ONNX Runtime, which this engine does without.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.torch_cuda.steps import DOMAIN
from vitesse.errors import ModelError
from vitesse.scopes import MODULE_SCOPES, common_path, path_of, scopes_note

Array = NDArray[Any]
# Names of the types as torch has them, which is what the attribute `out_dtype` holds.
FLOATS: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT: "float32",
}


class LeftAlone(Exception):
    """Why nodes that look like a pattern are not rewritten; the text reaches the report."""


class Notes(Counter[str]):
    """Reasons why something was left alone, each with how often."""

    def lines(self) -> tuple[str, ...]:
        """One line a reason, in the order in which they came up."""
        return tuple(text if times == 1 else f"{text} ({times} times)" for text, times in self.items())


def is_op(node: ir.Node | None, *operators: str) -> bool:
    """Whether a node is one of these standard operators."""
    return node is not None and node.op_type in operators and node.domain in ("", "ai.onnx")


def is_step(node: ir.Node | None, *steps: str) -> bool:
    """Whether a node is one of these fused steps."""
    return node is not None and node.op_type in steps and node.domain == DOMAIN


def nodes_of(model: ir.Model, *operators: str) -> list[ir.Node]:
    """The standard operators of these kinds in the order of the graph, for a walk that changes the graph."""
    return [node for node in model.graph if is_op(node, *operators)]


def steps_of(model: ir.Model, *steps: str) -> list[ir.Node]:
    """The fused steps of these kinds in the order of the graph, for a walk that changes the graph."""
    return [node for node in model.graph if is_step(node, *steps)]


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An optional input; None where it is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.name == "" else value


def needed(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator cannot do without; raises ModelError where it is absent."""
    value = given(node, index)
    if value is None:
        raise ModelError(
            f"input {index} of {node.op_type} {node.name!r} is missing", expected="a graph that onnx.checker accepts"
        )
    return value


def array_of(value: ir.Value | None) -> Array | None:
    """The array of a constant, or None. An initialiser that is also a graph input is a default, not a constant."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def number_of(value: ir.Value | None) -> float | None:
    """The number of a constant with a single element, or None."""
    array = array_of(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """A static shape; raises ModelError where it is not, for the rules stand behind `specialise`."""
    if value.shape is None or not value.shape.is_static():
        raise ModelError(
            f"the shape of {value.name!r} is {value.shape}",
            expected="static shapes",
            cause="the graph was not specialised to one set of input shapes",
        )
    return tuple(int(length) for length in value.shape.numpy())


def float_of(value: ir.Value) -> str:
    """torch's name of the type of a floating-point tensor of 16 or 32 bits; raises LeftAlone for others."""
    if value.dtype is None or value.dtype not in FLOATS:
        raise LeftAlone(f"a tensor is {value.dtype}, not floating point of 16 or 32 bits")
    return FLOATS[value.dtype]


def dtype_named(name: str) -> np.dtype[Any]:
    """numpy's type of a name in `out_dtype`."""
    return next(dtype.numpy() for dtype, known in FLOATS.items() if known == name)


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, and once; None where there are more, none, or the caller reads it."""
    uses = value.uses()
    return None if value.is_graph_output() or len(uses) != 1 else next(iter(uses)).node


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Of a node with two inputs the one that is not `value`; None where both are."""
    others = [one for one in node.inputs if one is not value]
    return others[0] if len(others) == 1 and len(node.inputs) == 2 else None


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    return tuple(int(one) for one in (node.attributes[name].as_ints() if name in node.attributes else default))


def number(node: ir.Node, name: str, default: float) -> float:
    """A float attribute."""
    return float(node.attributes[name].as_float()) if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    """A string attribute."""
    return str(node.attributes[name].as_string()) if name in node.attributes else default


def without_batch(array: Array) -> Array:
    """Drop leading axes of length 1, and those along which nothing changes: what an Expand over the batch left."""
    while array.ndim > 1 and array.shape[0] > 0 and (array.shape[0] == 1 or bool((array == array[:1]).all())):
        array = array[0]
    return array


def wide(array: Array) -> NDArray[np.float64]:
    """The same numbers in float64, also those of E4M3 and bfloat16."""
    return array.astype(np.float32).astype(np.float64)


def add_constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Register an initialiser; a name that is taken gets a number."""
    taken, wanted, count = model.graph.initializers, name, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value


def attributes(values: Mapping[str, int | float | str | Sequence[int]]) -> list[ir.Attr]:
    """The attributes of a step from the keywords of its function in `steps`."""
    return [_attribute(name, value) for name, value in values.items()]


def put_step(
    model: ir.Model,
    step: str,
    inputs: Sequence[ir.Value | None],
    keywords: Mapping[str, int | float | str | Sequence[int]],
    outputs: Sequence[ir.Value | None],
    *,
    replaces: Sequence[ir.Node],
    at: ir.Node | None = None,
) -> ir.Node:
    """Write one step in place of the nodes whose work it does; they go.

    Args:
        inputs: in the order of the step's function, None for one that is absent; those at the end are not written.
        outputs: values of the graph that the step computes now, with their names, shapes and types; None for an output
            that nobody reads.
        replaces: nodes of which nothing is read but `outputs`, in the order of the graph.
        at: the node in whose place the step stands, one of `replaces`; the last one where not given. What the step
            reads has to be computed before it.
    """
    at = replaces[-1] if at is None else at
    made = ir.Node(
        DOMAIN,
        step,
        trimmed(inputs),
        attributes(keywords),
        num_outputs=len(outputs),
        name=replaces[-1].name,
        metadata_props=scope_of(replaces),
    )
    model.graph.insert_before(at, made)
    for old, new in zip(outputs, made.outputs, strict=True):
        if old is None:
            new.name = ""
        else:
            take_over(old, new)
    model.graph.remove(replaces, safe=True)
    model.graph.opset_imports[DOMAIN] = 1
    return made


def trimmed(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Inputs of a step without absent ones at the end."""
    kept = list(inputs)
    while kept and kept[-1] is None:
        kept.pop()
    return kept


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, which gets its name, shape and type."""
    new.shape, new.type, new.name = old.shape, old.type, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def replaced(
    model: ir.Model, node: ir.Node, operator: str, inputs: Sequence[ir.Value], keywords: Sequence[ir.Attr] = ()
) -> ir.Node:
    """Write another standard operator with one output in place of a node with one output."""
    made = ir.Node("", operator, inputs, keywords, num_outputs=1, name=node.name, metadata_props=scope_of([node]))
    model.graph.insert_before(node, made)
    take_over(node.outputs[0], made.outputs[0])
    model.graph.remove(node, safe=True)
    return made


def bypassed(model: ir.Model, node: ir.Node, value: ir.Value) -> bool:
    """Remove a node with one output that equals `value`; False where that output has to keep its name."""
    output = node.outputs[0]
    if output.is_graph_output():
        return False
    ir.convenience.replace_all_uses_with(output, value)
    model.graph.remove(node, safe=True)
    return True


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    return math.prod(shape)


def ancestors(value: ir.Value, *operators: str) -> Iterator[ir.Node]:
    """The chain of these standard operators, by their first inputs, that ends in a value; the last one first."""
    node = value.producer()
    while node is not None and is_op(node, *operators):
        yield node
        node = needed(node, 0).producer()


def scope_of(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Notes of a node that does the work of these: the last one's, and the module that all of them belong to."""
    last = nodes[-1]
    path = common_path([path_of(node.name or "", node.metadata_props) for node in nodes])
    notes = dict(last.metadata_props)
    return notes if path is None else {**notes, MODULE_SCOPES: scopes_note(path, last.name or last.op_type)}


def _attribute(name: str, value: int | float | str | Sequence[int]) -> ir.Attr:
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    return ir.AttrInt64s(name, [int(one) for one in value])
