"""Which nodes are an activation that a step knows."""

from __future__ import annotations

import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.nodes import attribute, is_op, other_input, sole_reader

_OPERATORS = {"Relu": "relu", "Sigmoid": "sigmoid", "Swish": "silu"}


def activation_behind(value: ir.Value) -> tuple[str, tuple[ir.Node, ...]] | None:
    """The activation that alone reads a value: its name in `steps.ACTIVATIONS`, and its nodes in order; else None.

    SiLU is x · sigmoid(x) in graphs before opset 24: two nodes that both read x.
    """
    reader = sole_reader(value)
    if reader is not None:
        name = _name_of(reader)
        return None if name is None else (name, (reader,))
    readers = [use.node for use in value.uses()]
    sigmoid = next((node for node in readers if is_op(node, "Sigmoid")), None)
    product = next((node for node in readers if is_op(node, "Mul")), None)
    if sigmoid is None or product is None or len(readers) != 2 or value.is_graph_output():
        return None
    gated = sole_reader(sigmoid.outputs[0]) is product and other_input(product, value) is sigmoid.outputs[0]
    return ("silu", (sigmoid, product)) if gated else None


def _name_of(node: ir.Node) -> str | None:
    if is_op(node, "Gelu"):
        return "gelu_tanh" if attribute(node, "approximate", "none") == "tanh" else "gelu"
    if not is_op(node, *_OPERATORS) or attribute(node, "alpha", 1.0) != 1.0:
        return None
    return _OPERATORS[node.op_type]
