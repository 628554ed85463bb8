from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusing import graph, normal, ops, run
from vitesse.fusion import fuse_model

ERF_GATE = {
    "divided": "a = Div(x, root) f = Erf(a) g = Add(f, one) ",
    "multiplied": "a = Mul(inverse, x) f = Erf(a) g = Add(one, f) ",
}
TANH_GATE = {
    "pow": "c = Pow(x, three) k = Mul(cubic, c) b = Add(x, k) z = Mul(outer, b) f = Tanh(z) g = Add(f, one) ",
    "products": "q = Mul(x, x) c = Mul(q, x) k = Mul(c, cubic) b = Add(k, x) z = Mul(b, outer) f = Tanh(z) "
    "g = Add(one, f) ",
    "horner": "q = Mul(x, x) k = Mul(q, cubic) u = Add(one, k) b = Mul(x, u) z = Mul(outer, b) f = Tanh(z) "
    "g = Add(one, f) ",
    "squared": "q = Pow(x, two) k = Mul(cubic, x) j = Mul(k, q) b = Add(x, j) z = Mul(outer, b) f = Tanh(z) "
    "g = Add(f, one) ",
}
PRODUCT = {
    "half_x": "h = Mul(x, half) y = Mul(h, g)",
    "half_x_swapped": "h = Mul(half, x) y = Mul(g, h)",
    "half_last": "h = Mul(x, g) y = Mul(h, half)",
    "half_first": "h = Mul(g, x) y = Mul(half, h)",
    "half_gate": "h = Mul(half, g) y = Mul(x, h)",
    "half_gate_swapped": "h = Mul(g, half) y = Mul(h, x)",
}
CONSTANTS = {
    "root": math.sqrt(2.0),
    "inverse": math.sqrt(0.5),
    "one": 1.0,
    "half": 0.5,
    "cubic": 0.044715,
    "outer": math.sqrt(2 / math.pi),
    "two": 2.0,
    "three": 3.0,
}
FORMS = {("none", gate): text for gate, text in ERF_GATE.items()} | {
    ("tanh", gate): text for gate, text in TANH_GATE.items()
}


def gelu64(x, approximate):  # type: ignore[no-untyped-def]
    x = x.astype(np.float64)
    if approximate == "none":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("product", PRODUCT)
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_gelu_is_fused_and_agrees_with_float64(form: tuple[str, str], product: str) -> None:
    fused = fuse_model(graph(FORMS[form] + PRODUCT[product], **CONSTANTS))
    assert ops(fused.model) == {"Gelu": 1}
    assert fused.changes["gelu"] == 1
    assert fused.model.opset_import[0].version == 20
    x = normal(2, 5, 8) * 3
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], gelu64(x, form[0]), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("root", 1.5, "a constant is 1.5 where GELU has 1.41421"),
        ("half", 1.0, "a constant is 1 where GELU has 0.5"),
        ("one", 2.0, "a constant is 2 where GELU has 1"),
    ],
)
def test_gelu_is_left_alone_when_a_constant_differs(name: str, value: float, reason: str) -> None:
    model = graph(ERF_GATE["divided"] + PRODUCT["half_x"], **{**CONSTANTS, name: value})
    fused = fuse_model(model)
    assert fused.changes["gelu"] == 0
    assert fused.reasons["gelu"] == (reason,)
    assert fused.model.opset_import[0].version == 17


def test_tanh_gelu_is_left_alone_when_the_cubic_factor_differs() -> None:
    fused = fuse_model(graph(TANH_GATE["pow"] + PRODUCT["half_x"], **{**CONSTANTS, "cubic": 0.05}))
    assert fused.changes["gelu"] == 0
    assert "a constant is 0.05 where GELU has 0.044715" in fused.reasons["gelu"]


def test_gelu_is_left_alone_when_its_divisor_is_not_constant() -> None:
    body = ERF_GATE["divided"].replace("root", "free") + PRODUCT["half_x"]
    fused = fuse_model(graph(body, inputs="float[N,5,8] x, float free", **CONSTANTS))
    assert fused.changes["gelu"] == 0
    assert fused.reasons["gelu"] == ("the factor that should be 1.41421 is not a constant scalar",)


def test_gelu_is_left_alone_when_its_gate_is_read_elsewhere() -> None:
    body = ERF_GATE["divided"] + PRODUCT["half_x"]
    fused = fuse_model(graph(body, outputs="float[N,5,8] y, float[N,5,8] f", **CONSTANTS))
    assert fused.changes["gelu"] == 0
    assert fused.reasons["gelu"] == ("an intermediate value is used elsewhere",)


def test_gelu_of_two_different_tensors_is_left_alone() -> None:
    body = ERF_GATE["divided"] + "h = Mul(w, half) y = Mul(h, g)"
    fused = fuse_model(graph(body, inputs="float[N,5,8] x, float[N,5,8] w", **CONSTANTS))
    assert fused.changes["gelu"] == 0


def test_the_sigmoid_form_is_another_function_and_stays() -> None:
    fused = fuse_model(graph("a = Mul(x, k) s = Sigmoid(a) y = Mul(x, s)", k=1.702))
    assert fused.changes["gelu"] == 0
    assert ops(fused.model) == {"Mul": 2, "Sigmoid": 1}


@settings(max_examples=12, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    product=st.sampled_from(sorted(PRODUCT)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    scale=st.floats(0.1, 20),
)
def test_gelu_of_any_shape_is_preserved(
    form: tuple[str, str], product: str, shape: list[int], scale: float
) -> None:
    sizes = f"float[{','.join(map(str, shape))}]"
    model = graph(FORMS[form] + PRODUCT[product], f"{sizes} x", f"{sizes} y", **CONSTANTS)
    fused = fuse_model(model)
    assert ops(fused.model) == {"Gelu": 1}
    x = normal(*shape) * np.float32(scale)
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], gelu64(x, form[0]), atol=1e-5, rtol=1e-5)
