"""Lowered graphs give the same numbers in ONNX Runtime, with its optimiser off and on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from vitesse.backends.onnxruntime_lowering import lower

N, E, F = 5, 8, 12
RNG = np.random.default_rng(2)
WEIGHTS = {
    "wq": (E, E),
    "wk": (E, E),
    "wv": (E, E),
    "wo": (E, E),
    "w1": (E, F),
    "w2": (F, E),
    "b": (E,),
    "b1": (F,),
    "b3": (1, 1, E),
    "g": (E,),
    "half": (),
    "position": (1, N, E),
}
ARRAYS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in WEIGHTS.items()}
LAYER = (
    "p = Add(x, position) qm = MatMul(p, wq) q = Add(qm, b) km = MatMul(p, wk) k = Add(b, km) "
    "vm = MatMul(x, wv) v = Add(vm, b3) a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v) "
    "om = MatMul(a, wo) o = Add(om, b) s = Add(x, o) n = LayerNormalization<axis=-1, epsilon=1e-6>(s, g, b) "
    "hm = MatMul(n, w1) h = Add(hm, b1) r = Relu(h) z = Mul(r, half) m = MatMul(z, w2) f = Add(m, b) t = Add(n, f) "
    "y = LayerNormalization<axis=2>(t, g, b)"
)


def parse(body: str, x: str, y: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g ({x}) => ({y}) {{ {body} }}'
    )
    used = {name for node in model.graph.node for name in node.input}
    for name, array in ARRAYS.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.helper.set_model_props(model, {"task": "classify"})
    return model


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any], level: str) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(output) for output in session.run(None, {"x": x})]


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize(("declared", "batch"), [("b", 1), ("b", 3), ("1", 1), ("2", 2)])
def test_linear_layers_on_matrices_give_the_same_numbers(declared: str, batch: int, level: str) -> None:
    model = parse(LAYER, f"float[{declared},{N},{E}] x", f"float[{declared},{N},{E}] y")
    before = model.SerializeToString()
    lowered, counts = lower(model)
    onnx.checker.check_model(lowered, full_check=True)
    assert model.SerializeToString() == before
    assert counts["linear_layers_on_matrices"] == ops(lowered)["Gemm"] == 6
    assert ops(lowered)["MatMul"] == 0
    x = RNG.standard_normal((batch, N, E)).astype(np.float32)
    np.testing.assert_allclose(run(lowered, x, level)[0], run(model, x, "ORT_DISABLE_ALL")[0], atol=2e-5)


def test_inputs_outputs_and_metadata_stay_as_they_are() -> None:
    model = parse(LAYER, f"float[b,{N},{E}] x", f"float[b,{N},{E}] y")
    lowered, _ = lower(model)
    assert lowered.graph.input == model.graph.input
    assert lowered.graph.output == model.graph.output
    assert lowered.metadata_props == model.metadata_props


def test_an_inner_result_that_is_an_output_keeps_its_three_axes_and_name() -> None:
    model = parse(LAYER, f"float[b,{N},{E}] x", f"float[b,{N},{E}] y, float[b,{N},{E}] n")
    lowered, counts = lower(model)
    assert counts["linear_layers_on_matrices"] == 6
    x = RNG.standard_normal((2, N, E)).astype(np.float32)
    for got, wanted in zip(run(lowered, x, "ORT_ENABLE_ALL"), run(model, x, "ORT_DISABLE_ALL"), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_product_read_twice_keeps_its_matmul() -> None:
    model = parse("m = MatMul(x, wq) c = Add(m, b) d = Mul(m, c) e = MatMul(d, wo) y = Add(e, b)",
                  f"float[b,{N},{E}] x", f"float[b,{N},{E}] y")  # fmt: skip
    lowered, counts = lower(model)
    assert counts["linear_layers_on_matrices"] == 1 and ops(lowered)["MatMul"] == 1
    x = RNG.standard_normal((2, N, E)).astype(np.float32)
    np.testing.assert_allclose(
        run(lowered, x, "ORT_ENABLE_ALL")[0], run(model, x, "ORT_DISABLE_ALL")[0], atol=2e-5
    )


LEFT_ALONE = {
    "batch and tokens both dynamic": (
        "m = MatMul(x, wq) c = Add(m, b) d = MatMul(c, wo) y = Add(d, b)",
        f"float[b,n,{E}] x",
        f"float[b,n,{E}] y",
    ),
    "more reshapes than linear layers are worth": (
        "u = Softmax<axis=1>(x) w = Softmax<axis=1>(u) s = Add(u, w) m = MatMul(s, wq) y = Add(m, b) z = Relu(s)",
        f"float[b,{N},{E}] x",
        f"float[b,{N},{E}] y, float[b,{N},{E}] z, float[b,{N},{E}] s",
    ),
    "no bias": ("m = MatMul(x, wq) y = Relu(m)", f"float[b,{N},{E}] x", f"float[b,{N},{E}] y"),
    "two computed operands": (
        "k = Transpose<perm=[0,2,1]>(x) m = MatMul(x, k) y = Relu(m)",
        f"float[b,{N},{E}] x",
        f"float[b,{N},{N}] y",
    ),
    "normalised over tokens and width": (
        "gg = Add(position, b) g2 = Squeeze(gg) y = LayerNormalization<axis=1>(x, g2)",
        f"float[b,{N},{E}] x",
        f"float[b,{N},{E}] y",
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_would_not_pay_or_not_fit_is_left_alone(case: str) -> None:
    model = parse(*LEFT_ALONE[case])
    lowered, counts = lower(model)
    assert not any(counts.values())
    assert ops(lowered) == ops(model)
