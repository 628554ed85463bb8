"""Lever "decoder": fewer decoder layers of a DETR.

DETR trains the heads on the output of every decoder layer (auxiliary losses, Carion et al. 2020, section 4), so a model
with L layers holds L detectors. Keeping k of them means to read the heads behind layer k: by construction the result
is the model's own auxiliary output k, and what that costs is for the images to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from vitesse.backends.protocol import Built
from vitesse.compress.decoder_layers import Decoder, find_decoder
from vitesse.compress.lever import NotApplicable, Situation, Variant
from vitesse.compress.rewriting import Changed, rewritten
from vitesse.fusion.contract import load
from vitesse.fusion.shapes import complete_shapes
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import Task

_MOST_VARIANTS = 6


def variants(situation: Situation) -> Sequence[Variant]:
    """Return `decoder:5`, `decoder:4`, … down to `decoder:1`: how many layers are kept; at most six of them.

    Raises:
        NotApplicable: the model is no detector, or its heads cannot be put behind another layer.
    """
    spec = situation.artifact.spec
    if spec.task is not Task.DETECTION:
        raise NotApplicable("the model is a classifier: it has no decoder layers", expected="a detector")
    model = load(load_onnx(situation.artifact.path))
    complete_shapes(model)
    layers = len(find_decoder(model, tuple(spec.outputs.values())).states)
    counts = range(layers - 1, 0, -1)
    if len(counts) > _MOST_VARIANTS:
        counts = counts[:: -(-len(counts) // _MOST_VARIANTS)]
    return [Variant(f"decoder:{kept}", partial(_make, situation, kept)) for kept in counts]


def _make(situation: Situation, kept: int) -> Built:
    """Build the artifact that keeps the first `kept` layers."""
    outputs = tuple(situation.artifact.spec.outputs.values())

    def change(model: ir.Model) -> Changed:
        decoder = find_decoder(model, outputs)
        read_layer(decoder, kept)
        layers = len(decoder.states)
        note = f"the heads read layer {kept} of {layers} of {decoder.name}, as auxiliary heads do in training"
        return Changed({"dropped_decoder_layers": layers - kept}, notes=(note,))

    return rewritten(situation.artifact, situation.store, f"decoder:{kept}", change)


def read_layer(decoder: Decoder, kept: int) -> None:
    """Let the heads read layer `kept` (1 = the first), in place; what only later layers need is dead then."""
    last, state = decoder.states[-1], decoder.states[kept - 1]
    for node, index in [(use.node, use.idx) for use in last.uses()]:
        if node in decoder.heads:
            node.replace_input_with(index, state)
