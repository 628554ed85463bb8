"""Emulated half precision against numpy's own float16, and against bfloat16 of ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from vitesse.errors import ModelError
from vitesse.precision.emulation import computes_in_half, emulated, is_half
from vitesse.scopes import MODULE_SCOPES
from vitesse.verify.taps import Taps

HALF = np.float16
F16, BF16, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def _half_graph(
    body: str, inputs: str = "float16[N,8] x", outputs: str = "float16[N,8] y", **constants: object
):
    return graph(body, inputs, outputs, **constants)


def _result(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return run(emulated(model), {"x": x.astype(np.float32)})[0]


def test_a_product_beyond_65504_becomes_infinite_as_in_numpy():
    model = _half_graph("y = Mul(x, x)")
    x = np.array([[1, 200, 255, 256, 300, -300, 0.1, 1e-4]], HALF)
    with np.errstate(over="ignore", under="ignore"):
        expected = x * x
    assert np.isinf(expected).sum() == 3
    np.testing.assert_array_equal(_result(model, x), expected.astype(np.float32))


def test_values_below_the_smallest_number_become_zero_and_small_ones_lose_digits():
    model = _half_graph("y = Mul(x, c)", c=np.array(2.0**-14, HALF))
    x = np.array([[1, 2.0**-10, 2.0**-11, 2.0**-12, 3 * 2.0**-11, 1.001, 1e-3, 1e-2]], HALF)
    with np.errstate(under="ignore"):
        expected = x * HALF(2.0**-14)
    assert expected[0, 2] == 0 and expected[0, 3] == 0 and expected[0, 4] != 0
    np.testing.assert_array_equal(_result(model, x), expected.astype(np.float32))


def test_a_decomposed_layernorm_overflows_in_pow_exactly_where_numpy_does():
    body = """
        mean = ReduceMean<axes = [-1]>(x)
        centred = Sub(x, mean)
        squares = Pow(centred, two)
        variance = ReduceMean<axes = [-1]>(squares)
        safe = Add(variance, epsilon)
        deviation = Sqrt(safe)
        y = Div(centred, deviation)
    """
    model = _half_graph(body, two=np.array(2, HALF), epsilon=np.array(1e-5, HALF))
    x = (normal(3, 8, seed=1) * np.array([[1], [40], [400]])).astype(HALF)
    with np.errstate(over="ignore"):
        centred = x - x.mean(-1, keepdims=True)
        squares = centred ** HALF(2)
        deviation = np.sqrt(squares.mean(-1, keepdims=True) + HALF(1e-5))
        expected = centred / deviation
    assert np.isinf(squares[2]).any() and not np.isinf(squares[:2]).any()
    np.testing.assert_array_equal(_result(model, x), expected.astype(np.float32))


def test_a_matrix_product_is_summed_in_float32_and_rounded_once():
    model = _half_graph("y = MatMul(x, w)", w=np.ones((8, 8), HALF))
    # In FP16 2048 + 1 = 2048; summed in FP32 the ones count.
    x = np.array([[2048, 1, 1, 1, 1, 1, 1, 0]], HALF)
    expected = (x.astype(np.float32) @ np.ones((8, 8), np.float32)).astype(HALF)
    assert expected[0, 0] == 2054
    np.testing.assert_array_equal(_result(model, x), expected.astype(np.float32))


def test_bfloat16_keeps_the_range_of_float32_and_eight_digits_of_two():
    model = graph("y = Mul(x, x)", "bfloat16[N,8] x", "bfloat16[N,8] y")
    x = normal(4, 8, seed=2) * 1e4
    rounded = x.astype(ml_dtypes.bfloat16)
    expected = (rounded * rounded).astype(np.float32)
    found = _result(model, x)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all() and found.max() > 65504


def test_scores_of_attention_are_rounded_as_an_unfused_kernel_does():
    body = "y = Attention<scale = 1.0>(x, x, x)"
    model = graph(body, "float16[N,1,4,8] x", "float16[N,1,4,8] y", opset=23)
    x = np.full((1, 1, 4, 8), 100, HALF)  # 8 · 100 · 100 = 80,000
    assert ops(emulated(model))["Attention"] == 0
    assert np.isnan(_result(model, x)).all()
    np.testing.assert_array_equal(_result(model, x / 2), (x / 2).astype(np.float32))


def test_every_tensor_is_tapped_by_its_own_name_and_rounded():
    model = _half_graph("third = Div(x, three) y = Add(third, third)", three=np.array(3, HALF))
    model.graph.node[0].name, model.graph.node[1].name = "/block/Div", "/block/Add"
    found = emulated(model)
    assert {"/block/Div", "/block/Add"} <= {node.name for node in found.graph.node}
    third = dict(Taps(found, ["third"]).run({"x": np.ones((1, 8), np.float32)}))["third"]
    assert third.dtype == np.float32
    np.testing.assert_array_equal(third, np.full((1, 8), HALF(1) / HALF(3), np.float32))
    assert all(
        any(entry.key == MODULE_SCOPES and "block" in entry.value for entry in node.metadata_props)
        for node in found.graph.node
        if node.op_type == "Cast" and node.input[0].startswith(("third", "y"))
    )


def test_inputs_outputs_and_constants_are_float32_afterwards():
    model = _half_graph("y = Add(x, c)", check=False)
    tenth = onnx.numpy_helper.from_array(np.array([0.1], HALF))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=tenth))
    found = emulated(model)
    kinds = [entry.type.tensor_type.elem_type for entry in (*found.graph.input, *found.graph.output)]
    assert kinds == [FLOAT, FLOAT]
    x = np.full((1, 8), 0.3, np.float32)  # not yet a number of FP16: rounded before it is read
    expected = (x.astype(HALF) + HALF(0.1)).astype(np.float32)
    np.testing.assert_array_equal(run(found, {"x": x})[0], expected)


def test_both_branches_of_a_subgraph_round():
    body = """
        y = If (flag) <then_branch = yes () => (float16[N,8] a) { a = Mul(x, x) },
                       else_branch = no () => (float16[N,8] b) { b = Div(x, three) }>
    """
    model = _half_graph(body, "bool flag, float16[N,8] x", check=False, three=np.array(3, HALF))
    found = emulated(model)
    x = np.full((1, 8), 300, np.float32)
    feeds = {"x": x, "flag": np.array(True)}
    assert np.isinf(run(found, feeds)[0]).all()
    expected = (HALF(300) / HALF(3)) * np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(run(found, feeds | {"flag": np.array(False)})[0], expected)


def test_quantising_nodes_with_scales_in_half_work():
    body = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
    model = graph(
        body, "float16[N,8] x", "float16[N,8] y", opset=19, s=np.array(0.1, HALF), z=np.array(0, np.int8)
    )
    x = np.array([[0, 0.04, 0.06, 1, 5, 12.7, 100, -100]], HALF)
    steps = np.clip(np.round(x.astype(np.float32) / np.float32(HALF(0.1))), -128, 127)
    expected = (steps * np.float32(HALF(0.1))).astype(HALF).astype(np.float32)
    np.testing.assert_array_equal(_result(model, x), expected)


def test_nodes_that_a_converter_left_out_of_order_are_put_in_order():
    model = _half_graph("t = Mul(x, x) y = Neg(t)")
    first = model.graph.node.pop(0)
    model.graph.node.append(first)
    np.testing.assert_array_equal(_result(model, np.full((1, 8), 3, HALF)), np.full((1, 8), -9, np.float32))


def test_a_float32_graph_comes_back_as_it_is():
    model = graph("y = Mul(x, x)", "float[N,8] x", "float[N,8] y")
    assert emulated(model) is model


@pytest.mark.parametrize(
    ("body", "inputs", "outputs", "half"),
    [
        ("y = Mul(x, x)", "float[N] x", "float[N] y", False),
        ("y = Mul(x, x)", "float16[N] x", "float16[N] y", True),
        ("t = Cast<to = 10>(x) y = Cast<to = 1>(t)", "float[N] x", "float[N] y", True),
        ("t = Cast<to = 16>(x) y = Cast<to = 1>(t)", "float[N] x", "float[N] y", True),
        ("t = Cast<to = 7>(x) y = Cast<to = 1>(t)", "float[N] x", "float[N] y", False),
        ("c = Constant<value = float16[1] {1}>() t = Cast<to = 1>(c) y = Add(x, t)", "float[N] x", "float[N] y", True),
        (
            "y = If (f) <then_branch = a () => (float[N] p) { h = Cast<to = 10>(x) p = Cast<to = 1>(h) },"
            " else_branch = b () => (float[N] q) { q = Neg(x) }>",
            "bool f, float[N] x",
            "float[N] y",
            True,
        ),
    ],
)  # fmt: skip
def test_half_is_found_wherever_it_can_begin(body: str, inputs: str, outputs: str, half: bool):
    assert is_half(graph(body, inputs, outputs, check=False)) is half


def test_local_functions_are_refused_in_words():
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float16[N] x) => (float16[N] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 17]> f (a) => (b) { b = Mul(a, a) }"""
    with pytest.raises(ModelError, match="local functions") as refusal:
        emulated(onnx.parser.parse_model(text))
    assert "clean it first" in str(refusal.value)


