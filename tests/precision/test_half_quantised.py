"""Q/DQ graphs whose rest is FP16: which scales are FP16, that numbers stay, and that TensorRT for RTX compiles them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compiling import compiled
from fashion import DETR, VIT
from fusing import graph, normal, ops, run
from quantising import PLAIN, constants, makers, quantised
from vitesse.artifact import Artifact, Store
from vitesse.data.dataset import open_dataset
from vitesse.errors import BackendError, ModelError
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.emulation import computes_in_half, emulated
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.half_quantised import half_quantised, to_half_quantised
from vitesse.precision.quantize import quantize
from vitesse.profile.modules import modules_of
from vitesse.recipe import HalfOptions, Int8Options
from vitesse.stages import CalibrationFeeds, clean, fuse, open_model

OPTIONS = HalfOptions()
EYE = np.eye(8, dtype=np.float32)
TWO = "a = MatMul(x, w) b = Tanh(a) c = MatMul(b, v) d = Tanh(c) y = MatMul(d, head)"
REACH = dict.fromkeys("xabcd", (-4.0, 4.0))
X = {"x": normal(1, 5, 8)}


def two_layers(
    folder: Path, *, w: float = 1.0, v: float = 1.0, number: str = "int8", opset: int = 19
) -> onnx.ModelProto:
    """Two linear layers of eight bits, `MatMul_a` and `MatMul_c`, with weights times `w` and `v`, and a float head."""
    model = graph(TWO, opset=opset, w=w * normal(8, 8, seed=1), v=v * normal(8, 8, seed=2), head=EYE)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return quantised(folder, model, REACH, number=number)[0]


def scale_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of the scale of every quantiser, by the name of what it makes."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        node.output[0]: stored[node.input[1]]
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }


def written(model: onnx.ModelProto, *islands: str, keep_io: bool = True) -> onnx.ModelProto:
    made, _ = half_quantised(model, islands, HalfOptions(keep_io=keep_io))
    onnx.checker.check_model(made, full_check=True)
    return made


def off(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Largest difference of the first output over its largest value; inf where one is not finite."""
    a, b = run(one, X)[0], run(other, X)[0]
    return float(np.abs(a - b).max() / np.abs(a).max()) if np.isfinite(b).all() else float("inf")


# --- what is written


@pytest.mark.parametrize("number", ["int8", "fp8"])
@pytest.mark.parametrize("opset", [17, 19, 21, 23])
def test_what_is_not_quantised_becomes_fp16_with_the_same_numbers(
    tmp_path: Path, number: str, opset: int
) -> None:
    plain = two_layers(tmp_path, number=number, opset=opset)
    made, changes = half_quantised(plain, (), OPTIONS)
    onnx.checker.check_model(made, full_check=True)
    assert set(scale_types(made).values()) == {TensorProto.FLOAT16}
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert kinds == {TensorProto.FLOAT16, TensorProto.INT8 if number == "int8" else TensorProto.FLOAT8E4M3FN}
    assert {entry.type.tensor_type.elem_type for entry in (*made.graph.input, *made.graph.output)} == {1}
    assert changes["quantisers with FP16 scales"] == 6 and changes["quantisers with FP32 scales"] == 0
    assert changes["Cast inserted"] == 2 == ops(made)["Cast"]
    assert computes_in_half(made)
    # A value that FP16 moves across the middle between two steps lands one step away: 3 % in E4M3.
    assert off(plain, emulated(made)) < (0.02 if number == "int8" else 0.08)


def test_the_stored_weights_are_untouched(tmp_path: Path) -> None:
    plain = two_layers(tmp_path)
    before, after = constants(plain), constants(written(plain))
    for name in ("w_quantized", "v_quantized"):
        np.testing.assert_array_equal(after[name], before[name])


def test_emulation_rounds_what_is_taken_back_from_eight_bits_as_fp16_holds_it(tmp_path: Path) -> None:
    made = written(two_layers(tmp_path))
    stored = constants(made)
    expected = stored["w_quantized"].astype(np.float32) * stored["w_scale"].astype(np.float32)
    float_graph = emulated(made)
    float_graph.graph.output.append(
        onnx.helper.make_tensor_value_info("w_dequantized", TensorProto.FLOAT, None)
    )
    np.testing.assert_array_equal(run(float_graph, X)[1], expected.astype(np.float16).astype(np.float32))


def test_inputs_and_outputs_are_fp16_where_that_is_asked_for(tmp_path: Path) -> None:
    made = written(two_layers(tmp_path), keep_io=False)
    assert {entry.type.tensor_type.elem_type for entry in (*made.graph.input, *made.graph.output)} == {10}
    assert ops(made)["Cast"] == 0


