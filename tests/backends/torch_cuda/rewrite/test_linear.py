"""Matrix products with constant weights become steps with what follows them; what does not fit stays outside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, rewritten, static
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.reasons import Notes

X = {"x": normal(2, 5, 8)}
W, B, SQUARE = normal(8, 6, seed=1), normal(6, seed=2), normal(8, 8, seed=3)
IN, OUT = "float[N,5,8] x", "float[N,5,6] y"
BIASED = "p = MatMul(x, w) c = Add(p, b)"


def of(body: str, inputs: str = IN, outputs: str = OUT, **constants: np.ndarray) -> onnx.ModelProto:
    return graph(body, inputs, outputs, opset=20, check=False, **constants)


def why_not(model: onnx.ModelProto, feeds: dict[str, np.ndarray] = X) -> tuple[str, ...]:
    notes = Notes()
    rewritten(model, feeds, lambda made: linear(made, notes))
    return notes.lines()


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("y = Relu(c)", "relu"),
        ("y = Sigmoid(c)", "sigmoid"),
        ("y = Gelu(c)", "gelu"),
        ('y = Gelu <approximate = "tanh"> (c)', "gelu_tanh"),
        ("s = Sigmoid(c) y = Mul(c, s)", "silu"),
    ],
)
def test_bias_and_activation_are_absorbed(activation: str, name: str) -> None:
    made = rewritten(of(f"{BIASED} {activation}", w=W, b=B), X, linear)
    assert kinds(made) == {":Linear": 1}
    assert keywords(only(made, "Linear"))["activation"] == name


def test_a_residual_behind_the_activation_is_added_behind_it() -> None:
    feeds = {**X, "r": normal(2, 5, 6, seed=4)}
    made = rewritten(
        of(f"{BIASED} a = Gelu(c) y = Add(r, a)", f"{IN}, float[N,5,6] r", w=W, b=B), feeds, linear
    )
    assert kinds(made) == {":Linear": 1}
    assert (keywords(only(made, "Linear"))["residual_first"], given(only(made, "Linear"))[4]) == (0, "r")


def test_a_residual_in_front_of_the_activation_is_added_in_front_of_it() -> None:
    feeds = {**X, "r": normal(2, 5, 6, seed=4)}
    made = rewritten(
        of(f"{BIASED} s = Add(c, r) y = Relu(s)", f"{IN}, float[N,5,6] r", w=W, b=B), feeds, linear
    )
    assert kinds(made) == {":Linear": 1}
    assert keywords(only(made, "Linear"))["residual_first"] == 1


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6)])
def test_a_constant_that_the_batch_shares_is_a_residual_without_a_batch(shape: tuple[int, ...]) -> None:
    made = rewritten(of(f"{BIASED} y = Add(c, p0)", w=W, b=B, p0=normal(*shape, seed=5)), X, linear)
    residual = only(made, "Linear").inputs[4]
    assert kinds(made) == {":Linear": 1}
    assert residual is not None and residual.shape == (5, 6)


def test_a_product_of_two_layers_that_are_added_adds_in_the_later_one() -> None:
    body = "p = MatMul(x, w) q = MatMul(x, v) y = Add(q, p)"
    made = rewritten(of(body, w=W, v=normal(8, 6, seed=6)), X, linear)
    assert kinds(made) == {":Linear": 2}
    first, last = made.graph
    assert first.outputs[0] is last.inputs[4]


def test_a_residual_that_is_computed_later_is_there_when_it_is_read() -> None:
    body = f"{BIASED} t = Tanh(x) q = MatMul(t, v) r = Tanh(q) y = Add(c, r)"
    made = rewritten(of(body, w=W, b=B, v=normal(8, 6, seed=6)), X, linear)
    assert kinds(made) == {":Linear": 2, "Tanh": 2}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{BIASED} y = Relu(c) z = Neg(c)", {"Relu": 1, "Neg": 1}),
        (f"{BIASED} y = Relu(c) z = Identity(p)", {"Add": 1, "Relu": 1}),
    ],
)
def test_what_is_read_elsewhere_is_computed_outside(body: str, left: dict[str, int]) -> None:
    made = rewritten(of(body, outputs=f"{OUT}, float[N,5,6] z", w=W, b=B), X, linear)
    assert {kind: times for kind, times in kinds(made).items() if kind not in (":Linear", "Identity")} == left


def test_a_bias_that_is_computed_for_every_image_stays_outside() -> None:
    feeds = {**X, "r": normal(2, 1, 6, seed=4)}
    model = of("p = MatMul(x, w) y = Add(p, r)", f"{IN}, float[N,1,6] r", w=W)
    assert kinds(rewritten(model, feeds, linear)) == {":Linear": 1, "Add": 1}
    assert why_not(model, feeds) == ("linear: a residual is broadcast in another way than over the batch",)


def test_only_one_residual_is_absorbed() -> None:
    feeds = {**X, "r": normal(2, 5, 6, seed=4), "s": normal(2, 5, 6, seed=5)}
    model = of("p = MatMul(x, w) q = Add(p, r) y = Add(q, s)", f"{IN}, float[N,5,6] r, float[N,5,6] s", w=W)
    assert kinds(rewritten(model, feeds, linear)) == {":Linear": 1, "Add": 1}
    assert why_not(model, feeds) == ("linear: a second residual",)


def test_a_weight_that_is_computed_is_no_layer() -> None:
    feeds = {**X, "w": W}
    assert kinds(rewritten(of("y = MatMul(x, w)", f"{IN}, float[8,6] w"), feeds, linear)) == {"MatMul": 1}


def test_a_constant_on_the_left_is_no_layer() -> None:
    model = of("y = MatMul(w, x)", outputs="float[N,7,8] y", w=normal(7, 5))
    assert kinds(rewritten(model, X, linear)) == {"MatMul": 1}


def test_a_weight_for_every_image_is_left_alone_and_noted() -> None:
    model = of("y = MatMul(x, w)", w=normal(2, 8, 6, seed=7))
    assert kinds(rewritten(model, X, linear)) == {"MatMul": 1}
    assert why_not(model) == ("linear: a constant is multiplied that has 3 axes, not 2",)


def test_gemm_is_a_layer_whose_factors_are_in_its_constants() -> None:
    feeds = {"x": normal(3, 8)}
    body = "y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)"
    made = rewritten(of(body, "float[N,8] x", "float[N,6] y", w=W.T.copy(), b=B), feeds, linear)
    step = only(made, "Linear")
    assert kinds(made) == {":Linear": 1}
    assert step.inputs[1] is not None and step.inputs[1].shape == (8, 6)


def test_gemm_of_a_transposed_input_is_left_alone() -> None:
    feeds = {"x": normal(8, 3)}
    model = of("y = Gemm <transA = 1> (x, w, b)", "float[8,N] x", "float[N,6] y", w=W, b=B)
    assert kinds(rewritten(model, feeds, linear)) == {"Gemm": 1}
    assert why_not(model, feeds) == ("linear: Gemm transposes its first input",)


def test_a_factor_for_each_channel_goes_into_weight_and_bias() -> None:
    feeds = {**X, "r": normal(2, 5, 6, seed=4)}
    body = f"{BIASED} m = Mul(c, g) y = Add(m, r)"
    made = rewritten(of(body, f"{IN}, float[N,5,6] r", w=W, b=B, g=normal(6, seed=9)), feeds, linear)
    assert kinds(made) == {":Linear": 1}


def test_a_factor_that_would_cost_the_weights_their_digits_stays_outside() -> None:
    half = {"x": normal(2, 5, 8).astype(np.float16)}
    body, small = "p = MatMul(x, w) y = Mul(p, g)", np.full(6, 1e-5, np.float16)
    model = of(body, "float16[N,5,8] x", "float16[N,5,6] y", w=W.astype(np.float16), g=small)
    graph_made, notes = static(model, half), Notes()
    assert linear(graph_made, notes) == 1
    assert kinds(graph_made) == {":Linear": 1, "Mul": 1}
    assert notes.lines() == ("linear: a factor would leave the weights too few digits in float16",)


def test_a_result_that_is_read_in_float32_is_not_rounded_before() -> None:
    half = {"x": normal(2, 5, 8).astype(np.float16)}
    body = "p = MatMul(x, w) c = Add(p, b) y = Cast <to = 1> (c)"
    model = of(body, "float16[N,5,8] x", w=W.astype(np.float16), b=B.astype(np.float16))
    made = rewritten(model, half, linear, atol=2e-3)
    assert kinds(made) == {":Linear": 1}
    assert keywords(only(made, "Linear"))["out_dtype"] == "float32"


def test_rows_that_are_flattened_for_the_layer_alone_are_not() -> None:
    rows, back = np.array([-1, 8], np.int64), np.array([-1, 5, 6], np.int64)
    body = "f = Reshape(x, rows) c = Gemm(f, w, b) y = Reshape(c, back)"
    made = rewritten(of(body, w=W, b=B, rows=rows, back=back), X, linear)
    assert list(shape := only(made, "Linear").inputs[0].shape or ()) == [2, 5, 8], shape
    assert "y" in {output.name for output in only(made, "Linear").outputs}


def test_a_layer_keeps_its_name_and_its_module() -> None:
    model = of(BIASED.replace("c =", "y ="), w=W, b=B)
    model.graph.node[0].name = "/blocks/blocks.3/mlp/fc1/MatMul"
    step = only(rewritten(model, X, linear), "Linear")
    assert step.name == "/blocks/blocks.3/mlp/fc1/MatMul"
    assert "blocks.3.mlp.fc1" in step.metadata_props["pkg.torch.onnx.name_scopes"]
