from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusing import graph, normal, ops, run
from vitesse.fusion import fuse_model

SCALE, BIAS = normal(8, seed=1), normal(8, seed=2)
CENTRED = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) "
POW = CENTRED + "q = Pow(d, two) v = ReduceMean<axes=[-1]>(q) "
SELF = CENTRED + "q = Mul(d, d) v = ReduceMean<axes=[-1]>(q) "
RAW = CENTRED + "xx = Mul(x, x) r = ReduceMean<axes=[-1]>(xx) mm = Mul(m, m) "
FLAX = RAW + "w = Sub(r, mm) v = Max(zero, w) "
ROOT = "e = Add(v, eps) s = Sqrt(e) "
QUOTIENT = "n = Div(d, s) t = Mul(n, scale) y = Add(t, bias)"
CONSTANTS = {"two": 2.0, "eps": 1e-5, "zero": 0.0, "one": 1.0, "scale": SCALE, "bias": BIAS}


def constants(body: str, **changed: object) -> dict[str, object]:
    names = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: value for name, value in {**CONSTANTS, **changed}.items() if name in names}


def layer_norm64(x, scale=1.0, bias=0.0, epsilon=1e-5, axes=(-1,)):  # type: ignore[no-untyped-def]
    x = x.astype(np.float64)
    deviation = x - x.mean(axes, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(axes, keepdims=True) + epsilon) * scale + bias


FORMS = {
    "pow": POW + ROOT + QUOTIENT,
    "self_product": SELF + ROOT + QUOTIENT,
    "swapped": SELF + "e = Add(eps, v) s = Sqrt(e) n = Div(d, s) t = Mul(scale, n) y = Add(bias, t)",
    "reciprocal": POW + ROOT + "i = Reciprocal(s) n = Mul(i, d) t = Mul(n, scale) y = Add(t, bias)",
    "one_over": POW + ROOT + "i = Div(one, s) n = Mul(d, i) t = Mul(n, scale) y = Add(t, bias)",
    "flax": FLAX + ROOT + "i = Reciprocal(s) k = Mul(i, scale) t = Mul(d, k) y = Add(t, bias)",
    "flax_without_clip": RAW + "v = Sub(r, mm) " + ROOT + QUOTIENT,
}


@pytest.mark.parametrize("form", FORMS)
def test_layernorm_is_fused_and_agrees_with_float64(form: str) -> None:
    model = graph(FORMS[form], **constants(FORMS[form]))
    fused = fuse_model(model)
    assert ops(fused.model) == {"LayerNormalization": 1}
    assert fused.changes["layer_norm"] == 1
    x = normal(2, 5, 8, seed=3, offset=0.5)
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], layer_norm64(x, SCALE, BIAS), atol=2e-6)


def test_layernorm_with_axes_as_input_is_fused() -> None:
    body = (
        (POW + ROOT + QUOTIENT).replace("<axes=[-1]>(x)", "(x, last)").replace("<axes=[-1]>(q)", "(q, last)")
    )
    model = graph(body, opset=18, last=np.array([2]), **constants(body))
    fused = fuse_model(model)
    assert ops(fused.model) == {"LayerNormalization": 1}
    x = normal(2, 5, 8)
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], layer_norm64(x, SCALE, BIAS), atol=2e-6)


def test_layernorm_below_opset_17_is_raised_and_fused() -> None:
    body = POW + ROOT + QUOTIENT
    fused = fuse_model(graph(body, opset=13, **constants(body)))
    assert fused.model.opset_import[0].version == 17
    x = normal(2, 5, 8)
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], layer_norm64(x, SCALE, BIAS), atol=2e-6)


def test_layernorm_without_scale_gets_ones_and_without_bias_none() -> None:
    for body, scale in (
        (POW + ROOT + "y = Div(d, s)", 1.0),
        (POW + ROOT + "n = Div(d, s) y = Mul(n, scale)", SCALE),
    ):
        fused = fuse_model(graph(body, **constants(body)))
        assert ops(fused.model) == {"LayerNormalization": 1}
        x = normal(2, 5, 8)
        np.testing.assert_allclose(run(fused.model, {"x": x})[0], layer_norm64(x, scale), atol=2e-6)


def test_layernorm_over_the_last_two_axes_is_fused() -> None:
    body = (POW + ROOT + QUOTIENT).replace("axes=[-1]", "axes=[1,2]")
    scale = normal(5, 8, seed=4)
    fused = fuse_model(graph(body, **constants(body, scale=scale)))
    assert ops(fused.model) == {"LayerNormalization": 1}
    x = normal(2, 5, 8)
    expected = layer_norm64(x, scale, BIAS, axes=(1, 2))
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], expected, atol=2e-6)


def test_float16_layernorm_is_fused_within_float16_rounding() -> None:
    body = SELF + ROOT + QUOTIENT
    halves = {name: np.asarray(value, np.float16) for name, value in constants(body).items()}
    model = graph(body, inputs="float16[N,5,8] x", outputs="float16[N,5,8] y", **halves)
    x = (normal(2, 5, 8) * 600).astype(np.float16)  # squares beyond the largest float16
    fused = fuse_model(model)
    assert ops(fused.model) == {"LayerNormalization": 1}
    expected = layer_norm64(
        x, halves["scale"].astype(np.float64), halves["bias"].astype(np.float64), float(halves["eps"])
    )
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], expected, atol=5e-3)


