"""Where the tokens of a plain Vision Transformer go: its blocks, and everything that reads their results.

A token merged away is missing in everything behind it. So every operator that the tokens reach must be one that treats
each token alike, or one whose place is known: attention, the pick of the class token, the mean over the patches.
Whatever else reads them makes the model one that tokens cannot be merged in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from vitesse.compress.lever import NotApplicable
from vitesse.fusion.attention_selected import token_wise
from vitesse.fusion.rules import constant
from vitesse.lowering.building import given, integer, length_of, required

_TOKENS = 1  # their axis in (batch, tokens, width)


@dataclass(frozen=True)
class Site:
    """A block: its attention, and `total`, the tokens after the attention's result was added to them."""

    attention: ir.Node
    total: ir.Value

    @property
    def keys(self) -> ir.Value:
        """(batch, tokens, heads · width)."""
        return required(self.attention, 1)

    @property
    def heads(self) -> int:
        """How many heads the keys have."""
        return integer(self.attention, "kv_num_heads", 1)


@dataclass(frozen=True)
class Rows:
    """Tokens behind `level` blocks; the first `start` have been cut off."""

    level: int
    start: int = 0


@dataclass
class TokenFlow:
    """All tokens of a ViT.

    Args:
        count: tokens of the first block.
        sites: its blocks, in order; only those in which all tokens are computed.
        rows: every value that has a row per token, behind the first site's total.
        readers: attention over merged tokens → their level.
        means: means over tokens.
        class_token: whether the first token has a meaning of its own.
    """

    count: int
    sites: tuple[Site, ...]
    rows: dict[ir.Value, Rows] = field(default_factory=dict)
    readers: dict[ir.Node, int] = field(default_factory=dict)
    means: list[ir.Node] = field(default_factory=list)
    class_token: bool = False


def token_flow(graph: ir.Graph) -> TokenFlow:
    """Follow the tokens of a graph with fused attention and inferred shapes; raises NotApplicable with the reason."""
    sites = tuple(site for node in graph if (site := _site(node)) is not None)
    if not sites:
        raise NotApplicable(
            "no block of a plain Vision Transformer was found",
            expected="attention over all tokens, its result added to the same tokens (batch, tokens, width)",
            cause="attention in windows, tokens in another layout, or a size of images that is not fixed",
        )
    counts = {length_of(site.total, _TOKENS) for site in sites}
    count = counts.pop()
    if count is None or counts:
        raise NotApplicable(
            "the blocks do not have the same number of tokens",
            expected="one fixed number of tokens through the whole network",
            cause="a hierarchical network, which merges patches by itself",
        )
    flow = TokenFlow(count, sites)
    ends = {site.total: level for level, site in enumerate(sites, start=1)}
    for node in graph:
        _follow(flow, node, ends)
    return flow


def says_nothing(mask: ir.Value | None) -> bool:
    """Whether a mask of attention lets every token see every other: absent, zero, or true all over."""
    if mask is None:
        return True
    array = constant(mask)
    if array is not None:
        return bool(array.all()) if array.dtype == bool else not array.any()
    node = mask.producer()
    if node is not None and node.op_type == "Expand":
        return says_nothing(node.inputs[0])
    if node is not None and node.op_type == "Where":
        condition, chosen, _ = node.inputs
        return says_nothing(condition) and constant(chosen) is not None and says_nothing(chosen)
    return False


def _site(node: ir.Node) -> Site | None:
    """The block whose attention `node` is, when all of its tokens look at one another."""
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
        return None
    value: ir.Value = node.outputs[0]
    seen = [value, *(required(node, at) for at in range(3))]
    if any(one.shape is None or one.shape.rank() != 3 for one in seen):
        return None
    if len({str(one.shape[_TOKENS]) for one in seen if one.shape is not None}) > 1:
        return None
    while len(value.uses()) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        row_wise = token_wise(use.node)
        if row_wise is None or use.node.op_type == "Attention":
            return None
        value = use.node.outputs[0]
        if use.node.op_type == "Add" and len(row_wise.inputs) == 2:
            return Site(node, value)
    return None


