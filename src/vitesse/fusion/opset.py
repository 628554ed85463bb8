"""Raising a model to a newer version of the ONNX operator set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnxscript.version_converter import ConvertVersionPass

from vitesse.errors import ModelError


def opset_of(model: ir.Model) -> int:
    """Version of the default operator domain the model imports."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))


def raise_opset(model: ir.Model, version: int) -> None:
    """Convert `model` in place to `version` of the default operator domain; weights are not copied.

    From opset 18 on onnxscript's converter does it; below that (where axes turn from attributes into inputs)
    it hands the graph, without its weights, to the converter of onnx itself.

    Raises:
        ModelError: an operator has no conversion, so the model stays at its version.
    """
    before = opset_of(model)
    if before >= version:
        return
    convertible = not (before < 21 <= version and _has_open_group_norm(model))
    if convertible:
        # onnx's own converter drops the notes on nodes, among them the module each belongs to.
        notes = {node.outputs[0].name: dict(node.metadata_props) for node in model.graph}
        with quiet("onnxscript.version_converter"):
            ConvertVersionPass(target_version=version, fallback=True)(model)
        for node in model.graph:
            for key, note in notes.get(node.outputs[0].name, {}).items():
                node.metadata_props.setdefault(key, note)
    if opset_of(model) != version:
        raise ModelError(
            f"the model cannot be raised from opset {before} to {version}",
            expected="operators that onnx's version converter knows",
            cause="an operator whose meaning changed between the two versions has no conversion",
            fix=f"export the model again with opset {version}",
        )


def _has_open_group_norm(model: ir.Model) -> bool:
    """Opset 21 has one scale per channel instead of per group; the converter skips it where shapes are open."""

    def is_open(value: ir.Value | None, axis: int) -> bool:
        return value is None or value.shape is None or not isinstance(value.shape[axis], int)

    return any(
        is_open(node.inputs[0], 1) or is_open(node.inputs[1], 0) or is_open(node.inputs[2], 0)
        for node in model.graph
        if node.op_type == "GroupNormalization" and node.domain == ""
    )


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Silence a logger of a library whose warnings are not for the user; the result is checked instead."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def raise_ir_version(model: ir.Model) -> None:
    """Set the file format version that the imported operator sets need, in place."""
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    needed = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)
