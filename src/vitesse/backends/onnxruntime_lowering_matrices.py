"""Token-wise operators on (batch, tokens, width) → the same on a matrix (batch · tokens, width), linear layers as Gemm.

ONNX Runtime adds the bias inside Gemm, but only for matrices: on three axes every linear layer costs a second pass
over its result. It also fuses a residual Add and a LayerNormalization on three axes into SkipLayerNormalization, whose
CPU kernel is slower than the two; on matrices it leaves them apart. A Reshape moves no numbers and costs about 1 µs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitesse.fusion.attention_selected import BINARY, ELEMENTWISE
from vitesse.fusion.rules import constant
from vitesse.scopes import inherited

# An Add of a bias costs more than two Reshapes at the shapes in docs/onnxruntime_lowering.md.
_RESHAPES_PER_GEMM = 2


@dataclass(frozen=True)
class _Rows:
    """Leading lengths and width of a (batch, tokens, width) tensor; None: only known at run time."""

    batch: int | None
    tokens: int | None
    width: int

    def unflattened(self) -> list[int]:
        """Shape for the Reshape back to three axes."""
        return [-1 if length is None else length for length in (self.batch, self.tokens, self.width)]


def _rows(value: ir.Value | None) -> _Rows | None:
    """Lengths of a tensor of three axes that can be restored from a matrix, else None."""
    if value is None or value.shape is None or value.shape.rank() != 3:
        return None
    batch, tokens, width = (n if isinstance(n, int) else None for n in value.shape)
    return None if width is None or (batch is None and tokens is None) else _Rows(batch, tokens, width)


def _same_rows(a: ir.Value, b: ir.Value) -> bool:
    """Whether two shapes of three axes agree in every axis, symbolic ones by name."""
    assert a.shape is not None and b.shape is not None
    pairs = zip(a.shape, b.shape, strict=True)
    return all(x == y and (isinstance(x, int) or x.value is not None) for x, y in pairs)


def _per_feature(value: ir.Value) -> bool:
    """A constant that broadcasts over batch and tokens: a number, (width,) or (1, 1, width)."""
    array = constant(value)
    return array is not None and array.size == (array.shape[-1] if array.ndim else 1)


def _per_token(value: ir.Value, output: ir.Value) -> bool:
    """A constant (1, tokens, width), such as a position embedding."""
    array = constant(value)
    assert output.shape is not None
    return array is not None and array.shape == (1, *output.shape[1:])


def _fits(node: ir.Node) -> bool:
    """Whether `node` can work on a matrix of rows."""
    output = node.outputs[0]
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or _rows(output) is None:
        return False
    if node.op_type in ELEMENTWISE:
        return True
    if node.op_type == "LayerNormalization":
        return "axis" not in node.attributes or node.attributes["axis"].as_int() in (-1, 2)
    if node.op_type == "MatMul":
        weight = constant(node.inputs[1])
        return weight is not None and weight.ndim == 2 and _rows(node.inputs[0]) is not None
    if node.op_type in BINARY:
        return _binary_fits(node.inputs, output)
    return False


def _binary_fits(inputs: Sequence[ir.Value | None], output: ir.Value) -> bool:
    full = [
        value
        for value in inputs
        if _rows(value) is not None and value is not None and _same_rows(value, output)
    ]
    rest = [value for value in inputs if value not in full]
    return bool(full) and all(v is not None and (_per_feature(v) or _per_token(v, output)) for v in rest)


def _components(nodes: Sequence[ir.Node]) -> Iterator[list[ir.Node]]:
    """Groups of `nodes` that hand values to each other, each in the order of the graph."""
    member = set(nodes)
    seen: set[ir.Node] = set()
    for start in nodes:
        if start in seen:
            continue
        group, todo = set(), [start]
        while todo:
            node = todo.pop()
            if node in group:
                continue
            group.add(node)
            before = (value.producer() for value in node.inputs if value is not None)
            after = (use.node for use in node.outputs[0].uses())
            todo += [other for other in (*before, *after) if other in member and other is not None]
        seen |= group
        yield [node for node in nodes if node in group]


def _biased(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """(MatMul, bias) when `node` adds a bias to a product nobody else reads, else None."""
    if node.op_type != "Add":
        return None
    for product, bias in (node.inputs, tuple(reversed(node.inputs))):
        matmul = product.producer() if product is not None else None
        if (
            matmul is None
            or bias is None
            or product is None
            or not _fits(matmul)
            or matmul.op_type != "MatMul"
        ):
            continue
        array, width = constant(bias), _rows(product)
        if array is None or width is None or array.size != width.width or not _per_feature(bias):
            continue
        if len(product.uses()) == 1 and not product.is_graph_output():
            return matmul, bias
    return None


class _Flattening:
    """One group of operators, rewritten on matrices behind the three-axis values the rest of the graph reads."""

    def __init__(self, graph: ir.Graph, group: Sequence[ir.Node]) -> None:
        self.graph = graph
        self.group = group
        self.members = set(group)
        self.gemms = {node: found for node in group if (found := _biased(node)) is not None}
        self.absorbed = {matmul for matmul, _ in self.gemms.values()}
        self.matrices: dict[ir.Value, ir.Value] = {}
        self.anchor = group[0]

    def pays(self) -> bool:
        """More is saved by Gemm than spent on reshapes."""
        entries = {
            value
            for node in self.group
            for value in node.inputs
            if value is not None and value.producer() not in self.members and constant(value) is None
        }
        exits = [node for node in self.group if self._leaves(node)]
        return len(entries) + len(exits) <= _RESHAPES_PER_GEMM * len(self.gemms)

    def _leaves(self, node: ir.Node) -> bool:
        output = node.outputs[0]
        return output.is_graph_output() or any(use.node not in self.members for use in output.uses())

    def apply(self) -> None:
        """Insert the matrix form, hand its results on, remove the three-axis form."""
        for node in self.group:
            self.anchor = node
            if node not in self.absorbed:
                self.matrices[node.outputs[0]] = self._rewritten(node)
        for node in self.group:
            if node not in self.absorbed and self._leaves(node):
                self._hand_on(node)
        self.graph.remove(list(self.group), safe=False)

    def _emit(self, op_type: str, inputs: Sequence[ir.Value | None], *attributes: ir.Attr) -> ir.Value:
        notes = inherited(self.anchor.name or "", self.anchor.metadata_props)
        node = ir.Node("", op_type, inputs, attributes, num_outputs=1, metadata_props=notes)
        self.graph.insert_before(self.anchor, node)
        return node.outputs[0]

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        while name in self.graph.initializers:
            name += "_"
        value = ir.Value(
            name=name, type=ir.TensorType(ir.DataType(ir.tensor(array).dtype)), shape=ir.Shape(array.shape)
        )
        value.const_value = ir.tensor(array, name=name)
        self.graph.register_initializer(value)
        return value

    def _rewritten(self, node: ir.Node) -> ir.Value:
        kept = [attribute for name, attribute in node.attributes.items() if name != "axis"]
        if node in self.gemms:
            matmul, bias = self.gemms[node]
            vector = constant(bias)
            assert vector is not None
            flat = bias if vector.ndim == 1 else self._constant(vector.reshape(-1), f"{bias.name}_row")
            return self._emit("Gemm", [self._matrix(matmul.inputs[0]), matmul.inputs[1], flat])
        if node.op_type == "MatMul":
            return self._emit("MatMul", [self._matrix(node.inputs[0]), node.inputs[1]])
        if node.op_type == "LayerNormalization":
            inputs = [self._matrix(node.inputs[0]), *node.inputs[1:]]
            return self._emit(node.op_type, inputs, ir.AttrInt64("axis", -1), *kept)
        return self._emit(
            node.op_type, [self._operand(value, node.outputs[0]) for value in node.inputs], *kept
        )

    def _operand(self, value: ir.Value | None, output: ir.Value) -> ir.Value | None:
        """A full tensor as a matrix; a constant per feature as a row; a constant per token repeated for the batch."""
        if value is None or constant(value) is None:
            return self._matrix(value)
        if _per_feature(value):
            array = constant(value)
            assert array is not None
            return value if array.ndim < 3 else self._constant(array.reshape(-1), f"{value.name}_row")
        return self._repeated(value, output)

    def _matrix(self, value: ir.Value | None) -> ir.Value:
        assert value is not None
        if value not in self.matrices:
            rows = _rows(value)
            assert rows is not None
            shape = self._constant(np.array([-1, rows.width], np.int64), f"{value.name}_matrix")
            self.matrices[value] = self._emit("Reshape", [value, shape])
        return self.matrices[value]

    def _repeated(self, value: ir.Value, output: ir.Value) -> ir.Value:
        """(1, tokens, width) once per batch entry; at run time where the batch is dynamic, once for all readers."""
        if value in self.matrices:
            return self.matrices[value]
        array, rows = constant(value), _rows(output)
        assert array is not None and rows is not None
        if rows.batch is not None:
            tiled = np.tile(array[0], (rows.batch, 1))
            self.matrices[value] = self._constant(tiled, f"{value.name}_rows")
            return self.matrices[value]
        source = next(v for v in self.anchor.inputs if v is not None and constant(v) is None)
        last = self._constant(
            np.array([-1, array.shape[1] * array.shape[2]], np.int64), f"{value.name}_batch"
        )
        flat = self._emit("Reshape", [self._matrix(source), last])
        batch = self._emit("Shape", [flat], ir.AttrInt64("start", 0), ir.AttrInt64("end", 1))
        one = self._constant(np.array([1], np.int64), f"{value.name}_one")
        repeats = self._emit("Concat", [batch, one], ir.AttrInt64("axis", 0))
        tokens = self._constant(array[0], f"{value.name}_rows")
        self.matrices[value] = self._emit("Tile", [tokens, repeats])
        return self.matrices[value]

    def _hand_on(self, node: ir.Node) -> None:
        """Give the readers outside the group their three axes back, under the old name."""
        old = node.outputs[0]
        rows, matrix = _rows(old), self.matrices[old]
        assert rows is not None
        shape = self._constant(np.array(rows.unflattened(), np.int64), f"{old.name}_axes")
        made = matrix.producer()
        assert made is not None
        notes = inherited(node.name or "", node.metadata_props)
        reshape = ir.Node("", "Reshape", [matrix, shape], num_outputs=1, metadata_props=notes)
        self.graph.insert_after(made, reshape)
        new, name = reshape.outputs[0], old.name
        new.shape, new.type = old.shape, old.type
        old.name = f"{name}_before"
        new.name = name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def linear_layers_on_matrices(model: ir.Model) -> int:
    """Rewrite in place; needs inferred shapes. Returns the number of linear layers that became Gemm."""
    nodes = [node for node in model.graph if _fits(node)]
    made = 0
    for group in list(_components(nodes)):
        flattening = _Flattening(model.graph, group)
        if flattening.gemms and flattening.pays():
            flattening.apply()
            made += len(flattening.gemms)
    return made
