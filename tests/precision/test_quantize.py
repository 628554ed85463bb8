"""Q/DQ insertion: the numbers it stores, which tensors it rounds and which never, and that runtimes take the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fashion import VIT
from fusing import graph, normal, run
from quantising import PLAIN, behind_quantisers, constants, makers, quantised
from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.data.dataset import open_dataset
from vitesse.errors import ModelError, UsageError
from vitesse.precision.calibration import calibrate
from vitesse.precision.layers import layers_of
from vitesse.precision.quantize import quantize
from vitesse.precision.ranges import Ranges
from vitesse.precision.weights import activation_grid, rounded_weight, weight_bits_here
from vitesse.profile.modules import modules_of
from vitesse.recipe import Int8Options
from vitesse.stages import CalibrationFeeds, clean, fuse, open_model

WEIGHT = np.array([[127, -63.5], [0, 1]], np.float32)
Quantisable = tuple[Artifact, Ranges, Path]
EYE = np.eye(2, dtype=np.float32)


def linear(body: str = "h = MatMul(x, w)", weight: np.ndarray = WEIGHT, **more: object) -> onnx.ModelProto:
    """x (N, 2) → a linear layer of two channels → a head that changes nothing."""
    return graph(f"{body} y = MatMul(h, head)", "float[N,2] x", "float[N,2] y", w=weight, head=EYE, **more)


def answer(model: onnx.ModelProto, *x: float) -> list[float]:
    return run(model, {"x": np.array([x], np.float32)})[0].ravel().tolist()


def test_symmetric_int8_is_rounded_and_cut_off_as_computed_by_hand(tmp_path: Path) -> None:
    model, built = quantised(tmp_path, linear(), {"x": (-127.0, 127.0)})
    # Columns reach 127 and 63.5: scales 1 and 0.5, stored (127, 0) and (-127, 2).
    # x = (1.4, -200) is stored as (1, -128).
    assert constants(model)["w_quantized"].tolist() == [[127, -127], [0, 2]]
    assert constants(model)["w_scale"].tolist() == [1, 0.5]
    assert answer(model, 1.4, -200) == [127, -63.5 - 128]
    assert built.changes["Linear to INT8"] == 1
    assert built.changes["Conv and Linear left in FP32"] == 1
    assert (built.changes["QuantizeLinear inserted"], built.changes["DequantizeLinear inserted"]) == (1, 2)


def test_uint8_covers_a_range_beside_zero_and_stores_zero_exactly(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path, linear(), {"x": (-1.0, 4.0)}, symmetric=False)
    # scale 5 / 255, zero point 51; 0.03 is 1.53 steps, rounded to 2, and 10 is cut off at step 255 - 51 = 204: 4.
    assert constants(model)["x_zero_point"] == 51
    assert answer(model, 0.03, 10) == pytest.approx([127 * 2 * 5 / 255, -63.5 * 2 * 5 / 255 + 4], rel=1e-5)
    assert answer(model, 0, 0) == [0, 0]


def test_every_quantiser_of_a_symmetric_file_is_int8_with_zero_point_0_as_tensorrt_needs(
    tmp_path: Path,
) -> None:
    model, _ = quantised(tmp_path, chain(), dict.fromkeys("abcdefgh", (-3.0, 3.0)))
    stored = constants(model)
    quantisers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantisers
    for node in quantisers:
        assert stored[node.input[2]].dtype == np.int8
        assert not stored[node.input[2]].any()


def test_the_same_check_would_catch_uint8(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path, chain(), dict.fromkeys("abcdefgh", (-1.0, 3.0)), symmetric=False)
    kinds = {
        constants(model)[node.input[2]].dtype.name
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert kinds == {"uint8"}


@pytest.mark.parametrize(
    ("body", "weight", "axis"),
    [
        ("h = MatMul(x, w)", WEIGHT, 1),
        ("h = Gemm(x, w)", WEIGHT, 1),
        ("h = Gemm<transB = 1>(x, w)", WEIGHT.T.copy(), 0),
    ],
)
def test_scales_lie_along_the_output_channels(
    tmp_path: Path, body: str, weight: np.ndarray, axis: int
) -> None:
    model, _ = quantised(tmp_path, linear(body, weight), {"x": (-127.0, 127.0)})
    assert makers(model)["w_dequantized"].attribute[0].i == axis
    assert constants(model)["w_scale"].tolist() == [1, 0.5]
    assert answer(model, 1.4, -200) == [127, -63.5 - 128]


def test_scales_of_a_convolution_lie_along_its_first_axis() -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[0], weight[1, 2] = 12.7, -2.54
    stored, grid = rounded_weight(weight, 0, number="int8", bits=8)
    np.testing.assert_allclose(grid.scale, [0.1, 0.02], rtol=1e-6)
    assert stored[:, :, 0, 0].tolist() == [[127, 127, 127], [0, 0, -127]]


def test_seven_bit_weights_reach_63_and_a_channel_of_zeros_has_a_scale() -> None:
    weight = np.array([[6.3, 0], [-3.1, 0]], np.float32)
    stored, grid = rounded_weight(weight, 1, number="int8", bits=7)
    assert stored.tolist() == [[63, 0], [-31, 0]]
    assert grid.scale[1] == 1
    assert activation_grid(0, 0, number="int8", symmetric=False).scale == 1


def test_a_dead_channel_with_a_bias_keeps_the_bias_inside_32_bits(tmp_path: Path) -> None:
    weight = np.array([[1, 1e-20], [1, 0]], np.float32)
    model, _ = quantised(
        tmp_path, linear("h = Gemm(x, w, b)", weight, b=np.array([0, 5], np.float32)), {"x": (-1.27, 1.27)}
    )
    scale = constants(model)["w_scale"]
    assert scale[0] == pytest.approx(1 / 127)
    assert 5 / (0.01 * scale[1]) < 2**31
    assert answer(model, 1, 1)[1] == pytest.approx(5)


def chain() -> onnx.ModelProto:
    """Stem, two convolutions with a ReLU between them, a sum round them, a third convolution, a pooled head."""
    return graph(
        """z = Conv(x, stem) a = Relu(z) b = Conv(a, w1) c = Relu(b) d = Conv(c, w2) e = Add(a, d) f = Relu(e)
           g = Conv(f, w3) h = Sigmoid(g) p = GlobalAveragePool(h) q = Flatten(p) y = MatMul(q, head)""",
        "float[N,3,6,6] x",
        "float[N,5] y",
        stem=normal(4, 3, 1, 1),
        w1=normal(4, 4, 1, 1, seed=1),
        w2=normal(4, 4, 1, 1, seed=2),
        w3=normal(4, 4, 1, 1, seed=3),
        head=normal(4, 5),
    )


def rounded_inputs(model: onnx.ModelProto) -> dict[str, list[str]]:
    """By a node's output, which of its inputs are behind Q/DQ."""
    return {
        node.output[0]: [
            behind_quantisers(model, name) for name in node.input if behind_quantisers(model, name) != name
        ]
        for node in model.graph.node
    }


