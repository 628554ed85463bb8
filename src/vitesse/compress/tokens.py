"""The lever "tokens": merge the most similar tokens of a plain ViT in every block (see `merging`).

No training, and the weights stay as they are; what it costs in accuracy depends on how much the images repeat
themselves. It pays where the blocks cost much more than finding the pairs: many tokens, wide layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitesse.artifact import Provenance
from vitesse.backends.protocol import Built
from vitesse.compress.lever import NotApplicable, Situation, Variant
from vitesse.compress.merging import Tokens, Writer, merge, proportional, weighted_mean
from vitesse.compress.token_flow import Site, TokenFlow, token_flow
from vitesse.errors import UsageError
from vitesse.fusion import Fused, finished
from vitesse.fusion.contract import load, signature_of
from vitesse.fusion.folding import lift_constants
from vitesse.fusion.shapes import complete_shapes, infer_shapes
from vitesse.lowering.building import integer, length_of, required
from vitesse.metadata import serialise
from vitesse.scopes import MODULE_SCOPES, path_of, scopes_note
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import Task

# The module that the nodes of a merge belong to, inside the block's.
MODULE = "merge_tokens"
_SETTINGS = 4


def variants(situation: Situation) -> Sequence[Variant]:
    """Up to four settings: r tokens fewer in every block, the strongest of which leaves about half of them at the end.

    Raises:
        NotApplicable: the model is no plain ViT that classifies.
    """
    if situation.artifact.spec.task is not Task.CLASSIFICATION:
        raise NotApplicable(
            "tokens are merged only in models that classify",
            cause="a detector reads every token at its place in the image",
        )
    graph = load(load_onnx(situation.artifact.path))
    infer_shapes(graph)
    flow = token_flow(graph.graph)
    return [Variant(f"tokens:r={rate}", partial(_make, situation, rate)) for rate in rates(flow)]


def rates(flow: TokenFlow) -> list[int]:
    """Settings of r, mild ones first: quarters of tokens / (2 · blocks), without repetition, at least 1."""
    most = max(1, round(flow.count / (2 * len(flow.sites))))
    return sorted({max(1, round(most * part / _SETTINGS)) for part in range(1, _SETTINGS + 1)})


def merge_tokens(model: onnx.ModelProto, rate: int) -> Fused:
    """Merge `rate` tokens in every block, as many as there are where fewer are left; 0 changes nothing.

    Behind a merge, attention is proportional (log of the sizes is added to its logits), and a mean over
    tokens is weighted by the sizes. Attention must be fused and the size of the images fixed.

    Raises:
        NotApplicable: the model is no plain ViT.
        UsageError: `rate` is negative.
        NotVerified: the result broke the contract (see `fusion.contract.verify`).
    """
    if rate < 0:
        raise UsageError(f"{rate} tokens to merge", expected="0 or more per block")
    graph = load(model)
    before = signature_of(graph)
    infer_shapes(graph)
    flow = token_flow(graph.graph)
    done = _Merging(graph.graph, flow, rate)
    done.run()
    lift_constants(graph)
    RemoveUnusedNodesPass()(graph)
    complete_shapes(graph)
    changes = {"blocks": done.merges, "tokens": flow.count - done.counts[-1]}
    return finished(graph, before, f"tokens:r={rate}", changes, {})


def _make(situation: Situation, rate: int) -> Built:
    artifact = situation.artifact
    stage = f"tokens:r={rate}"
    done = merge_tokens(load_onnx(artifact.path), rate)
    provenance = Provenance(stage, artifact.sha256, {"r": str(rate)})
    made = situation.store.put(
        serialise(done.model, artifact.spec), artifact.spec, provenance, suffix=".onnx"
    )
    return Built(made, done.changes, done.notes())


class _Merging:
    """The rewrite of one graph, block by block; `counts` and `sizes` by level, which is how many blocks lie before."""

    def __init__(self, graph: ir.Graph, flow: TokenFlow, rate: int) -> None:
        self.graph, self.flow, self.rate = graph, flow, rate
        self.counts: list[int] = [flow.count]
        self.sizes: list[ir.Value | None] = [None]
        self.masks: dict[tuple[int, int], ir.Value] = {}
        self.merges = 0

    def run(self) -> None:
        for site in self.flow.sites:
            self._merge(site)
        totals = {site.total for site in self.flow.sites}
        for value, rows in self.flow.rows.items():
            # A block's total is what is merged: it still has the tokens from before.
            _shorten(value, self.counts[rows.level - (value in totals)] - rows.start)
        for attention, level in self.flow.readers.items():
            self._make_proportional(attention, level)
        for mean in self.flow.means:
            self._weight(mean)

    def _merge(self, site: Site) -> None:
        total, producer = site.total, site.total.producer()
        assert producer is not None
        tokens = Tokens(total, self.counts[-1], self.sizes[-1], self.flow.class_token)
        rate = min(self.rate, tokens.most)
        merged = tokens
        if rate:
            readers = list(total.uses())
            merged = merge(self._writer(producer, producer), tokens, site.keys, site.heads, rate)
            for use in readers:
                use.node.replace_input_with(use.idx, merged.values)
            merged.values.shape, merged.values.type = total.shape, total.type
            self.flow.rows[merged.values] = self.flow.rows[total]
            self.merges += 1
        self.counts.append(merged.count)
        self.sizes.append(merged.sizes)

    def _writer(self, behind: ir.Node, block: ir.Node) -> Writer:
        path = path_of(block.name or "", block.metadata_props)
        notes = {} if path is None else {MODULE_SCOPES: scopes_note((*path, MODULE), MODULE)}
        return Writer(self.graph, behind, notes)

    def _make_proportional(self, attention: ir.Node, level: int) -> None:
        sizes = self.sizes[level]
        if sizes is None:
            return
        queries = length_of(required(attention, 0), 1)
        assert queries is not None
        if (level, queries) not in self.masks:
            behind = sizes.producer()
            assert behind is not None
            op = Writer(self.graph, behind, behind.metadata_props)
            self.masks[level, queries] = proportional(op, sizes, queries)
        attention.resize_inputs(max(4, len(attention.inputs)))
        attention.replace_input_with(3, self.masks[level, queries])

    def _weight(self, mean: ir.Node) -> None:
        values = required(mean, 0)
        rows = self.flow.rows[values]
        sizes = self.sizes[rows.level]
        if sizes is None:
            return
        keepdims = bool(integer(mean, "keepdims", 1))
        op = self._writer(mean, mean)
        weighted = weighted_mean(op, values, sizes, start=rows.start, keepdims=keepdims)
        old = mean.outputs[0]
        weighted.shape, weighted.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, weighted, replace_graph_outputs=True)


def _shorten(value: ir.Value, count: int) -> None:
    """Declare how many tokens there are now."""
    assert value.shape is not None
    value.shape = ir.Shape([count if axis == 1 else length for axis, length in enumerate(value.shape)])
