"""The forms for CUDA compute the same on the CPU provider, which has all of them; what cannot be rewritten stays."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitesse.backends.onnxruntime_cuda_lowering import lower
from vitesse.fusion import clean_model, fuse_model

FASHION = Path(__file__).parents[2] / "examples" / "fashion"


@pytest.fixture(scope="module", params=["vit", "detr"])
def fused(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return fuse_model(clean_model(onnx.load(FASHION / f"{request.param}_fashion.onnx")).model).model


def answers(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: images})


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fused_model_computes_the_same_in_the_forms_for_cuda(fused: onnx.ModelProto, batch: int) -> None:
    lowered, changes, notes = lower(fused)
    lengths = [dim.dim_value for dim in fused.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).standard_normal((batch, *lengths[1:])).astype(np.float32)
    for expected, found in zip(answers(fused, images), answers(lowered, images), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert not notes
    assert changes["multi_head_attention"] == kinds(fused)["Attention"] > 0
    assert changes["skip_layer_norm"] == kinds(lowered)["SkipLayerNormalization"] > 0


def test_no_operator_is_left_that_the_provider_would_run_on_the_cpu(fused: onnx.ModelProto) -> None:
    lowered, _, _ = lower(fused)
    assert opset(fused) >= 23 > 21 >= opset(lowered)
    assert not kinds(lowered) & Counter(["Attention"])


def test_no_bias_is_added_where_the_operator_behind_takes_it_along(fused: onnx.ModelProto) -> None:
    lowered, _, _ = lower(fused)
    made = {output: node for node in lowered.graph.node for output in node.output}
    taking = ("MultiHeadAttention", "FastGelu", "BiasGelu", "SkipLayerNormalization")
    sums = [
        (node.op_type, made[name].name)
        for node in lowered.graph.node
        if node.op_type in taking
        for name in node.input[:3]
        if name in made and made[name].op_type == "Add"
    ]
    constants = {one.name for one in lowered.graph.initializer if len(one.dims) == 1}
    left = [one for one in sums if set(made[one[1]].input if one[1] in made else ()) & constants]
    assert not left
    assert all(len(node.input) == 4 for node in lowered.graph.node if node.op_type == "MultiHeadAttention")


def test_the_model_itself_its_names_and_its_metadata_stay(fused: onnx.ModelProto) -> None:
    before = fused.SerializeToString()
    lowered, _, _ = lower(fused)
    assert fused.SerializeToString() == before
    assert [one.name for one in lowered.graph.output] == [one.name for one in fused.graph.output]
    assert list(lowered.metadata_props) == list(fused.metadata_props)


def residual(skip_shape: list[int], *, computed_weight: bool = False) -> onnx.ModelProto:
    """x + skip, normalised over 8 features, and the sum itself."""
    nodes = [helper.make_node("Add", ["x", "skip"], ["sum"], name="add")]
    if computed_weight:
        nodes.append(helper.make_node("Neg", ["weight"], ["scale"], name="scale"))
    scale = "scale" if computed_weight else "weight"
    nodes.append(
        helper.make_node("LayerNormalization", ["sum", scale, "bias"], ["y"], name="norm", epsilon=1e-3)
    )
    random = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(random.standard_normal(8).astype(np.float32), name)
        for name in ("weight", "bias")
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("x", ["n", 5, 8]),
            ("skip", skip_shape),
            ("y", ["n", 5, 8]),
            ("sum", ["n", 5, 8]),
        )
    ]
    graph = helper.make_graph(nodes, "residual", values[:2], values[2:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_residual_sum_read_elsewhere_is_an_output_of_the_fused_operator() -> None:
    model = residual(["n", 5, 8])
    lowered, changes, _ = lower(model)
    assert changes["skip_layer_norm"] == 1
    assert kinds(lowered) == {"SkipLayerNormalization": 1}
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((2, 5, 8)).astype(np.float32) for name in ("x", "skip")}
    found, total = onnxruntime.InferenceSession(lowered.SerializeToString()).run(["y", "sum"], feeds)
    np.testing.assert_allclose(total, feeds["x"] + feeds["skip"], rtol=1e-6)
    weight, bias = (numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer)
    centred = total - total.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * weight + bias
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [residual([1, 5, 8]), residual(["n", 5, 8], computed_weight=True)],
    ids=["a sum that broadcasts", "weights made after the sum"],
)
def test_what_one_operator_cannot_do_stays_two(model: onnx.ModelProto) -> None:
    lowered, changes, _ = lower(model)
    assert changes["skip_layer_norm"] == 0
    assert kinds(lowered)["LayerNormalization"] == 1


def test_attention_with_a_mask_is_written_out_instead() -> None:
    values = {name: [2, 6, 16] for name in ("q", "k", "v", "y")}
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in values.items()}
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, [6, 6])
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], q_num_heads=4, kv_num_heads=4)
    graph = helper.make_graph([node], "masked", [infos["q"], infos["k"], infos["v"], mask], [infos["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    lowered, changes, _ = lower(model)
    assert changes["multi_head_attention"] == 0
    assert opset(lowered) <= 21
    assert kinds(lowered)["Softmax"] == 1
    random = np.random.default_rng(1)
    feeds = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in values.items()
        if name != "y"
    }
    feeds["mask"] = random.standard_normal((6, 6)).astype(np.float32)
    found, expected = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, feeds)[0] for one in (lowered, model)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