REFUSED = {
    "epsilon_from_an_input": (
        POW + ROOT.replace("eps", "free") + QUOTIENT,
        {},
        "float[N,5,8] x, float[1] free",
        "epsilon is not a constant scalar",
    ),
    "mean_over_another_axis": (
        (POW + ROOT + QUOTIENT).replace("axes=[-1]", "axes=[1]"),
        {},
        "float[N,5,8] x",
        "it normalises axes [1] of 3, not the last ones",
    ),
    "mean_and_variance_over_different_axes": (
        POW.replace("axes=[-1]>(q)", "axes=[1]>(q)") + ROOT + QUOTIENT,
        {},
        "float[N,5,8] x",
        "mean and variance are taken over different axes",
    ),
    "numerator_two": (
        POW + ROOT + "i = Div(one, s) n = Mul(d, i) t = Mul(n, scale) y = Add(t, bias)",
        {"one": 2.0},
        "float[N,5,8] x",
        "the numerator over the standard deviation is not the constant 1",
    ),
    "clipped_at_one": (
        FLAX + ROOT + QUOTIENT,
        {"zero": 1.0},
        "float[N,5,8] x",
        "the variance is clipped at something else than the constant 0",
    ),
    "double_precision": (
        POW + ROOT + QUOTIENT,
        {name: np.asarray(value, np.float64) for name, value in CONSTANTS.items()},
        "double[N,5,8] x",
        "the input is DOUBLE, not float32 or float16",
    ),
    "normalised_size_not_static": (
        POW + ROOT + "y = Div(d, s)",
        {},
        "float[N,5,C] x",
        "the normalised size is not static",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layernorm_is_left_alone_with_a_reason(case: str) -> None:
    body, changed, inputs, reason = REFUSED[case]
    outputs = ("double" if "double" in inputs else "float") + ("[N,5,C] y" if "C]" in inputs else "[N,5,8] y")
    model = graph(body, inputs=inputs, outputs=outputs, **constants(body, **changed))
    fused = fuse_model(model)
    assert fused.changes["layer_norm"] == 0
    assert "LayerNormalization" not in ops(fused.model)
    assert reason in fused.reasons["layer_norm"]


def test_layernorm_is_left_alone_when_its_variance_is_read_elsewhere() -> None:
    body = POW + ROOT + QUOTIENT
    model = graph(body, outputs="float[N,5,8] y, float[N,5,1] v", **constants(body))
    fused = fuse_model(model)
    assert fused.changes["layer_norm"] == 0
    assert "an intermediate value is used elsewhere" in fused.reasons["layer_norm"]
    assert [value.name for value in fused.model.graph.output] == ["y", "v"]


def test_a_scale_that_is_not_constant_stays_outside() -> None:
    body = POW + ROOT + "n = Div(d, s) y = Mul(n, gate)"
    fused = fuse_model(graph(body, inputs="float[N,5,8] x, float[8] gate", **constants(body)))
    assert ops(fused.model) == {"LayerNormalization": 1, "Mul": 1}


def test_a_scale_along_another_axis_stays_outside() -> None:
    body = POW + ROOT + "n = Div(d, s) y = Mul(n, scale)"
    scale = normal(5, 1, seed=5)
    fused = fuse_model(graph(body, **constants(body, scale=scale)))
    assert ops(fused.model) == {"LayerNormalization": 1, "Mul": 1}
    x = normal(2, 5, 8)
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], layer_norm64(x, scale), atol=2e-6)


def test_no_layernorm_counts_zero() -> None:
    assert fuse_model(graph("y = Relu(x)")).changes["layer_norm"] == 0


@settings(max_examples=15, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    tokens=st.integers(1, 4),
    width=st.integers(2, 9),
    epsilon=st.sampled_from([1e-6, 1e-5, 1e-3]),
    scale_axes=st.integers(1, 3),
    offset=st.floats(-2, 2),
)
def test_layernorm_of_any_shape_is_preserved(
    form: str, tokens: int, width: int, epsilon: float, scale_axes: int, offset: float
) -> None:
    scale = normal(width, seed=width).reshape(*(1,) * (scale_axes - 1), width)
    changed = {"scale": scale, "bias": normal(width, seed=1), "eps": epsilon}
    shape = f"float[N,{tokens},{width}]"
    model = graph(FORMS[form], f"{shape} x", f"{shape} y", **constants(FORMS[form], **changed))
    fused = fuse_model(model)
    assert fused.changes["layer_norm"] == 1
    x = normal(2, tokens, width, seed=tokens, offset=offset)
    expected = layer_norm64(x, scale, changed["bias"], epsilon)
    # A constant row divides by sqrt(ε): the flax variance then loses digits in the original, not in the result.
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], expected, atol=2e-4, rtol=1e-4)