def test_in_symmetric_int8_only_what_layers_read_is_rounded(tmp_path: Path) -> None:
    model, _ = quantised(tmp_path, chain(), dict.fromkeys("abcdfg", (-3.0, 3.0)))
    inputs = rounded_inputs(model)
    assert (inputs["b"], inputs["d"], inputs["g"]) == (["a"], ["c"], ["f"])
    assert not (inputs["z"] or inputs["c"] or inputs["e"] or inputs["f"] or inputs["h"] or inputs["y"])


def test_in_uint8_a_convolution_hands_on_integers_behind_its_relu_and_into_the_sum(tmp_path: Path) -> None:
    reach = {
        "a": (0.0, 2.0),
        "b": (-3.0, 2.0),
        "c": (0.0, 1.0),
        "d": (-3.0, 3.0),
        "f": (0.0, 4.0),
        "g": (-2.0, 2.0),
    }
    model, _ = quantised(tmp_path, chain(), reach, symmetric=False)
    inputs = rounded_inputs(model)
    assert (inputs["b"], inputs["d"], inputs["g"], inputs["h"]) == (["a"], ["c"], ["f"], ["g"])
    assert not inputs["c"], "no rounding between a convolution and its ReLU"
    assert inputs["e"] == ["a", "d"], "the residual sum reads both sides as stored"
    assert not inputs["y"]
    assert constants(model)["c_scale"] == pytest.approx(1 / 255), "the range behind the ReLU"