def _follow(flow: TokenFlow, node: ir.Node, ends: dict[ir.Value, int]) -> None:
    """Note what `node` makes of the tokens it reads; raises NotApplicable when they may not be fewer."""
    inputs = [flow.rows.get(value) if value is not None else None for value in node.inputs]
    output = node.outputs[0]
    if any(inputs):
        made = _attention(flow, node, inputs) if node.op_type == "Attention" else _others(flow, node, inputs)
        if made is not None and output not in ends:
            flow.rows[output] = made
    if output in ends:
        before = next((rows.level for rows in inputs if rows is not None), 0)
        if before != ends[output] - 1:
            raise NotApplicable(f"the blocks of {_name(node)} do not follow one another")
        flow.rows[output] = Rows(ends[output])
    if output in flow.rows and any(value.is_graph_output() for value in node.outputs):
        raise NotApplicable(
            f"the tokens themselves are an output ({output.name})",
            expected="outputs made of the class token or of the mean over the tokens",
        )


def _attention(flow: TokenFlow, node: ir.Node, inputs: list[Rows | None]) -> Rows | None:
    queries, keys, values = inputs[:3]
    mask = given(node, 3)
    if not says_nothing(mask) or integer(node, "is_causal", 0) or any(v is not None for v in node.inputs[4:]):
        raise NotApplicable(f"attention {_name(node)} has a mask, which knows the tokens by their places")
    if keys is None or keys != values or keys.start or (queries is not None and queries != keys):
        raise NotApplicable(f"attention {_name(node)} mixes tokens with something else")
    flow.readers[node] = keys.level
    return queries


def _others(flow: TokenFlow, node: ir.Node, inputs: list[Rows | None]) -> Rows | None:
    rows = next(one for one in inputs if one is not None)
    if inputs[0] is not None and node.op_type in ("Gather", "Slice"):
        return _part(flow, node, rows)
    if node.op_type == "ReduceMean" and _axes(node) == [_TOKENS]:
        flow.means.append(node)
        return None
    row_wise = token_wise(node)
    if row_wise is None:
        raise NotApplicable(
            f"{node.op_type} {_name(node)} reads the tokens",
            expected="operators that treat every token alike, the pick of the class token, a mean over tokens",
        )
    if any(inputs[at] != rows for at in row_wise.inputs):
        raise NotApplicable(
            f"{node.op_type} {_name(node)} joins the tokens with something that has a row for each of them",
            cause="a position embedding in every block, or a connection past several blocks",
        )
    return rows


def _part(flow: TokenFlow, node: ir.Node, rows: Rows) -> Rows | None:
    """The class token alone, or the patches without it."""
    refusal = NotApplicable(
        f"{node.op_type} {_name(node)} picks tokens by their places",
        expected="the first one (the class token), or all but the first",
    )
    if rows.start:
        raise refusal
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        if integer(node, "axis", 0) != _TOKENS or index is None or index.size != 1 or index.item() != 0:
            raise refusal
        flow.class_token = True
        return None
    starts, ends, axes, steps = ((_integers(given(node, at)) or None) for at in (1, 2, 3, 4))
    if axes not in ([_TOKENS], [-2]) or steps not in (None, [1]) or starts is None or ends is None:
        raise refusal
    flow.class_token = True
    if (starts, ends) == ([0], [1]):
        return None
    if starts == [1] and ends[0] >= flow.count:
        return Rows(rows.level, start=1)
    raise refusal


def _axes(node: ir.Node) -> list[int] | None:
    return _integers(given(node, 1))


def _integers(value: ir.Value | None) -> list[int] | None:
    array = constant(value)
    return None if array is None else [int(one) for one in array.flat]


def _name(node: ir.Node) -> str:
    return f"{node.name or node.outputs[0].name!r}"
