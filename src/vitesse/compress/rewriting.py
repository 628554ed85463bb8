"""A lever's change to the graph, between the same checks that every pass stands between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateHashedInitializersPass, RemoveUnusedNodesPass

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built
from vitesse.fusion import finished
from vitesse.fusion.contract import load, signature_of
from vitesse.fusion.shapes import complete_shapes
from vitesse.metadata import serialise
from vitesse.sources.onnx_file import load_onnx


@dataclass(frozen=True)
class Changed:
    """What a lever did to a graph.

    counts: for the ledger, name → how often.
    outputs: name → shape of the graph outputs that have another shape now.
    notes: what a reader should know beside the counts.
    """

    counts: Mapping[str, int]
    outputs: Mapping[str, ir.Shape] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def rewritten(artifact: Artifact, store: Store, stage: str, change: Callable[[ir.Model], Changed]) -> Built:
    """Apply `change` to a copy of the graph, drop what is dead, check the result and store it.

    `change` works in place; it finds the shapes known, as cleaning and fusing left them. Inputs, metadata and the names
    of outputs stay as they were.

    Raises:
        NotVerified: the result is not a valid graph, or its inputs, outputs or metadata are not the expected ones.
    """
    model = load(load_onnx(artifact.path))
    before = signature_of(model)
    complete_shapes(model)
    nodes = len(model.graph)
    done = change(model)
    RemoveUnusedNodesPass()(model)
    DeduplicateHashedInitializersPass()(model)
    complete_shapes(model)
    expected = tuple(replace(one, shape=done.outputs.get(one.name, one.shape)) for one in before.outputs)
    counts = {**done.counts, "dead_nodes": nodes - len(model.graph)}
    made = finished(model, replace(before, outputs=expected), stage, counts, {})
    content = serialise(made.model, artifact.spec)
    stored = store.put(content, artifact.spec, Provenance(stage, artifact.sha256), suffix=".onnx")
    return Built(stored, made.changes, done.notes)
