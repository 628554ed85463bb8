"""Faults put into the trained models of the examples: the module must be named, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

import fashion
import tiny_graphs
from diagnose.changes import copied, half
from vitesse.diagnose.command import Diagnosis, diagnose
from vitesse.fusion import clean_model, fuse_model
from vitesse.profile.modules import modules_of


def _found(path: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Diagnosis:
    model = copied(fuse_model(clean_model(onnx.load(path)).model).model)
    change(model)
    onnx.save(model, folder / "broken.onnx")
    data = fashion.FOLDER / ("detr" if path == fashion.DETR else "vit") / "val"
    return diagnose(folder / "broken.onnx", path, data, images=2)


def _layer(model: onnx.ModelProto, module: str, operator: str) -> onnx.NodeProto:
    places = modules_of(model).places
    return next(
        node
        for node, place in zip(model.graph.node, places, strict=True)
        if module in ".".join(place.path) and node.op_type == operator
    )


def test_a_weight_of_one_decoder_layer(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        name = _layer(model, "decoder.layers.1", "MatMul").input[1]
        tiny_graphs.set_weight(model, name, np.ascontiguousarray(tiny_graphs.weight(model, name)[::-1]))

    found = _found(fashion.DETR, tmp_path, change)
    assert found.cause == "stale_weights", "\n".join(found.lines())
    assert found.symptom is not None and "decoder.layers.1" in found.symptom.module


def test_a_layer_norm_without_its_epsilon(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "LayerNormalization":
                kept = [one for one in node.attribute if one.name != "epsilon"]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 5e-3)])

    found = _found(fashion.VIT, tmp_path, change)
    assert found.cause == "epsilon", "\n".join(found.lines())
    assert found.symptom is not None and found.symptom.operator == "LayerNormalization"


def test_corners_in_place_of_centre_and_size(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        corners = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], np.float32)
        tiny_graphs.set_weight(model, "corners", corners)
        tiny_graphs.insert_after(model, "boxes", "MatMul", "corners")

    found = _found(fashion.DETR, tmp_path, change)
    assert found.cause == "box_format", "\n".join(found.lines())


def test_half_precision_with_loud_pixels(tmp_path: Path) -> None:
    """The first layer's values are normalised later on, but go beyond FP16 before."""
    loud = fuse_model(clean_model(onnx.load(fashion.VIT)).model).model
    name = next(node for node in loud.graph.node if node.op_type == "Conv").input[1]
    tiny_graphs.set_weight(loud, name, tiny_graphs.weight(loud, name) * np.float32(5e4))
    onnx.save(loud, tmp_path / "original.onnx")
    onnx.save(half(lambda: loud)(), tmp_path / "half.onnx")
    data = fashion.FOLDER / "vit" / "val"
    found = diagnose(tmp_path / "half.onnx", tmp_path / "original.onnx", data, images=2)
    assert found.cause == "half_overflow", "\n".join(found.lines())
    assert found.symptom is not None
    assert (found.symptom.kind, found.symptom.operator, found.symptom.module) == (
        "overflow",
        "Conv",
        "embedding",
    )
    assert found.symptom.limit == 65504
    alone = diagnose(tmp_path / "half.onnx", None, data, images=2)
    assert (alone.cause, alone.symptom and alone.symptom.tensor) == ("half_overflow", found.symptom.tensor)
