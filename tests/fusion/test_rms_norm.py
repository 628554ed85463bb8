from __future__ import annotations

import numpy as np
import pytest

from fusing import graph, normal, ops, run
from vitesse.fusion import fuse_model

SCALE = normal(8, seed=1)
CORE = "q = Pow(x, two) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) s = Sqrt(e) "
FORMS = {
    "one_over": CORE + "i = Div(one, s) n = Mul(x, i) y = Mul(n, scale)",
    "quotient": CORE + "n = Div(x, s) y = Mul(scale, n)",
    "scaled_inverse": CORE + "i = Div(one, s) k = Mul(i, scale) y = Mul(k, x)",
}
CONSTANTS = {"two": 2.0, "eps": 1e-6, "one": 1.0, "scale": SCALE}


def rms_norm64(x, scale=1.0):  # type: ignore[no-untyped-def]
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


@pytest.mark.parametrize("form", FORMS)
def test_rmsnorm_is_fused_and_agrees_with_float64(form: str) -> None:
    fused = fuse_model(graph(FORMS[form], **CONSTANTS))
    assert ops(fused.model) == {"RMSNormalization": 1}
    assert fused.changes["rms_norm"] == 1
    assert fused.model.opset_import[0].version == 23
    x = normal(2, 5, 8, seed=3)
    np.testing.assert_allclose(run(fused.model, {"x": x})[0], rms_norm64(x, SCALE), atol=2e-6)


def test_a_layernorm_is_not_taken_for_an_rmsnorm() -> None:
    body = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) " + FORMS["quotient"].replace("(x", "(d")
    fused = fuse_model(graph(body, **CONSTANTS))
    assert (fused.changes["layer_norm"], fused.changes["rms_norm"]) == (1, 0)


def test_rmsnorm_is_left_alone_when_epsilon_is_not_constant() -> None:
    body = FORMS["quotient"].replace("eps", "free")
    fused = fuse_model(graph(body, inputs="float[N,5,8] x, float[1] free", **CONSTANTS))
    assert fused.changes["rms_norm"] == 0
    assert "epsilon is not a constant scalar" in fused.reasons["rms_norm"]
    assert fused.model.opset_import[0].version == 17  # nothing fused, nothing raised


def test_rmsnorm_is_left_alone_over_another_axis() -> None:
    fused = fuse_model(graph(FORMS["quotient"].replace("axes=[-1]", "axes=[1]"), **CONSTANTS))
    assert fused.changes["rms_norm"] == 0
    assert "it normalises axes [1] of 3, not the last ones" in fused.reasons["rms_norm"]


def test_no_rmsnorm_counts_zero() -> None:
    assert fuse_model(graph("y = Relu(x)")).changes["rms_norm"] == 0