def test_a_tensor_and_a_weight_that_several_layers_read_are_rounded_once(tmp_path: Path) -> None:
    model = graph(
        "a = MatMul(x, w) b = MatMul(x, w) c = Add(a, b) s = Sigmoid(x) d = Add(c, s) y = MatMul(d, head)",
        "float[N,2] x",
        "float[N,2] y",
        w=WEIGHT,
        head=EYE,
    )
    made, built = quantised(tmp_path, model, {"x": (-1.0, 1.0)})
    assert (built.changes["QuantizeLinear inserted"], built.changes["DequantizeLinear inserted"]) == (1, 2)
    assert rounded_inputs(made)["s"] == [], "who is not lowered reads the original"
    assert "w" not in constants(made)


def test_only_named_layers_are_touched_and_a_weight_that_others_read_stays(tmp_path: Path) -> None:
    model = graph(
        "a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, head)",
        "float[N,2] x",
        "float[N,2] y",
        w=WEIGHT,
        head=EYE,
    )
    made, built = quantised(tmp_path, model, {"x": (-1.0, 1.0)}, names=["MatMul_a"])
    inputs = rounded_inputs(made)
    assert (inputs["a"], inputs["b"], inputs["y"]) == (["x"], [], [])
    assert makers(made)["b"].input[1] == "w"
    assert built.changes["Conv and Linear left in FP32"] == 2


@pytest.mark.parametrize("name", ["MatMul_y", "Conv_z", "nothing"])
def test_a_head_the_first_convolution_and_a_foreign_name_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}' is no layer of model\.onnx(.|\n)*without heads"):
        quantised(tmp_path, chain(), {}, names=[name])


def test_a_missing_range_and_an_unknown_number_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no range for the tensor `x`(.|\n)*calibrate again"):
        quantised(tmp_path, linear(), {})
    with pytest.raises(UsageError, match=r"number format 'int4'(.|\n)*int8, fp8"):
        quantised(tmp_path, linear(), {}, number="int4")


@pytest.mark.parametrize(
    ("body", "bias"),
    [
        ("h = Gemm(x, w, b)", np.array([1, 2], np.float32)),
        ("p = MatMul(x, w) h = Add(p, b)", np.array([[1, 2]], np.float32)),
        ("p = MatMul(x, w) h = Add(b, p)", np.array([1, 2], np.float32)),
    ],
)
def test_bias_correction_takes_out_what_rounding_weights_shifts_on_average(
    tmp_path: Path, body: str, bias: np.ndarray
) -> None:
    # Scales 1 and 1: 0.4 is stored as 0, so that an input of mean 10 loses 4 in channel 0; 0.25 loses 2.5 in channel 1.
    weight = np.array([[0.4, 0.25], [127, 127]], np.float32)
    model = linear(body, weight, b=bias)
    options = Int8Options(weight_bits=8, bias_correction=True)
    made, built = quantised(tmp_path, model, {"x": (-127.0, 127.0)}, means={"x": (10, 0)}, options=options)
    assert built.changes["biases corrected"] == 1
    assert answer(made, 10, 0) == pytest.approx([1 + 4, 2 + 2.5])
    plain, _ = quantised(tmp_path / "plain", model, {"x": (-127.0, 127.0)}, means={"x": (10, 0)})
    assert answer(plain, 10, 0) == [1, 2]