# --- scales that FP16 cannot hold


@pytest.mark.parametrize("w", [1e-9, 1e-5, 1e-3])
def test_a_layer_with_a_scale_that_fp16_loses_keeps_all_its_scales_in_fp32(tmp_path: Path, w: float) -> None:
    plain = two_layers(tmp_path, w=w)
    made = written(plain)
    wide = {name for name, kind in scale_types(made).items() if kind == TensorProto.FLOAT}
    assert wide == {"x_quantized", "x_dequantized", "w_dequantized"}, "the other layer has FP16 scales"
    stored = constants(made)
    np.testing.assert_array_equal(stored["w_scale"], constants(plain)["w_scale"])


def test_without_that_the_layer_would_be_lost(tmp_path: Path) -> None:
    plain = two_layers(tmp_path, w=1e-5)

    def lost(half: onnx.ModelProto) -> float:
        """Relative error of what the first layer makes, against the plain Q/DQ graph."""
        found = []
        for model in (plain, emulated(half)):
            seen = onnx.ModelProto()
            seen.CopyFrom(model)
            seen.graph.output.append(onnx.helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
            found.append(run(seen, X)[1])
        return float(np.abs(found[1] - found[0]).max() / np.abs(found[0]).max())

    assert lost(written(plain)) < 0.01
    assert lost(HalfGraph(plain).written()) > 0.05


def test_layers_that_read_the_same_rounded_tensor_have_scales_of_one_type(tmp_path: Path) -> None:
    body = "a = MatMul(x, w) b = MatMul(x, v) c = Add(a, b) y = MatMul(c, head)"
    model = graph(body, w=1e-6 * normal(8, 8, seed=1), v=normal(8, 8, seed=2), head=EYE)
    made = written(quantised(tmp_path, model, REACH)[0])
    # TensorRT refuses a layer whose two scales differ in type, and both layers share the scale of x.
    assert set(scale_types(made).values()) == {TensorProto.FLOAT}


def test_numbers_beyond_fp16_are_taken_back_in_fp32(tmp_path: Path) -> None:
    model = graph("a = MatMul(x, w) b = Tanh(a) y = MatMul(b, head)", w=normal(8, 8), head=EYE)
    small = quantised(tmp_path / "s", model, {"x": (-1e3, 1e3)})[0]
    large = quantised(tmp_path / "l", model, {"x": (-1e5, 1e5)})[0]
    assert set(scale_types(written(small)).values()) == {TensorProto.FLOAT16}
    assert set(scale_types(written(large)).values()) == {TensorProto.FLOAT}


def test_an_island_between_quantisers_reads_fp32_without_going_through_fp16(tmp_path: Path) -> None:
    made = written(two_layers(tmp_path), "MatMul_a")
    assert scale_types(made)["w_dequantized"] == scale_types(made)["x_quantized"] == TensorProto.FLOAT
    made_by = makers(made)
    layer = next(node for node in made.graph.node if node.name == "MatMul_a")
    assert [made_by[name].op_type for name in layer.input] == ["DequantizeLinear", "DequantizeLinear"]
    assert made_by["x_quantized"].input[0] == "x", "the input is FP32 and is rounded from FP32"
    assert scale_types(made)["v_dequantized"] == TensorProto.FLOAT16


def test_where_the_opset_cannot_be_raised_every_scale_stays_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ModelError("no")

    plain = two_layers(tmp_path, opset=17)
    monkeypatch.setattr("vitesse.precision.half_quantised.raise_opset", refuses)
    made = written(plain)
    assert made.opset_import[0].version == 17
    assert set(scale_types(made).values()) == {TensorProto.FLOAT}
    assert off(plain, emulated(made)) < 0.02


def test_a_graph_without_quantisers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no QuantizeLinear(.|\n)*quantise it first"):
        half_quantised(graph("y = MatMul(x, w)", w=EYE), (), OPTIONS)


def test_nodes_without_names_are_named_alike_with_and_without_quantisers(tmp_path: Path) -> None:
    model = graph(TWO, opset=19, w=normal(8, 8, seed=1), v=normal(8, 8, seed=2), head=EYE)
    before = HalfGraph(model).convertible
    after = HalfGraph(quantised(tmp_path, model, REACH)[0]).convertible
    assert set(before) == {"MatMul_a", "Tanh_b", "MatMul_c", "Tanh_d", "MatMul_y"} < set(after)


# --- the examples


def whole(path: Path, folder: Path, number: str) -> tuple[Artifact, Artifact, Artifact]:
    """The fused network, with every layer in eight bits, and with FP16 for the rest."""
    store = Store(folder)
    source = fuse(clean(open_model(path), store).artifact, store).artifact
    images = open_dataset(path.parent / path.stem.partition("_")[0]).calib.spread(16)
    options = Int8Options(method="minmax", weight_bits=8, bias_correction=False)
    found = calibrate_graph(source, store, CalibrationFeeds(images, source.spec), options, symmetric=True)
    names = [layer.name for layer in found.layers]
    eight = quantize(found.artifact, store, names, found.ranges, PLAIN, number=number, stage=number)
    half = to_half_quantised(eight, store, (), OPTIONS, stage=f"{number}+fp16")
    assert half.changes["Conv and Linear left in float"] == eight.changes["Conv and Linear left in FP32"]
    return source, eight.artifact, half.artifact


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Artifact]:
    return whole(VIT, tmp_path_factory.mktemp("vit"), "int8")


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Artifact]:
    return whole(DETR, tmp_path_factory.mktemp("detr"), "int8")


