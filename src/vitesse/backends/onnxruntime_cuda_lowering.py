"""Standard operators → the forms with the fastest kernels in ONNX Runtime's CUDA provider, and all of them on the GPU.

What an operator newer than the provider falls back to is the CPU, with a copy each way, and no CUDA graph can be
captured. The bias of a linear layer is a kernel of its own there, in Gemm, too, so that it is handed on to an operator
behind it that takes one along. What was measured, on which GPU, stands in docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitesse.errors import ModelError
from vitesse.fusion.opset import opset_of
from vitesse.fusion.shapes import infer_shapes
from vitesse.lowering.opset import at_opset
from vitesse.scopes import inherited

# The provider of ONNX Runtime 1.31 has kernels for all of it, but not for what opset 22 renewed (MaxPool).
OPSETS = (18, 21)
_MICROSOFT = "com.microsoft"
_SUM = 3  # SkipLayerNormalization's optional output: the sum that it normalises


def lower(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int], tuple[str, ...]]:
    """Return the model, how often each rewrite applied (also 0), and what was left alone, with the reason.

    Inputs, outputs and metadata stay as they are; `model` itself is not changed.
    """
    graph = ir.from_proto(model)
    changes = {name: rewrite(graph) for name, rewrite in _OPERATORS.items()}
    if any(changes.values()):
        graph.opset_imports[_MICROSOFT] = 1
    graph, notes = _in_an_older_opset(graph)
    changes["opset lowered"] = int(opset_of(graph) < _opset(model))
    RemoveUnusedNodesPass()(graph)
    infer_shapes(graph)
    changes["skip_layer_norm"] = skip_layer_norm(graph)
    if changes["skip_layer_norm"]:
        graph.opset_imports[_MICROSOFT] = 1
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph), changes, notes


def multi_head_attention(model: ir.Model) -> int:
    """Rewrite Attention (opset 23) on tensors of three axes, in place; returns how often.

    Attention with a mask of its own, with key and value heads of another number, or with past keys stays.
    """
    nodes = [node for node in model.graph if _is(node, "Attention") and _plain_attention(node)]
    for node in nodes:
        attributes = [ir.AttrInt64("num_heads", node.attributes["q_num_heads"].as_int())]
        if "scale" in node.attributes:
            attributes.append(ir.AttrFloat32("scale", node.attributes["scale"].as_float()))
        inputs: list[ir.Value | None] = list(node.inputs[:3])
        layers = [layer for layer in map(_biased, inputs) if layer is not None]
        if len(layers) == len(inputs):
            inputs = [*(product for product, _ in layers), _joined(model, node, [bias for _, bias in layers])]
        _replace(model, node, "MultiHeadAttention", inputs, attributes)
    return len(nodes)


def gelu(model: ir.Model) -> int:
    """Rewrite Gelu (opset 20) into the runtime's own, which takes the bias before it along; returns how often."""
    nodes = [node for node in model.graph if _is(node, "Gelu")]
    for node in nodes:
        tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
        biased = _biased(node.inputs[0])
        inputs: list[ir.Value | None] = [*(node.inputs if biased is None else biased)]
        name = "FastGelu" if tanh else "Gelu" if biased is None else "BiasGelu"
        _replace(model, node, name, inputs, [])
    return len(nodes)


def skip_layer_norm(model: ir.Model) -> int:
    """Make one operator of a sum of two tensors of one shape and the LayerNormalization over it, in place.

    The sum may be read elsewhere, too, as in every residual connection. Needs inferred shapes. Returns how often.
    """
    made = 0
    for node in list(model.graph):
        add = _summed(node)
        if add is None:
            continue
        normalised, total = node.outputs[0], add.outputs[0]
        notes = inherited(node.name or "", node.metadata_props)
        attributes = [ir.AttrFloat32("epsilon", _epsilon(node))]
        inputs = [*_without_bias(add), *node.inputs[1:3]]
        inputs = [*inputs[:2], *inputs[-2:], *inputs[2:-2]]
        fused = ir.Node(
            _MICROSOFT,
            "SkipLayerNormalization",
            inputs,
            attributes,
            num_outputs=_SUM + 1,
            name=node.name,
            metadata_props=notes,
        )
        for old, new in ((normalised, fused.outputs[0]), (total, fused.outputs[_SUM])):
            new.shape, new.type, new.name = old.shape, old.type, old.name
        for unused in fused.outputs[1:_SUM]:
            unused.name = ""
        model.graph.insert_before(add, fused)
        for old, new in ((normalised, fused.outputs[0]), (total, fused.outputs[_SUM])):
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove([node, add], safe=True)
        made += 1
    return made


