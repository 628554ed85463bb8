"""A torch module → one clean ONNX file that carries its spec."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

from vitesse.metadata import serialise
from vitesse.spec import ModelSpec
from vitesse.storage import write_atomically

MODULE_SCOPES = "pkg.torch.onnx.name_scopes"


def export_module(
    model: nn.Module, example: torch.Tensor, spec: ModelSpec, path: Path, *, opset: int = 18
) -> None:
    """Export `model` with a dynamic batch axis and write it, with its spec, to `path`.

    Args:
        model: takes one image tensor and returns the outputs in the order of `spec.outputs`.
        example: image tensor (batch, 3, H, W) with batch ≥ 2, so that the tracer does not specialise batch 1.
        opset: ONNX operator set, at least 17 (LayerNormalization is one node from there on).
    """
    program = torch.onnx.export(
        model.eval(),
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=[spec.image_input],
        output_names=list(spec.outputs.values()),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None  # torch returns None only for the old exporter
    exported: onnx.ModelProto = program.model_proto
    _drop_trace(exported)
    write_atomically(path, serialise(exported, spec))


def _drop_trace(model: onnx.ModelProto) -> None:
    """Keep of torch's notes on each node only the module it belongs to: the rest is stack traces of this machine."""
    for node in model.graph.node:
        scopes = [entry for entry in node.metadata_props if entry.key == MODULE_SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