def test_the_vit_answers_as_in_int8_and_is_smaller(vit: tuple[Artifact, Artifact, Artifact]) -> None:
    source, eight, half = vit
    assert half.bytes < 0.97 * eight.bytes
    assert half.spec == source.spec == open_model(half.path).spec
    assert half.provenance.stage == "int8+fp16" and half.provenance.parent_sha256 == eight.sha256
    images = open_dataset(VIT.parent / "vit").val.spread(40)
    feeds = list(CalibrationFeeds(images, source.spec))
    answers = [
        np.concatenate([run(model, one)[0] for one in feeds])
        for model in (onnx.load(source.path), onnx.load(eight.path), emulated(onnx.load(half.path)))
    ]
    exact, rounded, mixed = answers
    assert (mixed.argmax(1) == rounded.argmax(1)).mean() >= 0.975
    # FP16 adds less than what rounding to eight bits already took.
    assert np.abs(mixed - rounded).mean() < np.abs(rounded - exact).mean()


def test_inserted_casts_and_quantisers_keep_their_modules(vit: tuple[Artifact, Artifact, Artifact]) -> None:
    model = onnx.load(vit[2].path)
    for node, place in zip(model.graph.node, modules_of(model).places, strict=True):
        if node.op_type == "QuantizeLinear":
            assert place.path[0].startswith("blocks."), node.name


# --- TensorRT for RTX, which compiles without a GPU


def held_in_eight_bits(plan: bytes, model: onnx.ModelProto) -> int:
    """How many of a graph's quantised weights stand in an engine as they are stored in the file."""
    return sum(
        array.dtype == np.int8 and array.ndim > 1 and array.tobytes()[:64] in plan
        for array in constants(model).values()
    )


@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86", "sm89", "sm120"])
def test_tensorrt_compiles_the_vit_in_int8_and_fp16_for_every_gpu(
    vit: tuple[Artifact, Artifact, Artifact], target: str
) -> None:
    model = onnx.load(vit[2].path)
    assert held_in_eight_bits(compiled(model, target), model) >= 30


def test_weights_in_fp16_would_be_seen(vit: tuple[Artifact, Artifact, Artifact]) -> None:
    model = HalfGraph(onnx.load(vit[0].path)).written()
    assert held_in_eight_bits(compiled(model, "sm86"), onnx.load(vit[2].path)) == 0


def test_tensorrt_compiles_the_detr_for_the_oldest_gpu(detr: tuple[Artifact, Artifact, Artifact]) -> None:
    assert compiled(onnx.load(detr[2].path), "sm75")


def test_for_turing_the_same_layers_beside_fp32_are_refused(vit: tuple[Artifact, Artifact, Artifact]) -> None:
    with pytest.raises(BackendError, match="FP32 GEMM is not supported"):
        compiled(onnx.load(vit[1].path), "sm75")


def test_tensorrt_takes_layers_whose_scales_stay_fp32_between_casts(tmp_path: Path) -> None:
    made = written(two_layers(tmp_path, w=1e-6))
    assert set(scale_types(made).values()) == {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert compiled(made, "sm75")
    # The broken form: the scale of the weights alone in FP32.
    quantisers = {"DequantizeLinear_w_dequantized"}
    broken = HalfGraph(two_layers(tmp_path)).written(quantisers)
    with pytest.raises(BackendError, match="type mismatch between matmul operand scales"):
        compiled(broken, "sm75")


def test_tensorrt_compiles_fp8_beside_fp16_where_the_gpu_has_it(tmp_path: Path) -> None:
    made = written(two_layers(tmp_path, number="fp8"))
    assert compiled(made, "sm89")
    with pytest.raises(BackendError, match="fp8_e4m3"):
        compiled(made, "sm86")
