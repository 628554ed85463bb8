"""Outliers move into the weights, nothing changes in the result, and what others read is left alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fashion import DETR, VIT
from tiny_onnx import save
from vitesse import stages
from vitesse.data.dataset import open_dataset
from vitesse.errors import UsageError
from vitesse.fusion import clean_model, fuse_model
from vitesse.metadata import read_spec
from vitesse.precision.calibration import channel_axes, observe
from vitesse.precision.layers import Layer, layers_of
from vitesse.precision.ranges import ChannelStatistics
from vitesse.precision.smooth import smooth
from vitesse.verify.taps import Taps

WIDTH, TOKENS = 8, 4
OUTLIER, TIMES = 3, 100.0
RANDOM = np.random.default_rng(2)
INPUT = RANDOM.standard_normal((1, TOKENS, WIDTH)).astype(np.float32)


def matrix(rows: int = WIDTH, columns: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)


def with_outlier(values: NDArray[np.float32], times: float = TIMES) -> NDArray[np.float32]:
    """One channel, the last axis, much larger than the others."""
    return values * np.where(np.arange(values.shape[-1]) == OUTLIER, times, 1).astype(np.float32)


# What the graphs below may use: a norm and a first layer with a large channel, and weights that take it down again.
CONSTANTS: dict[str, NDArray[Any]] = {
    "scale": with_outlier(np.ones(WIDTH, np.float32)),
    "shift": with_outlier(np.full(WIDTH, 0.1, np.float32)),
    "first": with_outlier(matrix()),
    "first_b": with_outlier(np.full(WIDTH, 0.2, np.float32)),
    "first_t": with_outlier(matrix()).T.copy(),
    "vector": with_outlier(np.full(WIDTH, 0.7, np.float32)),
    "inverse": with_outlier(np.full(WIDTH, 0.7, np.float32), 1 / TIMES),
    "w": with_outlier(matrix(5, WIDTH), 1 / TIMES).T.copy(),
    "w_t": with_outlier(matrix(5, WIDTH), 1 / TIMES),
    "w2": with_outlier(matrix(6, WIDTH), 1 / TIMES).T.copy(),
    "square": with_outlier(matrix(), 1 / TIMES).T.copy(),
    "half": matrix(WIDTH, WIDTH // 2),
    "one": np.array(1.5, np.float32),
}
NORM = ("LayerNormalization", ["x", "scale", "shift"], ["h"], {})
LAST = ("MatMul", ["h", "w"], ["y"], {})
Step = tuple[str, list[str], list[str], dict[str, Any]]


def graph(folder: Path, *steps: Step, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    nodes = [helper.make_node(op, ins, outs, f"{op}_{outs[0]}", **rest) for op, ins, outs, rest in steps]
    used = {name for _, ins, _, _ in steps for name in ins}
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TOKENS, WIDTH])]
    inputs += [helper.make_tensor_value_info("turned", TensorProto.FLOAT, [1, WIDTH, 2])] * ("turned" in used)
    constants = {name: array for name, array in CONSTANTS.items() if name in used}
    return onnx.load(save(folder / "graph.onnx", nodes, inputs, *ends, constants, opset=23).path)


def linear(tensor: str = "h", weight: str = "w", output: str = "y", op_type: str = "MatMul") -> Layer:
    return Layer(f"{op_type}_{output}", op_type, "block", tensor, weight, output, -1, None)


def values(model: onnx.ModelProto, *tensors: str) -> dict[str, NDArray[Any]]:
    return dict(Taps(model, tensors, optimised=False).run({"x": INPUT}))


def statistics(model: onnx.ModelProto, *layers: Layer) -> Mapping[str, ChannelStatistics]:
    return observe(model, [{"x": INPUT}], channel_axes(layers)).channels


def spread(values: NDArray[Any]) -> float:
    """The largest channel over the median one of those in use."""
    channels = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
    return float(channels.max() / np.median(channels[channels > 0]))


def smoothed_spread(model: onnx.ModelProto, layer: Layer) -> float:
    """Smooth one layer, assert that the result stays and what it reads gets smoother; return the new spread."""
    made, report = smooth(model, statistics(model, layer), [layer], 0.5)
    assert layer.activation in report.folded, report.notes
    before, after = (values(one, layer.activation, layer.output) for one in (model, made))
    np.testing.assert_allclose(after[layer.output], before[layer.output], rtol=1e-4, atol=1e-4)
    assert spread(before[layer.activation]) > 30
    assert len(made.graph.node) == len(model.graph.node), "nothing is computed that was not before"
    return spread(after[layer.activation])


@pytest.mark.parametrize(
    "steps",
    [
        [NORM, LAST],
        [("LayerNormalization", ["x", "scale"], ["h"], {}), LAST],
        [("RMSNormalization", ["x", "scale"], ["h"], {}), LAST],
        [("Mul", ["vector", "x"], ["h"], {}), LAST],
        [("Div", ["x", "inverse"], ["h"], {}), LAST],
        [("LayerNormalization", ["x", "scale"], ["n"], {}), ("Add", ["n", "shift"], ["h"], {}), LAST],
        [("MatMul", ["x", "first"], ["h"], {}), LAST],
        [("MatMul", ["x", "first"], ["m"], {}), ("Add", ["m", "first_b"], ["h"], {}), LAST],
        [("MatMul", ["x", "first"], ["m"], {}), ("Relu", ["m"], ["h"], {}), LAST],
        [
            ("MatMul", ["x", "first"], ["v"], {}),
            ("Attention", ["x", "x", "v"], ["h"], {"q_num_heads": 2, "kv_num_heads": 2}),
            LAST,
        ],
    ],
    ids=lambda steps: " ".join(step[0] for step in steps),
)
def test_what_makes_a_tensor_takes_the_factors(tmp_path: Path, steps: list[Step]) -> None:
    assert smoothed_spread(graph(tmp_path, *steps), linear()) < 30


def test_a_gemm_takes_and_gives_factors_whichever_way_its_weights_lie(tmp_path: Path) -> None:
    flat = [("Flatten", ["x"], ["f"], {"axis": 2})]
    for first, second in (({"transB": 1}, {"transB": 1}), ({}, {})):
        names = ("first_t", "w_t") if first else ("first", "w")
        model = graph(
            tmp_path,
            *flat,
            ("Gemm", ["f", names[0], "first_b"], ["h"], first),
            ("Gemm", ["h", names[1]], ["y"], second),
        )
        assert smoothed_spread(model, linear("h", names[1], op_type="Gemm")) < 30


def test_the_factors_are_those_of_the_paper(tmp_path: Path) -> None:
    model = graph(tmp_path, NORM, LAST)
    channels = statistics(model, linear())
    for alpha in (0.3, 0.5, 1.0):
        made, _ = smooth(model, channels, [linear()], alpha)
        stored = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
        largest = np.abs(CONSTANTS["w"]).max(axis=1)
        by_hand = channels["h"].abs_max.astype(np.float64) ** alpha / largest.astype(np.float64) ** (
            1 - alpha
        )
        np.testing.assert_allclose(stored["w"], CONSTANTS["w"] * by_hand[:, None], rtol=1e-5)
        np.testing.assert_allclose(stored["scale"], CONSTANTS["scale"] / by_hand, rtol=1e-5)
        np.testing.assert_allclose(stored["shift"], CONSTANTS["shift"] / by_hand, rtol=1e-5)
    # With alpha 1 the weights take all of it: every channel reaches exactly 1.
    np.testing.assert_allclose(np.abs(values(made, "h")["h"]).max(axis=(0, 1)), 1, rtol=1e-5)


def test_all_readers_weigh_in_and_all_are_adapted(tmp_path: Path) -> None:
    model = graph(tmp_path, NORM, LAST, ("MatMul", ["h", "w2"], ["z"], {}), outputs=("y", "z"))
    made, report = smooth(model, statistics(model, linear()), [linear()], 0.5)
    assert list(report.folded) == ["h"]
    for name in ("y", "z"):
        np.testing.assert_allclose(values(made, name)[name], values(model, name)[name], rtol=1e-4, atol=1e-4)
    stored = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    factors = stored["w2"][:, 0] / CONSTANTS["w2"][:, 0]
    largest = np.maximum(np.abs(CONSTANTS["w"]).max(axis=1), np.abs(CONSTANTS["w2"]).max(axis=1))
    expected = np.sqrt(np.abs(values(model, "h")["h"]).max(axis=(0, 1)) / largest)
    np.testing.assert_allclose(factors, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("steps", "outputs", "why"),
    [
        # DETR normalises behind the sum: the norm's output is a residual, too.
        ([NORM, LAST, ("Add", ["h", "x"], ["sum"], {})], ("y", "sum"), "Add `Add_sum` reads it too"),
        ([NORM, LAST], ("y", "h"), "it is an output"),
        (
            [NORM, ("MatMul", ["h", "turned"], ["s"], {}), LAST],
            ("y", "s"),
            "MatMul `MatMul_s` reads it too",
        ),
        ([("MatMul", ["x", "w"], ["y"], {})], ("y",), "no node's result"),
        ([("Sigmoid", ["x"], ["h"], {}), LAST], ("y",), "comes from Sigmoid `Sigmoid_h`, which cannot take"),
        ([("Mul", ["x", "x"], ["h"], {}), LAST], ("y",), "comes from Mul `Mul_h`, which cannot take"),
        ([("Add", ["x", "x"], ["h"], {}), LAST], ("y",), "comes from Add `Add_h`, which cannot take"),
        ([("Div", ["one", "x"], ["h"], {}), LAST], ("y",), "comes from Div `Div_h`, which cannot take"),
        (
            [("MatMul", ["x", "first"], ["m"], {}), ("Relu", ["m"], ["h"], {}), LAST],
            ("y", "m"),
            "`m`, from which it is computed, is also read elsewhere",
        ),
        (
            # One head of keys and values for two of queries: a channel of the result mixes none, but is read twice.
            [
                ("MatMul", ["x", "half"], ["v"], {}),
                ("Attention", ["x", "v", "v"], ["h"], {"q_num_heads": 2, "kv_num_heads": 1}),
                LAST,
            ],
            ("y",),
            "comes from Attention",
        ),
        (
            [
                ("MatMul", ["x", "first"], ["v"], {}),
                ("Attention", ["x", "v", "v"], ["h"], {"q_num_heads": 2, "kv_num_heads": 2}),
                LAST,
            ],
            ("y",),
            "`v`, from which it is computed, is also read elsewhere",
        ),
    ],
)
def test_what_cannot_be_smoothed_is_left_alone_with_the_reason(
    tmp_path: Path, steps: list[Step], outputs: tuple[str, ...], why: str
) -> None:
    model = graph(tmp_path, *steps, outputs=outputs)
    tensor = next(ins[0] for _, ins, outs, _ in steps if outs == ["y"])
    channels = {tensor: ChannelStatistics(np.full(WIDTH, 2, np.float32), np.zeros(WIDTH))}
    made, report = smooth(model, channels, [linear(tensor)], 0.5)
    assert made == model
    assert not report.folded
    assert len(report.notes) == 1
    assert report.notes[0].startswith(f"{tensor} is not smoothed: ")
    assert why in report.notes[0]


def test_a_constant_that_others_read_too_is_copied_for_the_norm_that_changes(tmp_path: Path) -> None:
    model = graph(
        tmp_path,
        NORM,
        LAST,
        ("LayerNormalization", ["x", "scale", "shift"], ["other"], {}),
        ("MatMul", ["x", "w"], ["z"], {}),
        outputs=("y", "z", "other"),
    )
    made, report = smooth(model, statistics(model, linear()), [linear()], 0.5)
    assert report.folded == {"h": "LayerNormalization"}
    for name in ("y", "z", "other"):
        np.testing.assert_allclose(values(made, name)[name], values(model, name)[name], rtol=1e-4, atol=1e-3)


def test_weights_between_two_smoothed_tensors_give_on_one_side_and_take_on_the_other(tmp_path: Path) -> None:
    model = graph(tmp_path, NORM, ("MatMul", ["h", "square"], ["k"], {}), ("MatMul", ["k", "w"], ["y"], {}))
    layers = [linear("h", "square", "k"), linear("k", "w", "y")]
    made, report = smooth(model, statistics(model, *layers), layers, 0.5)
    assert report.folded == {"h": "LayerNormalization", "k": "MatMul"}
    np.testing.assert_allclose(values(made, "y")["y"], values(model, "y")["y"], rtol=1e-4, atol=1e-4)


def test_a_channel_that_is_always_zero_keeps_its_weights(tmp_path: Path) -> None:
    model = graph(tmp_path, NORM, LAST)
    abs_max = np.ones(WIDTH, np.float32)
    abs_max[2] = 0
    made, _ = smooth(model, {"h": ChannelStatistics(abs_max, np.zeros(WIDTH))}, [linear()], 0.5)
    stored = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    np.testing.assert_array_equal(stored["w"][2], CONSTANTS["w"][2])
    assert np.isfinite(stored["scale"]).all()


def test_the_error_of_eight_bits_per_tensor_falls_to_a_fifth_or_less(tmp_path: Path) -> None:
    model = graph(tmp_path, NORM, LAST)
    made, _ = smooth(model, statistics(model, linear()), [linear()], 0.5)

    def error(one: onnx.ModelProto) -> float:
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in one.graph.initializer}
        h, w, y = values(one, "h")["h"], stored["w"], values(model, "y")["y"]
        rounded = [
            np.rint(each / scale) * scale
            for each, scale in (
                (h, np.abs(h).max() / 127),
                (w, np.abs(w).max(axis=0) / 127),
            )
        ]
        return float(np.abs(rounded[0] @ rounded[1] - y).mean())

    assert error(made) * 5 <= error(model)


def test_an_alpha_outside_its_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"alpha = 1\.5"):
        smooth(graph(tmp_path, NORM, LAST), {}, [linear()], 1.5)


def test_a_tensor_without_statistics_is_left_alone(tmp_path: Path) -> None:
    model = graph(tmp_path, NORM, LAST)
    made, report = smooth(model, {}, [linear()], 0.5)
    assert made == model
    assert report.notes == ("h is not smoothed: there are no statistics of its channels",)


@pytest.mark.parametrize(
    ("path", "folder", "takers"),
    [(VIT, "vit", {"LayerNormalization": 11, "MatMul": 6}), (DETR, "detr", {"MatMul": 24})],
)
def test_a_trained_model_says_the_same_as_before(path: Path, folder: str, takers: dict[str, int]) -> None:
    spec = read_spec(onnx.load(path))
    assert spec is not None
    model = fuse_model(clean_model(onnx.load(path)).model).model
    data = open_dataset(path.parent / folder, spec=spec)
    images = list(stages.CalibrationFeeds(data.calib.spread(4), spec))
    layers = layers_of(model)
    channels = observe(model, images, channel_axes(layers)).channels
    made, report = smooth(model, channels, layers, 0.5)
    found = list(report.folded.values())
    assert {name: found.count(name) for name in set(found)} == takers
    linear_inputs = {layer.activation for layer in layers if layer.op_type != "Conv"}
    assert len(report.folded) + len(report.notes) == len(linear_inputs)
    names = [value.name for value in model.graph.output]
    before, after = (Taps(one, names, optimised=False) for one in (model, made))
    for image in images[:2]:
        for (name, old), (_, new) in zip(before.run(image), after.run(image), strict=True):
            assert np.abs(new - old).max() <= 1e-4 * np.abs(old).max(), name
    smoother = observe(made, images, channel_axes(layers_of(made))).channels

    def mean_spread(found: Mapping[str, ChannelStatistics]) -> float:
        return float(np.mean([spread(found[name].abs_max) for name in report.folded]))

    assert mean_spread(smoother) < 0.85 * mean_spread(channels)
