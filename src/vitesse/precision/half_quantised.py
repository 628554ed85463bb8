"""A float32 graph with Q/DQ pairs → the same graph whose other tensors are FP16: what a GPU wants of INT8 and FP8.

TensorRT's networks are strongly typed, so that what is not quantised runs in the type that the file says. The scales
are FP16, too, as long as FP16 can hold them. Below 2⁻¹⁴ it loses digits and below 2⁻²⁵ everything; a layer with such a
scale keeps all its scales in FP32, between casts. All, because TensorRT multiplies the scales of a layer's two sides
and refuses types that differ. Which forms it takes was measured: docs/quantisation.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from vitesse.artifact import Provenance, Store
from vitesse.backends.protocol import Built
from vitesse.errors import ModelError
from vitesse.fusion.opset import raise_ir_version, raise_opset
from vitesse.metadata import serialise
from vitesse.precision.half_casts import HALF_TYPES, HalfGraph, largest_number, rounded_constant
from vitesse.precision.half_search import Wiring
from vitesse.precision.layers import OP_TYPES
from vitesse.recipe import HalfOptions
from vitesse.sources.onnx_file import load_onnx

NUMBER = "fp16"
# The first opset in which scales may be FP16; in older graphs all stay FP32 between casts.
_OPSET = 19
# Eight bits round by up to half a step in 127, 0.4 %; a scale that is off by a quarter of that is not felt.
_SCALE_ERROR = 2.0**-10
# The largest magnitude that a stored number can have: of uint8 255, of int8 128, of E4M3 448.
_STORED = 448
_SCALE = 1
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


def half_quantised(
    model: onnx.ModelProto, islands: Collection[str], options: HalfOptions
) -> tuple[onnx.ModelProto, Mapping[str, int]]:
    """Write a Q/DQ graph with FP16 where it has float32, stored integers and E4M3 numbers as they are.

    Args:
        model: a cleaned float32 graph with Q/DQ pairs, as `precision.quantize` writes it.
        islands: names of nodes that stay in FP32, as `half.find_islands` names them on the graph that was quantised;
            the scales round a layer that is an island stay FP32, too.
        options: `keep_io` is used.

    Returns:
        The model, and what changed.

    Raises:
        ModelError: the graph is not valid, has local functions, or has no Q/DQ pair.
    """
    graph = HalfGraph(_raised(model), NUMBER)
    quantisers = [node for node in graph.float_model.graph.node if node.op_type in _QUANTISERS]
    if not quantisers:
        raise ModelError(
            "the graph has no QuantizeLinear or DequantizeLinear",
            expected="a graph that was quantised: layers between Q/DQ pairs",
            cause="the float32 graph was given, or no layer of it may be quantised",
            fix="quantise it first, or write it in FP16 by precision.half.to_half",
        )
    wide = _in_fp32(graph.float_model, set(islands))
    written = graph.written({*islands, *wide}, keep_io=options.keep_io)
    kept = sum(name in islands for name in graph.convertible)
    able = {name for name in graph.convertible if name not in wide}
    changes = {
        "nodes in FP16": len(able) - kept,
        "nodes in FP32 islands": kept,
        "quantisers with FP16 scales": sum(node.name in able for node in quantisers),
        "quantisers with FP32 scales": sum(node.name not in able for node in quantisers),
        "Cast inserted": _casts(written) - _casts(graph.float_model),
    }
    return written, changes


def to_half_quantised(
    quantised: Built, store: Store, islands: Collection[str], options: HalfOptions, *, stage: str
) -> Built:
    """Store what `half_quantised` makes of a quantised artifact, with both steps' changes; raises as that does."""
    artifact = quantised.artifact
    model, changes = half_quantised(load_onnx(artifact.path), islands, options)
    made = store.put(
        serialise(model, artifact.spec), artifact.spec, Provenance(stage, artifact.sha256), suffix=".onnx"
    )
    before = {
        name.replace("left in FP32", "left in float"): count for name, count in quantised.changes.items()
    }
    return Built(made, {**before, **changes}, quantised.notes)


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    with suppress(ModelError):  # in an older graph every scale stays FP32, which is as right
        raise_opset(graph, _OPSET)
        raise_ir_version(graph)
    return ir.to_proto(graph)


def _casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def _in_fp32(model: onnx.ModelProto, islands: set[str]) -> set[str]:
    """Names of the quantisers whose scales stay FP32: those of an island, and those of a layer that FP16 would harm."""
    nodes = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    wide: set[str] = set()
    for group in Wiring(model).groups(_layers_and_dequantisers(model, makers)):
        members = [nodes[name] for name in group]
        dequantisers = [node for node in members if node.op_type == "DequantizeLinear"]
        if islands.isdisjoint(group) and all(_fits(scales.get(node.input[_SCALE])) for node in dequantisers):
            continue
        wide.update(node.name for node in dequantisers)
        # Quantising and taking back have the same scale.
        quantisers = (makers.get(node.input[0]) for node in dequantisers)
        wide.update(node.name for node in quantisers if node is not None)
    return wide


def _layers_and_dequantisers(model: onnx.ModelProto, makers: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """Names of what takes numbers back from eight bits, and of the layers that read them."""
    for node in model.graph.node:
        read = [makers[name].op_type for name in node.input[:2] if name in makers]
        if node.op_type == "DequantizeLinear" or (node.op_type in OP_TYPES and "DequantizeLinear" in read):
            yield node.name


def _fits(scale: onnx.TensorProto | None) -> bool:
    """Whether FP16 holds a scale, and every number stored with it, well enough; one made at run time is not known."""
    if scale is None:
        return False
    exact = np.asarray(numpy_helper.to_array(scale), np.float64)
    rounded: NDArray[np.float64] = rounded_constant(exact, HALF_TYPES[NUMBER]).astype(np.float64)
    precise = np.abs(rounded - exact) <= _SCALE_ERROR * np.abs(exact)
    return bool(precise.all() and exact.max(initial=0) * _STORED <= largest_number(HALF_TYPES[NUMBER]))