def test_sequences_are_refused_in_words():
    body = "s = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(s)"
    with pytest.raises(ModelError, match="is a SequenceConstruct") as refusal:
        emulated(graph(body, "float16[N] x", "float16[M] y"))
    assert "tensors only" in str(refusal.value)


def test_headroom_ends_the_range_earlier_and_changes_nothing_below():
    model = _half_graph("y = Mul(x, c)", c=np.array(1, HALF))
    # With a headroom of 4 FP16 ends at 65504 / 4 = 16376; the next number is 16384.
    x = np.array([[16376, 16384, -16384, 65504, 0.1, 2.0**-24, 2.0**-14, 1]], np.float32)
    found = run(emulated(model, headroom=4), {"x": x})[0]
    expected = x.astype(HALF).astype(np.float32)
    expected[0, 1:4] = [np.inf, -np.inf, np.inf]
    np.testing.assert_array_equal(found, expected)


def test_weights_stored_in_half_and_widened_are_no_computing_in_half() -> None:
    """As the example models are stored: a Cast to float32 behind every weight."""
    stored = graph(
        "v = Cast<to=1>(w) y = Mul(x, v)", "float[2] x", "float[2] y", w=np.array([1.5, 2.5], HALF)
    )
    assert is_half(stored)
    assert not computes_in_half(stored)
    rounding = graph(
        "h = Cast<to=10>(x) v = Mul(h, w) y = Cast<to=1>(v)",
        "float[2] x",
        "float[2] y",
        w=np.array([1.5, 2.5], HALF),
    )
    assert computes_in_half(rounding)
