"""Q/DQ pairs round the layers that are to be computed in INT8 or FP8; the graph's other numbers stay as they are.

ONNX Runtime's quantiser is not used: it knows no FP8, appends its nodes unsorted and unnamed, and rounds tensors that
no integer kernel reads. What runtimes make of the forms written here was measured; see docs/quantisation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import suppress

import onnx
import onnx_ir as ir

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built
from vitesse.errors import DataError, UsageError
from vitesse.fusion.opset import raise_ir_version, raise_opset
from vitesse.metadata import serialise
from vitesse.precision.fp8 import OPSET as FP8_OPSET
from vitesse.precision.insertion import Insertion
from vitesse.precision.layers import Layer, flops_share, layers_of, weighted_nodes
from vitesse.precision.ranges import Ranges
from vitesse.precision.weights import weight_bits_here
from vitesse.recipe import Int8Options

NUMBERS = ("int8", "fp8")
# The first opset whose DequantizeLinear takes one scale per channel.
_INT8_OPSET = 13


def quantize(
    artifact: Artifact,
    store: Store,
    names: Collection[str],
    ranges: Ranges,
    options: Int8Options,
    *,
    number: str = "int8",
    stage: str = "int8",
) -> Built:
    """Put Q/DQ pairs round the layers called `names`, and store the result.

    Weights are rounded per output channel, symmetrically. Activations are rounded per tensor: to symmetric int8 with
    zero point 0 where `ranges.symmetric`, else to uint8; with number `fp8` to E4M3. In uint8, where ONNX Runtime needs
    it, what a convolution makes is rounded, too. Biases stay float; `options.bias_correction` takes the mean error out
    of them.

    Args:
        names: of layers that `layers_of(model, attention=options.attention)` returns.
        ranges: what calibration found on this artifact for every tensor these layers read, and what convolutions make.
        stage: the name of the step, which goes into the file's name and its provenance.

    Raises:
        UsageError: a name is none of a layer that may be quantised, or the number format is unknown.
        ModelError: a range is missing, or the graph cannot be raised to the opset that the format needs.
    """
    if number not in NUMBERS:
        raise UsageError(f"number format {number!r}", expected=f"one of {', '.join(NUMBERS)}")
    model = _at_opset(onnx.load(artifact.path), FP8_OPSET if number == "fp8" else _INT8_OPSET)
    chosen = _chosen(artifact, model, set(names), options)
    bits = options.weight_bits or weight_bits_here()
    insertion = Insertion(model, chosen, ranges, number=number, bits=bits, correct=options.bias_correction)
    changes = _changes(model, chosen, number)
    quantised = insertion.run()
    ops = Counter(node.op_type for node in quantised.graph.node)
    changes |= {
        "QuantizeLinear inserted": ops["QuantizeLinear"],
        "DequantizeLinear inserted": ops["DequantizeLinear"],
        "biases corrected": insertion.corrected,
    }
    content = serialise(quantised, artifact.spec)
    settings = {"number": number, "method": ranges.method, "weight_bits": str(bits)}
    provenance = Provenance(stage, artifact.sha256, settings)
    made = store.put(content, artifact.spec, provenance, suffix=".onnx")
    return Built(made, changes, _notes(model, insertion, options))


def _chosen(artifact: Artifact, model: onnx.ModelProto, names: set[str], options: Int8Options) -> list[Layer]:
    layers = layers_of(model, attention=options.attention)
    unknown = sorted(names - {layer.name for layer in layers})
    if unknown:
        raise UsageError(
            f"{unknown[0]!r} is no layer of {artifact.path.name} that may be quantised",
            expected="names that layers_of returns: convolutions and linear layers, without heads",
            cause="a head or the first layer was named, or the names are those of another graph",
        )
    return [layer for layer in layers if layer.name in names]


def _at_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", versions.get("ai.onnx", 1)) >= least:
        return model
    graph = ir.from_proto(model)
    raise_opset(graph, least)
    raise_ir_version(graph)
    return ir.to_proto(graph)


def _changes(model: onnx.ModelProto, chosen: Collection[Layer], number: str) -> dict[str, int]:
    weighted = [layer for layer in chosen if layer.weight]
    convolutions = sum(layer.op_type == "Conv" for layer in weighted)
    name = number.upper()
    changes = {
        f"Conv to {name}": convolutions,
        f"Linear to {name}": len(weighted) - convolutions,
        f"attention products to {name}": len(chosen) - len(weighted),
        "Conv and Linear left in FP32": len(weighted_nodes(model)) - len(weighted),
    }
    with suppress(DataError):  # where only the image decides about shapes, the share is not known
        changes[f"percent of Conv and Linear operations in {name}"] = int(100 * flops_share(chosen, model))
    return changes


def _notes(model: onnx.ModelProto, insertion: Insertion, options: Int8Options) -> tuple[str, ...]:
    notes = []
    if insertion.without_bias:
        notes.append(f"{insertion.without_bias} layers have no bias of their own that could be corrected")
    fused = sum(node.op_type == "Attention" for node in model.graph.node)
    if options.attention and fused:
        notes.append(
            f"{fused} Attention operators keep their products in floating point: Q/DQ cannot stand inside; "
            "--lower attention takes them apart"
        )
    return tuple(notes)