def test_a_convolution_without_bias_gets_one_and_a_matmul_without_add_is_counted(tmp_path: Path) -> None:
    options = Int8Options(weight_bits=8, bias_correction=True)
    means = {"a": [1.0] * 4, "c": [1.0] * 4, "f": [1.0] * 4}
    made, built = quantised(
        tmp_path, chain(), dict.fromkeys("abcdfg", (-3.0, 3.0)), means=means, options=options
    )
    assert built.changes["biases corrected"] == 3
    assert len(makers(made)["b"].input) == 3
    _, built = quantised(
        tmp_path / "bare", linear(), {"x": (-1.0, 1.0)}, means={"x": (1, 1)}, options=options
    )
    assert built.changes["biases corrected"] == 0
    assert built.notes == ("1 layers have no bias of their own that could be corrected",)


def test_old_opsets_are_raised_to_the_one_with_scales_per_channel(tmp_path: Path) -> None:
    model = linear(opset=12)
    made, _ = quantised(tmp_path, model, {"x": (-1.0, 1.0)})
    assert made.opset_import[0].version == 13


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Quantisable:
    folder = tmp_path_factory.mktemp("vit")
    source = fuse(clean(open_model(VIT), Store(folder)).artifact).artifact
    layers = layers_of(onnx.load(source.path))
    calib = open_dataset(VIT.parent / "vit").calib.spread(24)
    feeds = list(CalibrationFeeds(calib, source.spec))
    return source, calibrate(source, feeds, layers, Int8Options(method="minmax"), symmetric=True), folder


def test_the_whole_vit_is_a_quarter_of_the_size_close_and_keeps_its_modules(vit: Quantisable) -> None:
    source, ranges, folder = vit
    names = [layer.name for layer in layers_of(onnx.load(source.path))]
    built = quantize(source, Store(folder), names, ranges, PLAIN)
    assert built.artifact.bytes < 0.35 * source.bytes
    assert built.artifact.spec == source.spec == open_model(built.artifact.path).spec
    # 97.9 %, and never said to be more than it is.
    assert built.changes["percent of Conv and Linear operations in INT8"] == 97
    model = onnx.load(built.artifact.path)
    for node, place in zip(model.graph.node, modules_of(model).places, strict=True):
        if node.op_type == "QuantizeLinear":
            assert place.path[0].startswith("blocks."), node.name


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_compute_the_quantised_vit_close_to_the_float_one(vit: Quantisable, runtime: str) -> None:
    pytest.importorskip(runtime)
    source, ranges, folder = vit
    names = [layer.name for layer in layers_of(onnx.load(source.path))]
    built = quantize(source, Store(folder), names, ranges, PLAIN)
    assert close(source, built.artifact, runtime) < 0.1


def close(source: Artifact, made: Artifact, runtime: str) -> float:
    """Largest difference between two artifacts' logits on real images, over the largest logit."""
    images = open_dataset(VIT.parent / "vit").val.spread(8)
    found = []
    for artifact in (source, made):
        with backend(runtime).load(artifact) as engine, engine.session() as session:
            every = [
                session.run(feeds).outputs["logits"].copy() for feeds in CalibrationFeeds(images, source.spec)
            ]
        found.append(np.concatenate(every))
    return float(np.abs(found[1] - found[0]).max() / np.abs(found[0]).max())


@pytest.mark.parametrize(
    ("flags", "bits"), [(["avx2"], 7), (["avx2", "avx512_vnni"], 8), (["avx_vnni"], 8), (["asimddp"], 8)]
)
def test_eight_bit_weights_are_used_only_where_products_cannot_saturate(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], bits: int
) -> None:
    monkeypatch.setattr("vitesse.precision.weights.describe", lambda: {"cpu": {"flags": flags}})
    assert weight_bits_here() == bits
