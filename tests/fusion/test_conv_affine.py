from __future__ import annotations

import numpy as np
import pytest

from fusing import graph, normal, ops, run
from vitesse.fusion import fuse_model

SIZES = {"inputs": "float[N,4,6,6] x", "outputs": "float[N,3,4,4] y"}
WEIGHT, BIAS = normal(3, 4, 3, 3, seed=1), normal(3, seed=2)
STATISTICS = {
    "gamma": normal(3, seed=3),
    "beta": normal(3, seed=4),
    "mean": normal(3, seed=5),
    "variance": np.abs(normal(3, seed=6)) + 0.1,
}
NORM = "y = BatchNormalization<epsilon=0.001>(c, gamma, beta, mean, variance)"
X = normal(2, 4, 6, 6)


def conv64(weight=WEIGHT, bias=0.0):  # type: ignore[no-untyped-def]
    windows = np.lib.stride_tricks.sliding_window_view(X.astype(np.float64), (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64)) + np.reshape(bias, (-1, 1, 1))


def channels(vector):  # type: ignore[no-untyped-def]
    return np.asarray(vector, np.float64).reshape(-1, 1, 1)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_batchnorm_goes_into_the_convolution_and_agrees_with_float64(bias) -> None:  # type: ignore[no-untyped-def]
    conv = "c = Conv(x, w) " if bias is None else "c = Conv(x, w, b) "
    extra = {} if bias is None else {"b": bias}
    fused = fuse_model(graph(conv + NORM, **SIZES, w=WEIGHT, **extra, **STATISTICS))
    assert ops(fused.model) == {"Conv": 1}
    assert fused.changes["batch_norm"] == 1
    s = {name: channels(value) for name, value in STATISTICS.items()}
    plain = conv64(bias=0.0 if bias is None else bias)
    expected = (plain - s["mean"]) / np.sqrt(s["variance"] + 1e-3) * s["gamma"] + s["beta"]
    np.testing.assert_allclose(run(fused.model, {"x": X})[0], expected, atol=5e-5)


def test_a_weight_shared_by_two_convolutions_is_scaled_for_one_only() -> None:
    body = "c = Conv(x, w) z = Conv(x, w) " + NORM
    model = graph(body, SIZES["inputs"], "float[N,3,4,4] y, float[N,3,4,4] z", w=WEIGHT, **STATISTICS)
    fused = fuse_model(model)
    assert ops(fused.model) == {"Conv": 2}
    for got, expected in zip(run(fused.model, {"x": X}), run(model, {"x": X}), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-5)


def test_batchnorm_is_left_alone_when_the_convolution_is_read_elsewhere() -> None:
    model = graph(
        "c = Conv(x, w) " + NORM,
        SIZES["inputs"],
        "float[N,3,4,4] y, float[N,3,4,4] c",
        w=WEIGHT,
        **STATISTICS,
    )
    fused = fuse_model(model)
    assert fused.changes["batch_norm"] == 0
    assert fused.reasons["batch_norm"] == ("an intermediate value is used elsewhere",)


def test_batchnorm_is_left_alone_when_a_parameter_is_not_constant() -> None:
    model = graph(
        "c = Conv(x, w) " + NORM.replace("gamma", "free"),
        "float[N,4,6,6] x, float[3] free",
        SIZES["outputs"],
        w=WEIGHT,
        **STATISTICS,
    )
    fused = fuse_model(model)
    assert fused.changes["batch_norm"] == 0
    assert fused.reasons["batch_norm"] == ("a parameter of the BatchNormalization is not a constant",)


def test_batchnorm_in_training_mode_is_left_alone() -> None:
    body = "c = Conv(x, w) y, m, v = BatchNormalization<training_mode=1>(c, gamma, beta, mean, variance)"
    model = graph(body, **SIZES, w=WEIGHT, **STATISTICS)
    fused = fuse_model(model)
    assert fused.changes["batch_norm"] == 0
    assert fused.reasons["batch_norm"] == ("the BatchNormalization is in training mode",)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 1, 1), ()])
def test_frozen_batchnorm_as_mul_and_add_goes_into_the_convolution(shape: tuple[int, ...]) -> None:
    scale, shift = normal(*shape, seed=7), normal(*shape, seed=8)
    body = "c = Conv(x, w, b) m = Mul(scale, c) y = Add(m, shift)"
    fused = fuse_model(graph(body, **SIZES, w=WEIGHT, b=BIAS, scale=scale, shift=shift))
    assert ops(fused.model) == {"Conv": 1}
    assert fused.changes["conv_affine"] == 2
    expected = conv64(bias=BIAS) * scale.astype(np.float64) + shift
    np.testing.assert_allclose(run(fused.model, {"x": X})[0], expected.reshape(2, 3, 4, 4), atol=5e-5)


def test_grouped_convolution_keeps_its_groups() -> None:
    weight = normal(4, 1, 3, 3, seed=9)
    body = "c = Conv<group=4, pads=[1,1,1,1]>(x, w) y = Mul(c, scale)"
    model = graph(body, SIZES["inputs"], "float[N,4,6,6] y", w=weight, scale=normal(4, 1, 1, seed=10))
    fused = fuse_model(model)
    assert ops(fused.model) == {"Conv": 1}
    np.testing.assert_allclose(run(fused.model, {"x": X})[0], run(model, {"x": X})[0], atol=5e-5)


def test_a_factor_per_pixel_is_left_alone() -> None:
    model = graph("c = Conv(x, w) y = Mul(c, scale)", **SIZES, w=WEIGHT, scale=normal(4, 4))
    fused = fuse_model(model)
    assert fused.changes["conv_affine"] == 0
    assert fused.reasons["conv_affine"] == (
        "the factor behind the convolution has shape [4, 4]: not per channel",
    )


def test_a_factor_that_adds_an_axis_is_left_alone() -> None:
    model = graph(
        "c = Conv(x, w) y = Mul(c, scale)",
        SIZES["inputs"],
        "float[1,N,3,4,4] y",
        w=WEIGHT,
        scale=normal(1, 1, 3, 1, 1),
    )
    fused = fuse_model(model)
    assert fused.changes["conv_affine"] == 0


def test_a_term_that_is_not_constant_is_left_alone() -> None:
    model = graph(
        "c = Conv(x, w) y = Add(c, r)", "float[N,4,6,6] x, float[N,3,4,4] r", SIZES["outputs"], w=WEIGHT
    )
    fused = fuse_model(model)
    assert fused.changes["conv_affine"] == 0
    assert fused.reasons["conv_affine"] == ("the term behind the convolution is not a constant",)


def test_no_convolution_counts_zero() -> None:
    changes = fuse_model(graph("y = Relu(x)")).changes
    assert (changes["batch_norm"], changes["conv_affine"]) == (0, 0)


def test_the_output_keeps_its_name() -> None:
    fused = fuse_model(graph("c = Conv(x, w) " + NORM, **SIZES, w=WEIGHT, **STATISTICS))
    assert fused.model.graph.node[0].output[0] == "y"
