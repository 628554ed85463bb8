from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fusing import graph, normal
from vitesse.fusion import shapes

HEADS = (
    'r = Resize<mode="nearest">(x, , twice) a = Add(r, w) s = Shape(x) n = Gather(s, zero) '
    "z = Concat<axis=0>(n, rest) y = Reshape(a, z)"
)


def resized() -> ir.Model:
    model = graph(
        HEADS,
        "float[N,4,3,3] x, float[N,4,6,6] w",
        "float[A,B,C] y",
        twice=np.array([1, 1, 2, 2], np.float32),
        zero=np.array([0]),
        rest=np.array([4, 36]),
        large=normal(64, 64),
    )
    return ir.from_proto(model)


def dims(model: ir.Model, name: str) -> list[object]:
    value = next(value for node in model.graph for value in node.outputs if value.name == name)
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def test_the_batch_stays_one_symbol_through_resize_and_reshape() -> None:
    model = resized()
    weights = dict(model.graph.initializers)
    shapes.infer_shapes(model)
    assert dims(model, "a")[1:] == [4, 6, 6]
    assert dims(model, "r")[0] == dims(model, "a")[0] is not None
    assert dict(model.graph.initializers) == weights
    assert [value.name for value in model.graph.inputs] == ["x", "w"]


def test_a_wrong_note_of_the_exporter_is_dropped() -> None:
    model = resized()
    next(iter(model.graph)).outputs[0].shape = ir.Shape([1, 4, 7, 7])
    shapes.infer_shapes(model)
    assert dims(model, "r")[1:] == [4, 6, 6]


def test_an_operator_unknown_to_the_symbolic_inference_falls_back_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    model = resized()
    node = next(node for node in model.graph if node.op_type == "Resize")
    unknown = ir.node("Mystery", [node.outputs[0]], domain="custom")
    model.graph.append(unknown)
    model.graph.append(ir.node("Relu", [unknown.outputs[0]]))
    model.opset_imports["custom"] = 1
    with caplog.at_level("INFO"):
        shapes.infer_shapes(model)
    assert "symbolic shape inference gave up" in caplog.text
    assert dims(model, "a")[1:] == [4, 6, 6]
    assert list(tmp_path.iterdir()) == []
