"""Layers that read the same x → one, with their weights side by side; attention finds its part by an offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from vitesse.backends.torch_cuda.rewrite.layer import Array, Layer, dtype_named, shape_of, wide
from vitesse.backends.torch_cuda.rewrite.nodes import attribute, constant, initializer, is_step
from vitesse.backends.torch_cuda.rewrite.reasons import Notes
from vitesse.backends.torch_cuda.steps import DOMAIN
from vitesse.scopes import MODULE_SCOPES, common_path, path_of, scopes_note

_OFFSETS = ("q_offset", "k_offset", "v_offset")


def siblings(model: ir.Model, notes: Notes | None = None) -> int:
    """Merge `Linear` steps that read the same x, in place; returns how many became part of another one.

    Merged are layers that an `Attention` reads (queries, keys, values; keys and values of every layer of a decoder),
    without an activation and with a residual only where it is constant. What else reads one of them gets a Slice.
    """
    notes = Notes() if notes is None else notes
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in [node for node in model.graph if is_step(node, "Linear")]:
        if _for_attention(node):
            if reason := _refusal(node):
                notes[f"siblings: {reason}"] += 1
                continue
            layer = Layer.of(node)
            key = (layer.x, layer.weight.dtype, layer.scale is None, layer.out_dtype)
            groups.setdefault(key, []).append(node)
    families = [group for group in groups.values() if len(group) > 1]
    for group in families:
        _merge(model, group)
    return sum(len(group) - 1 for group in families)


def _for_attention(node: ir.Node) -> bool:
    return any(is_step(use.node, "Attention") and use.idx < len(_OFFSETS) for use in node.outputs[0].uses())


def _refusal(node: ir.Node) -> str:
    layer = Layer.of(node)
    if layer.activation or layer.out_scale > 0:
        return "queries, keys or values with an activation or in E4M3"
    if layer.residual is not None and constant(layer.residual) is None:
        return "queries, keys or values with a residual that is computed"
    return ""


def _merge(model: ir.Model, group: Sequence[ir.Node]) -> None:
    layers = [Layer.of(node) for node in group]
    first, name = layers[0], f"{group[0].outputs[0].name}_and_siblings"
    bias, residual = _summands(model, name, layers)
    merged = replace(
        first,
        weight=initializer(
            model, f"{name}_weight", np.concatenate([_array(layer.weight) for layer in layers], 1)
        ),
        scale=_joined_scale(model, name, layers),
        bias=bias,
        residual=residual,
        residual_first=0,
    )
    path = common_path([path_of(node.name or "", node.metadata_props) for node in group])
    scopes = {} if path is None else {MODULE_SCOPES: scopes_note(path, name)}
    inputs = [*merged.inputs]
    while inputs[-1] is None:
        inputs.pop()
    made = ir.node("Linear", inputs, merged.attributes, domain=DOMAIN, name=name, metadata_props=scopes)
    old, new = group[0].outputs[0], made.outputs[0]
    new.name, new.type, new.shape = name, old.type, ir.Shape([*shape_of(old)[:-1], merged.width])
    model.graph.insert_before(group[0], made)
    offsets = [0, *accumulate(layer.width for layer in layers)]
    for node, layer, offset in zip(group, layers, offsets, strict=False):
        _redirect(model, node, new, offset, layer.width)


def _joined_scale(model: ir.Model, name: str, layers: Sequence[Layer]) -> ir.Value | None:
    if layers[0].scale is None:
        return None
    parts = [np.broadcast_to(_array(layer.scale), (layer.width,)) for layer in layers]
    return initializer(model, f"{name}_scale", np.concatenate(parts))


def _summands(model: ir.Model, name: str, layers: Sequence[Layer]) -> tuple[ir.Value | None, ir.Value | None]:
    """(bias, residual) of all; where a layer has a constant residual, one residual holds all biases, too."""
    dtype = dtype_named(layers[0].out_dtype)
    biases = [constant(layer.bias) for layer in layers]
    vectors = [
        np.zeros(layer.width) if bias is None else wide(bias)
        for layer, bias in zip(layers, biases, strict=True)
    ]
    residuals = [constant(layer.residual) for layer in layers]
    shape = next((array.shape[:-1] for array in residuals if array is not None), None)
    if shape is None:
        if all(bias is None for bias in biases):
            return None, None
        total = np.concatenate(vectors).astype(next(bias.dtype for bias in biases if bias is not None))
        return initializer(model, f"{name}_bias", total), None
    parts = [
        np.broadcast_to(vector, (*shape, vector.size)) + (0.0 if array is None else wide(array))
        for vector, array in zip(vectors, residuals, strict=True)
    ]
    joined = np.concatenate(parts, -1).astype(dtype)
    return None, initializer(model, f"{name}_residual", joined)


def _redirect(model: ir.Model, node: ir.Node, merged: ir.Value, offset: int, width: int) -> None:
    """Let the readers of one of the merged layers read its channels [offset, offset + width)."""
    output = node.outputs[0]
    for reader, index in [*output.uses()]:
        if is_step(reader, "Attention") and index < len(_OFFSETS):
            name = _OFFSETS[index]
            reader.attributes[name] = ir.AttrInt64(name, attribute(reader, name, 0) + offset)
            reader.replace_input_with(index, merged)
    if output.uses() or output.is_graph_output():
        limits = [
            initializer(model, f"{output.name}_{part}", np.asarray([at], np.int64))
            for part, at in (("start", offset), ("end", offset + width), ("axis", -1))
        ]
        sliced = ir.node("Slice", [merged, *limits], name=node.name, metadata_props=dict(node.metadata_props))
        made = sliced.outputs[0]
        made.name, made.shape, made.type = output.name, output.shape, output.type
        model.graph.insert_before(node, sliced)
        ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _array(value: ir.Value | None) -> Array:
    array = constant(value)
    assert array is not None
    return array
