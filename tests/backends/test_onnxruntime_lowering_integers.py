"""Q/DQ graphs for ONNX Runtime: the same numbers, and kernels that compute in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fusing import graph, normal, ops, run
from quantising import constants, quantised
from vitesse.backends.onnxruntime_lowering_integers import lower_quantised
from vitesse.fusion.shapes import infer_shapes


def lowered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    made = ir.from_proto(model)
    infer_shapes(made)
    counts = lower_quantised(made)
    RemoveUnusedNodesPass()(made)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto, counts


def kernels(model: onnx.ModelProto, folder: Path) -> set[str]:
    """The operators that ONNX Runtime makes of a graph by its optimiser."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return set(ops(onnx.load(folder / "optimised.onnx")))


def linear(body: str, shape: str) -> onnx.ModelProto:
    return graph(
        f"{body} n = Sigmoid(h) y = MatMul(n, head)",
        f"float[{shape},16] x",
        f"float[{shape},4] y",
        opset=18,
        w=normal(16, 32),
        b=normal(32, seed=1),
        head=normal(32, 4, seed=2),
    )


FORMS = {
    "tokens": ("p = MatMul(x, w) h = Add(p, b)", "1,5"),
    "tokens of any batch": ("p = MatMul(x, w) h = Add(b, p)", "N,5"),
    "a matrix": ("p = MatMul(x, w) h = Add(p, b)", "5"),
    "Gemm": ("h = Gemm(x, w, b)", "5"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_linear_layer_is_computed_in_integers_and_answers_the_same(
    tmp_path: Path, form: str, symmetric: bool
) -> None:
    body, shape = FORMS[form]
    model, _ = quantised(tmp_path, linear(body, shape), {"x": (-3.0, 3.0)}, symmetric=symmetric)
    made, counts = lowered(model)
    assert counts["biases_for_integers"] == 1
    assert counts["activations_unsigned"] == symmetric
    assert kernels(made, tmp_path) & {"MatMulIntegerToFloat", "QGemm"}
    x = {"x": normal(*((1, 5) if shape != "5" else (5,)), 16, seed=3)}
    # An int32 bias is rounded by half of activation scale · weight scale; a reading of the head sees 32 of them.
    np.testing.assert_allclose(run(made, x)[0], run(model, x)[0], atol=2e-3)


def test_without_it_a_layer_of_known_length_would_be_computed_in_floats(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path, linear(*FORMS["tokens"]), {"x": (-3.0, 3.0)}, symmetric=False)
    assert not kernels(model, tmp_path) & {"MatMulIntegerToFloat", "QGemm"}


def convolutions() -> onnx.ModelProto:
    return graph(
        """z = Conv(x, stem) a = Relu(z) b = Conv(a, w1) c = Relu(b) d = Conv(c, w2) e = Sigmoid(d)
           p = GlobalAveragePool(e) q = Flatten(p) y = MatMul(q, head)""",
        "float[1,3,6,6] x",
        "float[1,5] y",
        opset=18,
        stem=normal(16, 3, 1, 1),
        w1=normal(16, 16, 1, 1, seed=1),
        w2=normal(16, 16, 1, 1, seed=2),
        head=normal(16, 5),
    )


def test_a_symmetric_convolution_before_a_relu_runs_in_integers_with_exactly_the_same_numbers(
    tmp_path: Path,
) -> None:
    reach = dict.fromkeys("abcd", (-8.0, 8.0))
    model, _ = quantised(tmp_path, convolutions(), reach)
    made, counts = lowered(model)
    assert counts["convolutions_on_integers"] == 1
    assert counts["activations_unsigned"] == 3
    assert "QLinearConv" in kernels(made, tmp_path)
    assert "QLinearConv" not in kernels(model, tmp_path)
    for seed in range(5):
        x = {"x": 4 * normal(1, 3, 6, 6, seed=seed)}
        np.testing.assert_array_equal(run(made, x)[0], run(model, x)[0])


def test_a_uint8_convolution_needs_nothing(tmp_path: Path) -> None:
    reach = dict.fromkeys("abcd", (-8.0, 8.0))
    model, _ = quantised(tmp_path, convolutions(), reach, symmetric=False)
    _, counts = lowered(model)
    assert not counts["convolutions_on_integers"] and not counts["activations_unsigned"]
    assert "QLinearConv" in kernels(model, tmp_path)


def test_fp8_runs_under_every_optimisation_with_the_numbers_of_its_quantisers(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path, convolutions(), dict.fromkeys("abcd", (-8.0, 8.0)), number="fp8")
    made, counts = lowered(model)
    assert counts["fp8_by_casts"] == 6
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(made))
    assert not any(array.dtype.name.startswith("float8") for array in constants(made).values())
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = {"x": 40 * normal(1, 3, 6, 6)}
    np.testing.assert_allclose(session.run(None, x)[0], run(model, x)[0], rtol=1e-5, atol=1e-6)


def test_a_float_graph_stays_as_it_is() -> None:
    model = linear(*FORMS["tokens"])
    made, counts = lowered(model)
    assert not any(counts.values())
    assert ops(made) == ops(model)
