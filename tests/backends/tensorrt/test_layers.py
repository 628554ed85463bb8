"""The inspector's JSON of both generations, written down from their documented keys."""

from __future__ import annotations

import json

import pytest

from vitesse.backends.tensorrt.layers import Layer, io_tensors_of, layers_of
from vitesse.errors import BackendError

METADATA = "[ONNX Layer: /encoder/MatMul]\x1e[ONNX Layer: /encoder/Add]\x1e[ONNX Layer: /encoder/MatMul]"
OLD = {
    "Layers": [
        {
            "Name": "/encoder/MatMul + /encoder/Add",
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": METADATA,
        },
        {"Name": "q", "LayerType": "Reformat", "Outputs": [{"Name": "q", "Format/Datatype": "Int8"}]},
    ],
    "Bindings": ["x", "y"],
}
NEW = {
    "Layers": [
        {
            "Name": "fused",
            "LayerType": "kgen",
            "Outputs": [{"Name": "y", "Format": "Linear", "Datatype": "BFloat16"}],
            "Metadata": METADATA,
        },
        {"Name": "signal", "LayerType": "signal", "Outputs": []},
    ],
    "I/O Tensors": [{"Name": "x", "Datatype": "Float"}, {"Name": "y", "Datatype": "Half"}],
}
NODES = ("/encoder/MatMul", "/encoder/Add")


def test_up_to_10_format_and_type_are_one_text_and_io_stands_under_bindings() -> None:
    text = json.dumps(OLD)
    assert layers_of(text) == (
        Layer("/encoder/MatMul + /encoder/Add", "gemm", "fp16", NODES),
        Layer("q", "Reformat", "int8"),
    )
    assert io_tensors_of(text) == ("x", "y")


def test_from_11_on_they_are_two_and_io_stands_under_io_tensors() -> None:
    text = json.dumps(NEW)
    assert layers_of(text) == (Layer("fused", "kgen", "bf16", NODES), Layer("signal", "signal"))
    assert io_tensors_of(text) == ("x", "y")


def test_an_engine_that_kept_names_only_has_names_only() -> None:
    assert layers_of(json.dumps({"Layers": ["one", "two"]})) == (Layer("one"), Layer("two"))


def test_no_information_is_no_layer() -> None:
    assert layers_of("") == () and io_tensors_of("") == ()


@pytest.mark.parametrize("text", ['{"Layers": [', "[]", "7"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match="the layer information is no"):
        layers_of(text)
