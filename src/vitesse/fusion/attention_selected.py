"""Only the class token is read from the last block: compute the last block for that token only.

A Vision Transformer takes one token of its last block's result. Every operator of that block but the attention's
keys and values treats each token on its own, so the pick can be made before it instead of behind it. The numbers are
the same; of the last block's linear layers only those of the keys and values still see all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase

from vitesse.fusion.attention_scores import dim
from vitesse.fusion.rules import constant
from vitesse.scopes import inherited

# Operators that give every number its result from that number alone, whatever its position.
ELEMENTWISE = frozenset(
    (
        *(
            "Abs",
            "Cast",
            "Clip",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
        ),
        *("Mish", "Neg", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh"),
    )
)
# The same for two numbers.
BINARY = frozenset(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"))
_WORTHWHILE = frozenset(("MatMul", "Attention"))
_TOKENS = 1  # the axis of the tokens in (batch, tokens, width)


@dataclass(frozen=True)
class TokenWise:
    """Which inputs of an operator have a row per token; the others serve all tokens alike."""

    node: ir.Node
    inputs: tuple[int, ...]


def token_wise(node: ir.Node) -> TokenWise | None:
    """How `node` treats (batch, tokens, width), or None when its result for a token depends on other tokens.

    Attention counts: a query's result depends on all keys and values, but on no other query.
    """
    output = node.outputs[0]
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or output.shape is None:
        return None
    if output.shape.rank() != 3:
        return None
    if node.op_type in ELEMENTWISE:
        return TokenWise(node, (0,))
    if node.op_type == "LayerNormalization":
        axis = int(node.attributes["axis"].as_int()) if "axis" in node.attributes else -1
        return TokenWise(node, (0,)) if axis in (-1, 2) else None
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        matrix = weight is not None and weight.shape is not None and weight.shape.rank() == 2
        return TokenWise(node, (0,)) if matrix else None
    if node.op_type == "Attention":
        return TokenWise(node, (0,)) if _is_plain(node) else None
    if node.op_type in BINARY:
        return _binary(node, dim(output, _TOKENS))
    return None


def _is_plain(node: ir.Node) -> bool:
    """Without a mask or causality, which tell the queries apart, and without a cache."""
    causal = "is_causal" in node.attributes and node.attributes["is_causal"].as_int()
    return not causal and all(value is None for value in node.inputs[3:])


def _binary(node: ir.Node, tokens: int | None) -> TokenWise | None:
    per_token = []
    for at, value in enumerate(node.inputs):
        if value is None or value.shape is None:
            return None
        rank = value.shape.rank()
        length = value.shape[rank - 2] if rank >= 2 else 1
        if rank >= 2 and length == tokens and rank == 3:
            per_token.append(at)
        elif length != 1:
            return None
    return TokenWise(node, tuple(per_token)) if per_token else None


class SelectedToken(RewriteRuleClassBase):
    """Gather of one constant index on the token axis, moved up as far as each token is treated on its own."""

    def __init__(self) -> None:
        # What computed all tokens stays for whoever else reads it, and is removed when nobody does.
        super().__init__("selected_token", remove_nodes=False)

    def pattern(self, op: Any, x: Any, index: Any) -> Any:
        """Any Gather on axis 1."""
        return op.Gather(x, index, axis=_TOKENS, _outputs=["picked"])

    def check(self, context: Any, x: ir.Value, index: ir.Value, picked: ir.Value, **_: Any) -> MatchResult:
        """Say why the pick stays where it is."""
        result = MatchResult()
        tokens, at = dim(x, _TOKENS), constant(index)
        if x.shape is None or x.shape.rank() != 3 or tokens is None or tokens < 2:
            return result.fail("")
        if at is None or at.size != 1 or at.ndim > 1:
            return result.fail("the picked token is not one constant index")
        root = picked.producer()
        assert root is not None
        self._cone = _cone(x, root)
        if not any(part.node.op_type in _WORTHWHILE for part in self._cone):
            # An index that keeps the axis is what the rewrite itself leaves behind.
            return result.fail(
                "the tokens are read elsewhere or mixed before the pick" if at.ndim == 0 else ""
            )
        self._index = int(at.item()) % tokens
        self._keeps_axis = at.ndim == 1
        return result

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        """Emit the operators again, for one token."""
        at = op.Constant(value_ints=[self._index])
        one: dict[ir.Value, ir.Value] = {}

        def narrow(value: ir.Value) -> ir.Value:
            if value not in one:
                one[value] = op.Gather(value, at, axis=_TOKENS)
            return one[value]

        for part in self._cone:
            inputs = [
                narrow(value) if value is not None and i in part.inputs else value
                for i, value in enumerate(part.node.inputs)
            ]
            all_tokens = part.node.outputs[0]
            made = getattr(op, part.node.op_type)(*inputs, **part.node.attributes)
            made.shape, made.type = _narrowed(all_tokens.shape), all_tokens.type
            made.producer().metadata_props.update(inherited(part.node.name or "", part.node.metadata_props))
            one[all_tokens] = made
        return one[x] if self._keeps_axis else op.Squeeze(one[x], op.Constant(value_ints=[_TOKENS]))


def _cone(x: ir.Value, root: ir.Node) -> list[TokenWise]:
    """Token-wise operators before `x` whose result only the pick reads, in the order of the graph."""
    cone: dict[ir.Node, TokenWise] = {}
    open_values = [x]
    while open_values:
        value = open_values.pop()
        node = value.producer()
        if node is None or node in cone or value.is_graph_output():
            continue
        if any(user is not root and user not in cone for user in _users(value)):
            continue  # looked at again when the last of its users joins
        part = token_wise(node)
        if part is None:
            continue
        cone[node] = part
        open_values += [v for v in (node.inputs[i] for i in part.inputs) if v is not None]
    graph = root.graph
    assert graph is not None
    return [cone[node] for node in graph if node in cone]


def _narrowed(shape: ir.Shape | None) -> ir.Shape | None:
    """The shape for one token."""
    if shape is None:
        return None
    return ir.Shape([1 if axis == _TOKENS else length for axis, length in enumerate(shape)])


def _users(value: ir.Value) -> Iterator[ir.Node]:
    for use in value.uses():
        yield use.node


def rules() -> tuple[RewriteRule, ...]:
    """The one rule."""
    return (SelectedToken.rule(),)
