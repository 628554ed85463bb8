"""Which layers become INT8, that the ranges are those of the data, and that the weights are what they claim to be."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.errors import DataError, ModelError
from vitesse.precision.calibration import calibrate
from vitesse.precision.int8 import (
    OP_TYPES,
    SCHEMES,
    applicable_schemes,
    quantisable_nodes,
    quantize,
    weight_bits_here,
)
from vitesse.recipe import Int8Options
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task
from vitesse.stages import CalibrationFeeds, open_model
from vitesse.storage import sha256_of

FULL = SCHEMES[0]
SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((8, 8)))
EXAMPLES = Path(__file__).parents[2] / "examples" / "fashion"


def weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32) * 0.2
    return numpy_helper.from_array(values, name)


def network(*, norm: bool = True) -> onnx.ModelProto:
    """Two convolutions, pooled to tokens; a projection, a widening layer, a narrowing one, a norm and a head."""
    nodes = [
        helper.make_node("Conv", ["x", "stem_w"], ["a"], "stem", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "conv_w"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("MatMul", ["e", "projection_w"], ["f"], "projection"),
        helper.make_node("MatMul", ["f", "wide_w"], ["g"], "wide"),
        helper.make_node("MatMul", ["g", "narrow_w"], ["h"], "narrow"),
        helper.make_node("MatMul", ["h", "h_t"], ["dynamic"], "two_activations"),
        helper.make_node("Transpose", ["h"], ["h_t"], "turn", perm=[1, 0]),
    ]
    nodes = [*nodes[:8], nodes[9], nodes[8]]
    last = "h"
    weights = [
        weight("stem_w", 16, 3, 3, 3),
        weight("conv_w", 16, 16, 3, 3),
        weight("projection_w", 16, 16),
        weight("wide_w", 16, 64),
        weight("narrow_w", 64, 16),
        weight("head_w", 16, 4),
    ]
    if norm:
        nodes.append(helper.make_node("LayerNormalization", ["h", "scale", "bias"], ["n"], "norm"))
        weights += [
            numpy_helper.from_array(np.ones(16, np.float32), "scale"),
            numpy_helper.from_array(np.zeros(16, np.float32), "bias"),
        ]
        last = "n"
    nodes.append(helper.make_node("MatMul", [last, "head_w"], ["y"], "head"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def artifact(folder: Path, model: onnx.ModelProto) -> Artifact:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return Artifact(path, sha256_of(path), path.stat().st_size, SPEC, Provenance("fuse"))


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((1, 3, 8, 8), dtype=np.float32)} for _ in range(count)]


def names(scheme_name: str, model: onnx.ModelProto) -> list[str]:
    scheme = next(one for one in SCHEMES if one.name == scheme_name)
    return [node.name for node in quantisable_nodes(model, scheme)]


def test_the_first_convolution_and_the_head_stay_float_and_so_does_a_product_of_activations() -> None:
    assert names("int8", network()) == ["conv", "projection", "wide", "narrow"]


def test_schemes_separate_convolutions_mlp_and_projections() -> None:
    assert names("int8:conv+mlp", network()) == ["conv", "wide", "narrow"]
    assert names("int8:conv", network()) == ["conv"]
    assert names("int8:mlp", network()) == ["wide", "narrow"]


def test_without_a_normalisation_the_last_layers_are_the_heads() -> None:
    assert names("int8", network(norm=False)) == ["conv", "projection", "wide", "narrow"]


def test_a_scheme_that_would_choose_the_same_layers_again_is_not_tried() -> None:
    vit = onnx.load(EXAMPLES / "vit_fashion.onnx")
    assert len(applicable_schemes(network())) == 4
    assert "int8:conv" not in [scheme.name for scheme in applicable_schemes(vit)]


def test_a_graph_without_layers_to_quantise_has_no_scheme() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    assert applicable_schemes(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]))) == ()


def test_weights_are_symmetric_int8_per_channel_and_close_to_the_floats(tmp_path: Path) -> None:
    source = artifact(tmp_path, network())
    options = Int8Options(weight_bits=8)
    built = quantize(source, Store(tmp_path), FULL, calibrate(source, feeds(), OP_TYPES, options), options)
    model = onnx.load(built.artifact.path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values, scale, zero = (stored[f"wide_w_{kind}"] for kind in ("quantized", "scale", "zero_point"))
    assert values.dtype == np.int8
    assert scale.shape == (64,), "one scale per output channel"
    assert not zero.any()
    floats = numpy_helper.to_array(next(t for t in source_weights(source) if t.name == "wide_w"))
    np.testing.assert_allclose(values * scale, floats, atol=float(scale.max()) / 2 + 1e-7)
    assert built.changes["Conv to INT8"] == 1
    assert built.changes["Linear to INT8"] == 3
    assert built.changes["Conv and Linear left in FP32"] == 2


def source_weights(source: Artifact) -> list[TensorProto]:
    return list(onnx.load(source.path).graph.initializer)


def test_the_quantised_file_is_valid_onnx_and_carries_its_spec(tmp_path: Path) -> None:
    source = artifact(tmp_path, network())
    options = Int8Options()
    built = quantize(source, Store(tmp_path), FULL, calibrate(source, feeds(), OP_TYPES, options), options)
    assert open_model(built.artifact.path).spec == SPEC


def test_seven_bit_weights_stay_inside_seven_bits(tmp_path: Path) -> None:
    source = artifact(tmp_path, network())
    options = Int8Options(weight_bits=7)
    built = quantize(source, Store(tmp_path), FULL, calibrate(source, feeds(), OP_TYPES, options), options)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(built.artifact.path).graph.initializer}
    assert np.abs(stored["wide_w_quantized"].astype(int)).max() <= 64
    assert built.artifact.provenance.options == {"weight_bits": "7"}


def test_minmax_ranges_are_the_smallest_and_largest_value_of_all_images(tmp_path: Path) -> None:
    source = artifact(tmp_path, network())
    images = feeds(5)
    ranges = calibrate(source, images, OP_TYPES, Int8Options(method="minmax"))
    low, high = ranges["x"].range_value
    assert float(np.ravel(low)[0]) == pytest.approx(min(float(image["x"].min()) for image in images))
    assert float(np.ravel(high)[0]) == pytest.approx(max(float(image["x"].max()) for image in images))


def test_percentile_leaves_a_lone_outlier_outside(tmp_path: Path) -> None:
    source = artifact(tmp_path, network())
    images = feeds(50)
    images[7]["x"][0, 0, 0, 0] = 1000.0
    cut = calibrate(source, images, OP_TYPES, Int8Options(percentile=99.9))["x"].range_value
    kept = calibrate(source, images, OP_TYPES, Int8Options(method="minmax"))["x"].range_value
    assert float(np.ravel(kept[1])[0]) == pytest.approx(1000.0)
    assert float(np.ravel(cut[1])[0]) < 20


def test_calibration_holds_one_image_at_a_time(tmp_path: Path) -> None:
    source = artifact(tmp_path, network())
    alive = 0

    class Watched(dict[str, np.ndarray]):
        def __init__(self) -> None:
            nonlocal alive
            alive += 1
            assert alive <= 2, "an earlier image is still held"
            super().__init__(feeds(1)[0])

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    calibrate(source, (Watched() for _ in range(6)), OP_TYPES, Int8Options())


def test_no_calibration_image_is_an_error_with_the_option_to_name_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no calibration image was read(.|\n)*--calib-data"):
        calibrate(artifact(tmp_path, network()), [], OP_TYPES, Int8Options())


def test_a_feed_that_does_not_fit_is_the_quantisers_refusal_and_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"quantiser cannot take model\.onnx(.|\n)*--precisions fp32"):
        calibrate(
            artifact(tmp_path, network()), [{"wrong": np.zeros(1, np.float32)}], OP_TYPES, Int8Options()
        )


def test_the_quantised_vit_still_classifies_and_is_a_quarter_of_the_size(tmp_path: Path) -> None:
    from vitesse.backends.onnxruntime import OnnxRuntimeBackend
    from vitesse.data.dataset import open_dataset
    from vitesse.stages import clean
    from vitesse.verify.accuracy import evaluate

    data = open_dataset(EXAMPLES / "vit")
    source = clean(open_model(EXAMPLES / "vit_fashion.onnx"), Store(tmp_path)).artifact
    options = Int8Options()
    ranges = calibrate(source, CalibrationFeeds(data.calib.spread(40), source.spec), OP_TYPES, options)
    built = quantize(source, Store(tmp_path), FULL, ranges, options).artifact
    with OnnxRuntimeBackend().load(built) as engine, engine.session() as session:
        top1 = evaluate(
            lambda inputs: session.run(inputs).outputs, data.val.spread(200), source.spec
        ).accuracy.value
    assert top1 > 0.88
    assert built.bytes < 0.4 * source.bytes


@pytest.mark.parametrize(
    ("flags", "bits"), [(["avx2"], 7), (["avx2", "avx512_vnni"], 8), (["avx_vnni"], 8), (["asimddp"], 8)]
)
def test_eight_bit_weights_are_used_only_where_products_cannot_saturate(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], bits: int
) -> None:
    monkeypatch.setattr("vitesse.precision.int8.describe", lambda: {"cpu": {"flags": flags}})
    assert weight_bits_here() == bits
