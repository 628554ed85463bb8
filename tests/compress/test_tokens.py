"""Token merging in whole ViTs: the numbers of the paper's algorithm, and the models it must leave alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from compress.token_models import WIDTH, Faults, TinyViT, reference, tiny_vit
from fashion import VIT, artifact_of
from fusing import normal, ops, run
from tiny_graphs import detector, detector_spec
from tiny_onnx import SPEC, as_artifact
from vitesse.artifact import Store
from vitesse.backends.onnxruntime_lowering import lower
from vitesse.compress.lever import NotApplicable, Situation, lever
from vitesse.compress.tokens import merge_tokens, variants
from vitesse.data.dataset import open_dataset
from vitesse.data.preprocess import feeds
from vitesse.errors import UsageError
from vitesse.fusion import clean_model, fuse_model
from vitesse.profile.modules import modules_of

POOLINGS = ["token", "mean", "patches"]


def logits(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[Any]:
    return run(model, {"x": x})[0]


def situation(model: onnx.ModelProto, folder: Path, spec: Any = SPEC) -> Situation:
    path = folder / "model.onnx"
    onnx.save(model, path)
    artifact = dataclasses.replace(as_artifact(path), spec=spec)
    return Situation(artifact, [], Store(folder / "store"))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("rate", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 24), (3, 25)])
def test_a_vit_with_merged_tokens_computes_what_the_paper_says(
    pooling: str, rate: int, batch: int, tokens: int
) -> None:
    vit = tiny_vit(tokens=tokens, pooling=pooling)
    x = normal(batch, tokens, WIDTH, seed=rate)
    done = merge_tokens(vit.model(), rate)
    assert done.changes == {"blocks": 3, "tokens": 3 * rate}
    np.testing.assert_allclose(logits(done.model, x), reference(vit, x, rate), atol=1e-4)


@pytest.mark.parametrize(
    ("faults", "pooling"),
    [
        (Faults(unweighted=True), "token"),
        (Faults(not_proportional=True), "token"),
        (Faults(class_token_merged=True), "patches"),
        (Faults(values_compared=True), "token"),
        (Faults(plain_pooling=True), "mean"),
    ],
    ids=str,
)
def test_the_comparison_sees_each_mistake_one_could_make(faults: Faults, pooling: str) -> None:
    vit = tiny_vit(tokens=16, pooling=pooling)
    x = normal(3, 16, WIDTH)
    ours = logits(merge_tokens(vit.model(), 3).model, x)
    assert np.abs(ours - reference(vit, x, 3)).max() < 1e-4
    assert np.abs(ours - reference(vit, x, 3, faults)).max() > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
def test_merging_nothing_changes_no_bit(pooling: str) -> None:
    vit = tiny_vit(tokens=9, pooling=pooling)
    x = normal(2, 9, WIDTH)
    done = merge_tokens(vit.model(), 0)
    assert done.changes == {"blocks": 0, "tokens": 0}
    np.testing.assert_array_equal(logits(done.model, x), logits(vit.model(), x))


def test_a_vit_runs_out_of_tokens_gracefully() -> None:
    vit = tiny_vit(tokens=7)
    x = normal(2, 7, WIDTH)
    done = merge_tokens(vit.model(), 4)
    # Of A (0 is the class token) one stays: 7 → 5 of 2, 4, 6; 5 → 4 of 2, 4; 4: only 2 is left.
    assert done.changes == {"blocks": 2, "tokens": 3}
    np.testing.assert_allclose(logits(done.model, x), reference(vit, x, 4), atol=1e-4)


def test_equal_tokens_are_merged_alike_with_and_without_the_runtimes_optimiser(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = merge_tokens(tiny_vit(tokens=12).model(), 3).model
    x = np.repeat(normal(1, 3, WIDTH), 4, axis=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], logits(model, x), atol=1e-5)


def test_the_declared_lengths_are_those_that_come_out() -> None:
    model = merge_tokens(tiny_vit(tokens=16, pooling="mean").model(), 3).model
    declared = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in model.graph.value_info
        if info.type.tensor_type.shape.dim
    }
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name in declared]
    del inner.graph.output[:]
    inner.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    checked = 0
    for name, value in zip(names, run(inner, {"x": normal(2, 16, WIDTH)}), strict=True):
        for length, real in zip(declared[name], value.shape, strict=True):
            assert length in (0, real), name
            checked += length > 0
    assert checked > 200
    assert declared["m2"] == [0, 7, WIDTH]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_runs_the_same_in_openvino_and_in_onnxruntimes_favourite_form(pooling: str) -> None:
    model = merge_tokens(tiny_vit(tokens=16, pooling=pooling).model(), 3).model
    x = normal(2, 16, WIDTH)
    expected = logits(model, x)
    np.testing.assert_allclose(logits(lower(model)[0], x), expected, atol=1e-5)
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    np.testing.assert_allclose(compiled({"x": x})[0], expected, atol=1e-5)


def test_the_new_nodes_belong_to_a_module_of_their_block() -> None:
    fused = fuse_model(clean_model(onnx.load(VIT)).model).model
    model = merge_tokens(fused, 2).model
    old = {node.name for node in fused.graph.node}
    placed = modules_of(model)
    paths = {placed.places[at].path for at, node in enumerate(model.graph.node) if node.name not in old}
    assert paths == {(f"blocks.{i}", "merge_tokens") for i in range(5)}
    assert {place.part.value for place in placed.places if "merge_tokens" in place.path} == {"blocks"}


# --- what must be left alone ---


def test_a_mask_that_hides_nothing_is_no_obstacle() -> None:
    vit = tiny_vit(tokens=9, pooling="mean")
    body = "always = Expand (seen, full) hidden = Where (always, nothing, much)" + vit.body("hidden")
    model = vit.model(
        body,
        seen=np.ones((1, 1, 9, 1), bool),
        full=np.array([1, 1, 9, 9]),
        nothing=0.0,
        much=-1e9,
    )
    x = normal(2, 9, WIDTH)
    np.testing.assert_allclose(logits(merge_tokens(model, 2).model, x), reference(vit, x, 2), atol=1e-4)


def masked(vit: TinyViT) -> onnx.ModelProto:
    return vit.model(vit.body("mask"), mask=np.triu(np.full((9, 9), -9, np.float32)))


def positions_in_every_block(vit: TinyViT) -> onnx.ModelProto:
    body = vit.body().replace(
        "m1 = LayerNormalization <epsilon = 1e-6> (t1,",
        "placed = Add (t1, positions) m1 = LayerNormalization <epsilon = 1e-6> (placed,",
    )
    return vit.model(body, positions=normal(1, 9, WIDTH))


def second_token_read(vit: TinyViT) -> onnx.ModelProto:
    return vit.model(vit.body().replace("(xend, zero)", "(xend, second)"), second=np.array(1))


def skip_past_blocks(vit: TinyViT) -> onnx.ModelProto:
    body = vit.body().replace(
        "c = Gather <axis = 1> (xend", "far = Add (xend, t0) c = Gather <axis = 1> (far"
    )
    return vit.model(body)


def mixed_by_a_matrix(vit: TinyViT) -> onnx.ModelProto:
    body = vit.body().replace(
        "c = Gather <axis = 1> (xend", "z = MatMul (mix, xend) c = Gather <axis = 1> (z"
    )
    return vit.model(body, mix=normal(9, 9))


def tokens_as_output(vit: TinyViT) -> onnx.ModelProto:
    model = vit.model()
    shape = ["N", 9, WIDTH]
    model.graph.output.append(onnx.helper.make_tensor_value_info("x2", onnx.TensorProto.FLOAT, shape))
    return model


def sizes_open(vit: TinyViT) -> onnx.ModelProto:
    model = vit.model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "T"
    return model


def attention_written_out(vit: TinyViT) -> onnx.ModelProto:
    return vit.model("c = Gather <axis = 1> (x, zero) y = MatMul (c, head)")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (masked, "has a mask, which knows the tokens by their places"),
        (positions_in_every_block, "joins the tokens with something that has a row for each of them"),
        (skip_past_blocks, "a connection past several blocks"),
        (second_token_read, "picks tokens by their places"),
        (mixed_by_a_matrix, "reads the tokens"),
        (tokens_as_output, "the tokens themselves are an output (x2)"),
        (sizes_open, "a size of images that is not fixed"),
        (attention_written_out, "no block of a plain Vision Transformer was found"),
    ],
)
def test_a_model_whose_tokens_have_places_is_left_alone_with_the_reason(
    spoil: Callable[[TinyViT], onnx.ModelProto], reason: str, tmp_path: Path
) -> None:
    model = spoil(tiny_vit(tokens=9))
    with pytest.raises(NotApplicable) as refused:
        merge_tokens(model, 1)
    assert reason in str(refused.value)
    with pytest.raises(NotApplicable):
        variants(situation(model, tmp_path))


def test_a_detector_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="only in models that classify"):
        variants(situation(detector(), tmp_path, detector_spec()))


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(UsageError, match="-1 tokens to merge"):
        merge_tokens(tiny_vit(tokens=9).model(), -1)


# --- the lever ---


def test_the_lever_offers_mild_settings_first_and_makes_each_from_the_artifact(tmp_path: Path) -> None:
    given = situation(tiny_vit(tokens=33).model(), tmp_path)
    settings = lever("tokens")(given)
    # 33 tokens, 3 blocks: up to 33 / 6 = 5.5 → 6, in quarters.
    assert [one.stage for one in settings] == ["tokens:r=2", "tokens:r=3", "tokens:r=4", "tokens:r=6"]
    built = settings[-1].make()
    assert built.changes == {"blocks": 3, "tokens": 18}
    assert built.artifact.provenance.parent_sha256 == given.artifact.sha256
    assert built.artifact.provenance.options == {"r": "6"}
    assert built.artifact.path.parent == tmp_path / "store"
    assert ops(onnx.load(built.artifact.path))["TopK"] == 6
    assert settings[-1].make().artifact.sha256 == built.artifact.sha256


def test_few_tokens_give_few_settings(tmp_path: Path) -> None:
    stages = [one.stage for one in variants(situation(tiny_vit(tokens=9).model(), tmp_path))]
    assert stages == ["tokens:r=1", "tokens:r=2"]


def test_the_trained_example_keeps_nearly_all_answers_with_half_its_tokens(tmp_path: Path) -> None:
    fused = fuse_model(clean_model(onnx.load(VIT)).model).model
    spec = artifact_of(VIT).spec
    images = [(sample, pixels) for sample, pixels in open_dataset(VIT.parent / "vit").val][::3]
    given = feeds([pixels for _, pixels in images], spec, [str(sample.path) for sample, _ in images])
    before = run(fused, dict(given))[0].argmax(axis=1)
    done = merge_tokens(fused, 5)
    after = run(done.model, dict(given))[0].argmax(axis=1)
    assert done.changes == {"blocks": 5, "tokens": 25}
    assert len(images) >= 90
    assert (before == after).mean() >= 0.94