_OPERATORS: Mapping[str, Callable[[ir.Model], int]] = {
    "multi_head_attention": multi_head_attention,
    "gelu": gelu,
}


def _biased(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The product of a linear layer and its bias, where nothing else reads their sum."""
    add = None if value is None else value.producer()
    if value is None or add is None or not _is(add, "Add") or len(value.uses()) != 1:
        return None
    if value.is_graph_output():
        return None
    for one, other in (add.inputs, tuple(reversed(add.inputs))):
        if one is None or other is None:
            continue
        product, bias = one.producer(), other.const_value
        if product is not None and _is(product, "MatMul") and bias is not None and bias.shape.rank() == 1:
            return one, other
    return None


def _joined(model: ir.Model, node: ir.Node, biases: Sequence[ir.Value]) -> ir.Value:
    """One initialiser of the biases of queries, keys and values, in this order."""
    arrays = [bias.const_value.numpy() for bias in biases if bias.const_value is not None]
    name = f"{node.outputs[0].name}_bias"
    made = ir.Value(name=name, const_value=ir.tensor(np.concatenate(arrays), name=name))
    made.shape, made.type = ir.Shape([sum(len(array) for array in arrays)]), biases[0].type
    model.graph.register_initializer(made)
    return made


def _without_bias(add: ir.Node) -> list[ir.Value | None]:
    """The two summands of a residual connection and, where one is a linear layer, its bias as the third."""
    one, other = add.inputs
    for layer, skip in ((one, other), (other, one)):
        biased = _biased(layer)
        if biased is not None:
            return [biased[0], skip, biased[1]]
    return [one, other]


def _summed(node: ir.Node) -> ir.Node | None:
    """The Add whose sum a LayerNormalization over the last axis reads, where one operator can do both."""
    if not _is(node, "LayerNormalization") or len(node.inputs) < 3 or len(node.outputs) > 1:
        return None
    total = node.inputs[0]
    add = None if total is None else total.producer()
    if total is None or total.shape is None or add is None or not _is(add, "Add"):
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis not in (-1, total.shape.rank() - 1) or total.shape.rank() not in (2, 3):
        return None
    # The weights may have another type than what is normalised; the fused operator has one.
    parts = [*add.inputs, *node.inputs[1:3]]
    if any(part is None or part.dtype != total.dtype for part in parts):
        return None
    shapes = [part.shape for part in add.inputs if part is not None]
    if any(shape is None or list(shape) != list(total.shape) for shape in shapes):
        return None
    # The fused node stands where the Add stood, so that what it reads has to be there by then.
    made = [part for part in node.inputs[1:3] if part is not None and part.producer() is not None]
    return None if made else add


def _epsilon(node: ir.Node) -> float:
    return node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5


def _plain_attention(node: ir.Node) -> bool:
    given = [value for value in node.inputs if value is not None]
    if len(given) != 3 or len(node.outputs) != 1 or "q_num_heads" not in node.attributes:
        return False
    heads = node.attributes["q_num_heads"].as_int()
    if "kv_num_heads" in node.attributes and node.attributes["kv_num_heads"].as_int() != heads:
        return False
    allowed = {"q_num_heads", "kv_num_heads", "scale"}
    return all(name in allowed or not attribute.value for name, attribute in node.attributes.items())


def _replace(
    model: ir.Model,
    node: ir.Node,
    operator: str,
    inputs: list[ir.Value | None],
    attributes: list[ir.Attr],
) -> None:
    notes = inherited(node.name or "", node.metadata_props)
    old = node.outputs[0]
    made = ir.Node(
        _MICROSOFT, operator, inputs, attributes, num_outputs=1, name=node.name, metadata_props=notes
    )
    new = made.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    model.graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _in_an_older_opset(graph: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    why = ""
    for version in OPSETS:
        if opset_of(graph) <= version:
            return graph, ()
        try:
            return ir.from_proto(at_opset(ir.to_proto(graph), version)), ()
        except ModelError as error:
            why = error.what
    return graph, (
        f"opset {opset_of(graph)} was kept, and what the CUDA provider has no kernel for runs on the CPU: {why}",
    )


def _opset(model: onnx.ModelProto) -> int:
    return max(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _is(node: ir.Node, operator: str) -> bool:
    return node.op_type == operator and node.domain in ("", "ai.onnx")
