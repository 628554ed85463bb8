"""What is right must be called healthy: a gate that cries wolf is switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import fashion
import tiny_graphs
from diagnose.changes import copied, quantised
from vitesse.data.images import decode_image
from vitesse.data.preprocess import feeds
from vitesse.diagnose.command import diagnose
from vitesse.fusion import clean_model, fuse_model
from vitesse.metadata import read_spec, write_spec
from vitesse.verify.taps import Taps

MODELS = {
    fashion.DETR: fashion.FOLDER / "detr" / "val",
    fashion.VIT: fashion.FOLDER / "vit" / "val",
}
both = pytest.mark.parametrize("path", MODELS, ids=["detr", "vit"])


def _fused(path: Path) -> onnx.ModelProto:
    return fuse_model(clean_model(onnx.load(path)).model).model


@both
def test_a_model_against_itself_is_healthy(path: Path) -> None:
    found = diagnose(path, path, MODELS[path], images=3)
    assert found.healthy, found.lines()
    assert (found.cause, found.symptom, found.causes, found.outputs) == ("", None, (), ())


@both
def test_a_cleaned_and_fused_model_is_healthy(path: Path, tmp_path: Path) -> None:
    onnx.save(_fused(path), tmp_path / "fused.onnx")
    found = diagnose(tmp_path / "fused.onnx", path, MODELS[path], images=3)
    assert found.healthy, found.lines()


@both
def test_int8_with_fitting_ranges_and_heads_in_float_is_healthy(path: Path, tmp_path: Path) -> None:
    model, pictures = _fused(path), sorted(MODELS[path].rglob("*.*g"))[:3]
    spec = read_spec(onnx.load(path))
    assert spec is not None
    stored = {tensor.name for tensor in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in stored
    ]
    read = list(dict.fromkeys(node.input[0] for node in layers[1:-4]))
    taps = Taps(model, read, optimised=False)
    peaks = dict.fromkeys(read, 0.0)
    for picture in pictures:
        for name, value in taps.run(feeds([decode_image(picture)], spec)):
            peaks[name] = max(peaks[name], float(np.abs(np.asarray(value, np.float64)).max()))
    rounded = copied(model)
    for name, peak in peaks.items():
        quantised(name, peak / 127)(rounded)
    onnx.save(rounded, tmp_path / "int8.onnx")
    found = diagnose(tmp_path / "int8.onnx", path, MODELS[path], images=4)
    assert len(read) > 20
    assert found.healthy, found.lines()


def test_the_same_ranges_a_tenth_as_wide_are_not_healthy(tmp_path: Path) -> None:
    """The test above could pass for a diagnosis that finds nothing."""
    path = fashion.VIT
    model = _fused(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    read = [
        node.input[0] for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stored
    ]
    rounded = copied(model)
    for name in dict.fromkeys(read):
        quantised(name, 0.1 / 127)(rounded)
    onnx.save(rounded, tmp_path / "int8.onnx")
    found = diagnose(tmp_path / "int8.onnx", path, MODELS[path], images=4)
    assert found.cause == "calibrated_on_other_images", found.lines()


def test_other_names_of_inputs_outputs_and_tensors_are_no_fault(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    onnx.save(write_spec(model, tiny_graphs.detector_spec()), tmp_path / "a.onnx")
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    for node in model.graph.node:
        node.input[:] = [f"{name}_2" for name in node.input]
        node.output[:] = [f"{name}_2" for name in node.output]
    for entry in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        assert entry.name in names
        entry.name += "_2"
    onnx.save(model, tmp_path / "b.onnx")
    found = diagnose(tmp_path / "b.onnx", tmp_path / "a.onnx", images=3)
    assert found.healthy, found.lines()
