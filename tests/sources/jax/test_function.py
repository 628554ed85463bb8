"""JAX functions and flax modules → verified graphs; what is mis-translated is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax2onnx", reason="needs the extra jax")
import jax
import jax.numpy as jnp
from flax import linen, nnx

import fusing
import tiny_jax
from tiny_jax import CLASSES, SIZE, Hybrid, LinenViT, StdConv, detector, detector_params, variables_of
from vitesse.errors import ModelError, SpecError, UsageError
from vitesse.fusion import clean_model, fuse_model
from vitesse.sources.jax.function import JaxSource, from_jax
from vitesse.sources.signature import check_spec_against, graph_inputs, graph_outputs
from vitesse.sources.source import Exported, ExportOptions
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

INPUTS = ("B", *SIZE, 3)
FIXED = ExportOptions(dynamic=frozenset())


def spec(**changes: Any) -> ModelSpec:
    made = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "pixels", {"logits": "scores"}, Preprocessing(SIZE))
    return replace(made, **changes)


def detection(**outputs: str) -> ModelSpec:
    named = outputs or {"logits": "logits", "boxes": "boxes"}
    return spec(task=Task.DETECTION, decode=Decode.DETR_SIGMOID, outputs=named)


def noise(batch: int, seed: int = 5) -> Any:
    return fusing.normal(batch, *SIZE, 3, seed=seed)


def linear(params: Any, images: Any) -> Any:
    return images.mean((1, 2)) @ params


WEIGHT = np.random.default_rng(2).standard_normal((3, CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def vit() -> tuple[LinenViT, Any]:
    return LinenViT(), variables_of(LinenViT())


@pytest.fixture(scope="module")
def vit_source(vit: tuple[LinenViT, Any]) -> JaxSource:
    return from_jax(*vit, INPUTS)


@pytest.fixture(scope="module")
def fixed_vit(vit_source: JaxSource) -> Exported:
    return vit_source.export(FIXED)


@pytest.mark.parametrize("opset", [18, 23])
def test_a_linen_vit_ends_as_the_operators_of_a_vit(
    vit: tuple[LinenViT, Any], vit_source: JaxSource, opset: int
) -> None:
    exported = vit_source.export(ExportOptions(opset=opset))
    check_spec_against(exported.model, exported.spec)
    assert fusing.ops(exported.model)["LayerNormalization"] == 5
    graph = fuse_model(clean_model(exported.model).model).model
    counts = fusing.ops(graph)
    assert counts == {**counts, "LayerNormalization": 5, "Attention": 2, "Gelu": 2, "MatMul": 12, "Conv": 1}
    assert not counts.keys() & {"Einsum", "Dropout", "Softmax", "ReduceMean", "Tanh", "Erf"}
    assert counts["Shape"] == 1  # of the images, to repeat the class token for each of them
    module, variables = vit
    for batch in (1, 3):
        wanted = module.apply(variables, noise(batch), train=False)
        (found,) = fusing.run(graph, {"images": noise(batch).transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_fixed_batch_leaves_no_shape_arithmetic(fixed_vit: Exported) -> None:
    assert graph_inputs(fixed_vit.model)[0].shape == (1, 3, *SIZE)
    counts = fusing.ops(fuse_model(clean_model(fixed_vit.model).model).model)
    assert counts == {**counts, "LayerNormalization": 5, "Attention": 2}
    assert not counts.keys() & {"Shape", "Tile", "Slice", "Dropout", "Einsum"}


def test_an_nnx_vit_is_exported_as_at_inference_and_left_as_it_was() -> None:
    module = tiny_jax.NnxViT(nnx.Rngs(0))
    exported = from_jax(module, None, INPUTS).export(ExportOptions())
    assert not module.blocks[0].dropout.deterministic
    counts = fusing.ops(fuse_model(clean_model(exported.model).model).model)
    assert counts == {**counts, "LayerNormalization": 5, "Attention": 2, "Gelu": 2}
    module.eval()
    (found,) = fusing.run(exported.model, {"images": noise(3).transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, module(noise(3)), atol=1e-5)


def test_the_reference_is_what_jax_answers(vit: tuple[LinenViT, Any], fixed_vit: Exported) -> None:
    feeds = {"images": noise(2).transpose(0, 3, 1, 2)}
    answered = fixed_vit.reference(feeds)["logits"]
    np.testing.assert_allclose(answered, vit[0].apply(vit[1], noise(2), train=False), atol=1e-6)


def test_the_parameters_may_come_without_the_name_of_their_collection(vit: tuple[LinenViT, Any]) -> None:
    source = from_jax(vit[0], vit[1]["params"], INPUTS)
    assert source.identity == from_jax(*vit, INPUTS).identity


def test_a_convolution_that_overrides_its_parameters_is_refused() -> None:
    hybrid = Hybrid(StdConv)
    source = from_jax(hybrid, variables_of(hybrid), INPUTS, title="a hybrid")
    with pytest.raises(ModelError, match="jax2onnx mis-translates a hybrid") as refused:
        source.export(ExportOptions())
    assert "`logits` differs by" in refused.value.what and "of its range" in refused.value.what
    assert "`param()` of a Conv with weight standardisation" in refused.value.cause
    assert "vitesse optimize MODEL.npz" in refused.value.fix and "bake the kernels" in refused.value.fix


def test_the_same_network_with_baked_kernels_passes() -> None:
    variables = variables_of(Hybrid(StdConv))
    kernel = np.asarray(tiny_jax.standardised(variables["params"]["root"]["kernel"]))
    baked = {"params": {**variables["params"], "root": {"kernel": kernel}}}
    exported = from_jax(Hybrid(linen.Conv), baked, INPUTS).export(ExportOptions())
    (found,) = fusing.run(exported.model, {"images": noise(3).transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, Hybrid(StdConv).apply(variables, noise(3)), atol=1e-4)


def test_a_head_of_zeros_is_refused_because_nothing_could_be_told_from_it() -> None:
    with pytest.raises(ModelError, match="gives the same `logits` for different images") as refused:
        from_jax(linear, np.zeros_like(WEIGHT), INPUTS).export(ExportOptions())
    assert "begins with zeros" in refused.value.cause


def test_a_spec_names_the_tensors_and_chooses_the_layout() -> None:
    layout = spec(preprocessing=Preprocessing(SIZE, layout="NHWC"))
    exported = from_jax(linear, WEIGHT, INPUTS, spec=layout).export(ExportOptions())
    (image,), (scores,) = graph_inputs(exported.model), graph_outputs(exported.model)
    assert (image.name, image.shape) == ("pixels", ("batch", *SIZE, 3))
    assert (scores.name, scores.shape) == ("scores", ("batch", CLASSES))
    (found,) = fusing.run(exported.model, {"pixels": noise(3)})
    np.testing.assert_allclose(found, linear(WEIGHT, noise(3)), atol=1e-6)


def test_without_a_spec_it_is_a_classifier_of_pixels_from_minus_one_to_one() -> None:
    made = from_jax(linear, WEIGHT, INPUTS).spec
    assert (made.task, made.preprocessing.size) == (Task.CLASSIFICATION, SIZE)
    assert made.preprocessing.mean == made.preprocessing.std == (0.5, 0.5, 0.5)


def test_a_detector_gives_what_the_spec_names_and_the_rest_only_when_asked() -> None:
    named = detection(logits="pred_logits", boxes="pred_boxes")
    source = from_jax(detector, detector_params(), INPUTS, spec=named)
    lean, whole = source.export(ExportOptions()), source.export(ExportOptions(keep_aux=True))
    names = [entry.name for entry in graph_outputs(lean.model)]
    assert names == ["pred_logits", "pred_boxes"]
    assert [entry.name for entry in graph_outputs(whole.model)] == [*names, "aux_layers.0.logits"]
    wanted = detector(detector_params(), noise(3))
    feeds = {"pixels": noise(3).transpose(0, 3, 1, 2)}
    for name, found in zip(("logits", "boxes"), fusing.run(lean.model, feeds), strict=True):
        np.testing.assert_allclose(found, wanted[name], atol=1e-5)
    np.testing.assert_allclose(fusing.run(whole.model, feeds)[2], wanted["layers"][0]["logits"], atol=1e-5)


def test_a_tuple_is_read_in_the_order_of_logits_and_boxes() -> None:
    def pair(params: Any, images: Any) -> Any:
        found = detector(params, images)
        return found["logits"], found["boxes"]

    exported = from_jax(pair, detector_params(), INPUTS, spec=detection()).export(ExportOptions())
    assert [(entry.name, entry.shape[-2:]) for entry in graph_outputs(exported.model)] == [
        ("logits", (7, 4)),
        ("boxes", (7, 4)),
    ]
    swapped = detection(logits="boxes", boxes="logits")
    crossed = from_jax(pair, detector_params(), INPUTS, spec=swapped).export(ExportOptions())
    feeds = {"pixels": noise(1).transpose(0, 3, 1, 2)}
    np.testing.assert_array_equal(fusing.run(exported.model, feeds), fusing.run(crossed.model, feeds))


def test_a_detector_without_a_spec_is_refused() -> None:
    with pytest.raises(SpecError, match=r"boxes float32\[2,7,4\], .*no spec says how to read it") as refused:
        from_jax(detector, detector_params(), INPUTS)
    assert "detr_sigmoid" in refused.value.fix


def test_an_output_that_the_function_does_not_return_is_named() -> None:
    def logits_only(params: Any, images: Any) -> Any:
        return {"logits": detector(params, images)["logits"]}

    with pytest.raises(SpecError, match=r"none of it is the output `boxes` \(boxes\)") as refused:
        from_jax(logits_only, detector_params(), INPUTS, spec=detection())
    assert "in this order: logits, boxes" in refused.value.expected


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float64])
def test_parameters_of_another_precision_become_float32(kind: Any) -> None:
    exported = from_jax(linear, np.asarray(WEIGHT, kind), INPUTS).export(FIXED)
    assert {tensor.data_type for tensor in exported.model.graph.initializer} <= {1, 7}
    wanted = linear(np.asarray(WEIGHT, kind).astype(np.float32), noise(1))
    (found,) = fusing.run(exported.model, {"images": noise(1).transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_module_that_computes_in_bfloat16_is_refused() -> None:
    dense = linen.Dense(CLASSES, dtype=jnp.bfloat16)

    def narrow(params: Any, images: Any) -> Any:
        return dense.apply({"params": params}, images.mean((1, 2))).astype(jnp.float32)

    params = {"kernel": WEIGHT, "bias": np.zeros(CLASSES, np.float32)}
    with pytest.raises(ModelError, match="narrow computes in bfloat16") as refused:
        from_jax(narrow, params, INPUTS).export(ExportOptions())
    assert "dtype=jax.numpy.float32" in refused.value.fix


def test_a_function_that_computes_in_float64_is_refused() -> None:
    def wide(params: Any, images: Any) -> Any:
        return linear(params, images) * np.full(CLASSES, 2.0)

    with jax.enable_x64(True), pytest.raises(ModelError, match="wide computes in float64") as refused:
        from_jax(wide, WEIGHT, INPUTS).export(ExportOptions())
    assert "jax_enable_x64" in refused.value.cause
    from_jax(wide, WEIGHT, INPUTS).export(FIXED)


def test_statistics_of_batch_normalisation_are_used_and_not_updated() -> None:
    class Normed(linen.Module):
        @linen.compact
        def __call__(self, images: Any, use_running_average: bool = False) -> Any:
            x = linen.BatchNorm(use_running_average=use_running_average)(images)
            return linen.Dense(CLASSES)(x.mean((1, 2)))

    variables = variables_of(Normed())
    variables["batch_stats"]["BatchNorm_0"]["mean"] = np.array([0.3, -0.2, 1.0], np.float32)
    exported = from_jax(Normed(), variables, INPUTS).export(ExportOptions())
    wanted = Normed().apply(variables, noise(3), use_running_average=True)
    (found,) = fusing.run(exported.model, {"images": noise(3).transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_primitive_that_jax2onnx_does_not_know_is_named() -> None:
    def foreign(params: Any, images: Any) -> Any:
        shape = jax.ShapeDtypeStruct((images.shape[0], 3), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(x).mean((1, 2)), shape, images) @ params

    with pytest.raises(ModelError, match="jax2onnx cannot translate foreign: NotImplementedError") as refused:
        from_jax(foreign, WEIGHT, INPUTS).export(ExportOptions())
    assert refused.value.cause == "the primitive `pure_callback`"


def test_a_function_that_asks_for_the_batch_size_is_exported_with_a_fixed_one() -> None:
    def asking(params: Any, images: Any) -> Any:
        return linear(params, images) * (2.0 if images.shape[0] > 1 else 1.0)

    source = from_jax(asking, WEIGHT, (2, *SIZE, 3))
    with pytest.raises(ModelError, match="cannot be exported with a dynamic batch") as refused:
        source.export(ExportOptions())
    assert "--dynamic none" in refused.value.fix
    assert graph_inputs(source.export(FIXED).model)[0].shape[0] == 2


def test_a_function_that_fails_says_how() -> None:
    with pytest.raises(ModelError, match=r"linear fails on images float32\[2,32,48,3\]: TypeError"):
        from_jax(linear, WEIGHT[:2], INPUTS)


def test_another_size_is_traced_where_the_model_can_take_it(vit_source: JaxSource) -> None:
    exported = from_jax(linear, WEIGHT, INPUTS).export(ExportOptions(size=(40, 24)))
    assert exported.spec.preprocessing.size == (40, 24)
    assert graph_inputs(exported.model)[0].shape == ("batch", 3, 40, 24)
    with pytest.raises(UsageError, match="--size 64x64: LinenViT fails on images") as refused:
        vit_source.export(ExportOptions(size=(64, 64)))
    assert refused.value.expected == "32x48"


def test_dynamic_height_and_width_are_refused(vit_source: JaxSource) -> None:
    with pytest.raises(UsageError, match="--dynamic height,width: LinenViT"):
        vit_source.export(ExportOptions(dynamic=frozenset({"batch", "height", "width"})))


@pytest.mark.parametrize(
    "inputs", [("B", 3, *SIZE), (*SIZE, 3), [INPUTS, INPUTS], "B", ("B", "H", "W", 3), None]
)
def test_inputs_that_are_no_images_with_channels_last_are_refused(inputs: Any) -> None:
    with pytest.raises(UsageError, match="of a JAX model") as refused:
        from_jax(linear, WEIGHT, inputs)
    assert '("B", 224, 224, 3)' in refused.value.expected


@pytest.mark.parametrize(
    "inputs", [noise(4), [(4, *SIZE, 3)], jax.ShapeDtypeStruct((4, *SIZE, 3), jnp.float32)]
)
def test_inputs_may_be_an_array_its_shape_or_a_list_of_one(inputs: Any) -> None:
    assert from_jax(linear, WEIGHT, inputs).batch == 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (spec(preprocessing=Preprocessing((64, 64))), "takes images of 32×48"),
        (spec(preprocessing=Preprocessing(SIZE, layout="HWC")), "layout 'HWC'"),
        (spec(valid_size_input="sizes"), "asks for the input `sizes`"),
    ],
    ids=["size", "layout", "another input"],
)
def test_a_spec_that_does_not_fit_is_refused(wrong: ModelSpec, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        from_jax(linear, WEIGHT, INPUTS, spec=wrong)


def test_what_is_no_model_or_no_parameter_is_refused() -> None:
    with pytest.raises(UsageError, match="from_jax got int as the model"):
        from_jax(3, WEIGHT, INPUTS)
    with pytest.raises(UsageError, match="the parameter `name` of linear is a str"):
        from_jax(linear, {"name": "vit"}, INPUTS)


def test_the_identity_follows_parameters_and_computation_only() -> None:
    def twice(params: Any, images: Any) -> Any:
        return linear(params, images) * 2

    def with_constant(last: float) -> Any:
        table = np.array([1, 1, 1, 1, last], np.float32)
        return lambda params, images: linear(params, images) * table

    def identity(fn: Any, params: Any = WEIGHT) -> str:
        return from_jax(fn, params, INPUTS).identity

    assert identity(linear) == identity(linear, WEIGHT.copy()) != identity(linear, WEIGHT + 1e-6)
    assert identity(linear) != identity(twice)
    assert identity(with_constant(1)) == identity(with_constant(1)) != identity(with_constant(2))
    assert len(identity(linear)) == 64
