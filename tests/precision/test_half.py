"""FP16 and BF16 end to end: each graph gets exactly the islands it needs, and breaks without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fashion import VIT
from fusing import Arrays, graph, normal, ops, run
from half_graphs import (
    attention_with_large_scores,
    boxes_in_pixels,
    decomposed_layer_norm,
    feeds,
    large_constant,
    saved,
)
from tiny_graphs import classifier, classifier_spec
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import Built
from vitesse.errors import DataError, UsageError
from vitesse.fusion import clean_model, fuse_model
from vitesse.metadata import read_spec
from vitesse.precision.emulation import emulated
from vitesse.precision.half import to_half
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.half_search import LIMITS
from vitesse.precision.half_trials import Trials
from vitesse.recipe import HalfOptions

SIZES = np.array([4000, 3000, 4000, 3000])

BROKEN = {
    "decomposed LayerNorm": (
        decomposed_layer_norm,
        feeds(scale=500),
        {"squares", "variance", "safe", "deviation"},
        "`squares` reaches",
    ),
    "large attention logits": (
        attention_with_large_scores,
        feeds(scale=150, shape=(1, 1, 5, 8)),
        {"a"},
        "the largest score in `a/scores` reaches",
    ),
    "large constant": (large_constant, feeds(scale=3000), {"scaled"}, "the constant `large` reaches 2e+05"),
    "epsilon of 1e-12": (
        lambda: decomposed_layer_norm(1e-12),
        feeds(),
        {"safe", "deviation", "normalised"},
        "keeps a division from zero",
    ),
}


def _islands(made: Built, original: onnx.ModelProto) -> set[str]:
    """Nodes whose result is float32 in the file, and whose operator computes: read from its types alone."""
    model = onnx.shape_inference.infer_shapes(onnx.load(made.artifact.path))
    entries = (*model.graph.value_info, *model.graph.output)
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in entries}
    names = {node.name for node in original.graph.node}
    floats = onnx.TensorProto.FLOAT
    return {node.name for node in model.graph.node if node.name in names and kinds[node.output[0]] == floats}


def _half(model: onnx.ModelProto, folder: Path, images: list[Arrays], **changes: object) -> Built:
    return to_half(saved(model, folder), Store(folder), images, HalfOptions(**changes))


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_gets_exactly_the_islands_it_needs(name: str, tmp_path: Path):
    make, images, islands, reason = BROKEN[name]
    made = _half(make(), tmp_path, images)
    assert _islands(made, make()) == islands
    assert made.changes["nodes in FP32 islands"] == len(islands)
    assert sum(reason in note for note in made.notes) == 1, made.notes
    assert Trials(HalfGraph(make()), images).loss(islands).worst < 0.005


@pytest.mark.parametrize("name", ["decomposed LayerNorm", "large attention logits", "large constant"])
def test_without_the_islands_the_graph_breaks(name: str):
    make, images, islands, _ = BROKEN[name]
    trials = Trials(HalfGraph(make()), images)
    assert trials.loss(()).worst > 0.5
    # And none of them can be left out.
    assert all(trials.loss(islands - {one}).worst > 0.5 for one in islands)


def test_an_epsilon_lost_in_fp16_fails_on_the_blank_image_that_calibration_lacked(tmp_path: Path):
    model = decomposed_layer_norm(1e-12)
    made = _half(model, tmp_path, feeds())
    blank = {"x": np.zeros((1, 5, 8), np.float32)}
    assert np.isfinite(run(emulated(onnx.load(made.artifact.path)), blank)[0]).all()
    assert np.isnan(run(emulated(HalfGraph(model).written()), blank)[0]).all()


def test_boxes_in_pixels_are_finished_in_fp32_because_measured_error_says_so(tmp_path: Path):
    model, images = boxes_in_pixels(), [feed | {"sizes": SIZES} for feed in feeds()]
    made = _half(model, tmp_path, images)
    assert _islands(made, model) == {"raw", "unit", "y", "size"}
    assert any("`y` holds numbers up to" in note and "steps of 2" in note for note in made.notes)
    exact, bare = run(model, images[0])[0], run(emulated(HalfGraph(model).written()), images[0])[0]
    found = run(emulated(onnx.load(made.artifact.path)), images[0])[0]
    assert np.abs(bare - exact).max() > 1.5  # pixels
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.7 * np.sqrt(np.mean((bare - exact) ** 2))


def test_a_head_that_ends_in_0_to_1_stays_in_fp16(tmp_path: Path):
    images = [feed | {"sizes": np.ones(4, np.int64)} for feed in feeds()]
    assert _half(boxes_in_pixels(), tmp_path, images).changes["nodes in FP32 islands"] == 0


def test_a_suspicion_that_the_outputs_do_not_feel_is_dropped(tmp_path: Path):
    body = "t = MatMul(x, w) bounded = Clip(t, low, high) y = MatMul(bounded, v)"
    model = graph(
        body, w=1e5 * np.eye(8, dtype=np.float32), v=np.eye(8, dtype=np.float32), low=-1.0, high=1.0
    )
    for node in model.graph.node:
        node.name = node.output[0]
    made = _half(model, tmp_path, feeds())
    # The weights of the first layer are beyond FP16, clamped as they are; behind the clip nothing of it is left.
    assert made.changes["nodes in FP32 islands"] == 0
    assert made.changes["suspected nodes that need no FP32"] == 2


def test_what_comes_near_the_limit_keeps_its_island_because_other_images_go_beyond(tmp_path: Path):
    body = "t = MatMul(x, w) y = MatMul(t, v)"
    model = graph(body, w=6000 * np.eye(8, dtype=np.float32), v=np.eye(8, dtype=np.float32) / 6000)
    for node in model.graph.node:
        node.name = node.output[0]
    images = feeds()
    assert 16376 < max(np.abs(6000 * feed["x"]).max() for feed in images) < 65504
    made = _half(model, tmp_path, images)
    assert _islands(made, model) == {"t", "y"}
    assert any("4 times is kept free" in note for note in made.notes)
    near = _half(model, tmp_path, images, headroom=1.0)
    assert near.changes["nodes in FP32 islands"] == 0


def test_an_overflow_that_no_range_shows_is_found_by_halving_the_graph(tmp_path: Path, monkeypatch):
    chain = " ".join(f"t{i} = Tanh(t{i - 1})" for i in range(1, 24))
    body = f"""
        t0 = MatMul(x, w) {chain}
        big = Mul(t12, c)
        squares = Pow(big, two)
        root = Sqrt(squares)
        size = Div(root, c)
        y = Add(size, t23)
    """
    model = graph(body, w=np.eye(8, dtype=np.float32), c=2000.0, two=2.0)
    for node in model.graph.node:
        node.name = node.output[0]
    monkeypatch.setattr("vitesse.precision.half.reasons", lambda *_, **__: {})
    made = _half(model, tmp_path, feeds(scale=3))
    # Nodes are found in handfuls: those beside the two that need it may stay with them.
    assert {"squares", "root"} <= _islands(made, model) <= {"big", "squares", "root", "size", "y"}
    assert any("in half precision it alone makes an error of infinity or NaN" in note for note in made.notes)


def test_an_error_that_is_spread_over_the_network_is_said_and_makes_no_islands(tmp_path: Path, monkeypatch):
    layers = " ".join(f"a{i} = MatMul(t{i - 1}, w) t{i} = Tanh(a{i})" for i in range(1, 9))
    model = graph(f"t0 = Neg(x) {layers} y = MatMul(t8, w)", w=normal(8, 8, seed=1))
    for node in model.graph.node:
        node.name = node.output[0]
    monkeypatch.setitem(LIMITS, "fp16", 1e-6)
    made = _half(model, tmp_path, feeds())
    assert made.changes["nodes in FP32 islands"] == 0
    assert any("is spread over the network" in note for note in made.notes)
    assert made.notes[-1].endswith("beyond the 0% that is aimed at")


def test_bf16_needs_no_islands_for_range_and_rounds_weights_once(tmp_path: Path):
    model, images = decomposed_layer_norm(), feeds(scale=500)
    made = to_half(saved(model, tmp_path), Store(tmp_path), images, HalfOptions(), number="bf16")
    assert made.changes["nodes in FP32 islands"] == 0 and made.changes["nodes in BF16"] == 9
    stored = {one.name: one for one in onnx.load(made.artifact.path).graph.initializer}
    original = {one.name: one for one in model.graph.initializer}
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    expected = onnx.numpy_helper.to_array(original["w"]).astype(kind)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored["w"]), expected)


def test_the_spec_and_the_types_of_inputs_and_outputs_stay(tmp_path: Path):
    made = _half(decomposed_layer_norm(), tmp_path, feeds())
    model = onnx.load(made.artifact.path)
    assert read_spec(model) == made.artifact.spec
    assert {entry.type.tensor_type.elem_type for entry in (*model.graph.input, *model.graph.output)} == {1}
    assert made.artifact.provenance.stage == "fp16"
    half = onnx.load(_half(decomposed_layer_norm(), tmp_path, feeds(), keep_io=False).artifact.path)
    assert {entry.type.tensor_type.elem_type for entry in (*half.graph.input, *half.graph.output)} == {10}
    assert ops(half)["Cast"] == 0


def test_a_trained_classifier_needs_no_island_halves_its_size_and_keeps_its_answers(tmp_path: Path):
    model = fuse_model(clean_model(onnx.load(VIT)).model).model
    artifact = saved(model, tmp_path)
    images = [{"images": feed} for feed in np.random.default_rng(0).random((2, 1, 3, 56, 56), np.float32)]
    made = to_half(artifact, Store(tmp_path), images, HalfOptions())
    assert made.artifact.bytes < 0.52 * artifact.bytes
    assert made.changes["nodes in FP32 islands"] == 0 and made.changes["Cast inserted"] == 2
    assert made.notes[-1].startswith("largest relative error, emulated: 0.0")
    exact, found = run(model, images[0]), run(onnx.load(made.artifact.path), images[0])
    assert all(np.abs(a - b).max() < 0.005 * np.abs(a).max() for a, b in zip(exact, found, strict=True))


def test_without_images_it_is_refused_and_random_ones_are_said(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(classifier(), path)
    artifact = Artifact(path, "0" * 64, 1, classifier_spec(), saved(classifier(), tmp_path).provenance)
    with pytest.raises(UsageError, match="no images to look at") as refusal:
        to_half(artifact, Store(tmp_path), None, HalfOptions())
    assert "--allow-random" in str(refusal.value)
    made = to_half(artifact, Store(tmp_path), None, HalfOptions(allow_random=True))
    assert "random images" in made.notes[0]


@pytest.mark.parametrize("images", [[], iter(())])
def test_an_empty_stream_of_images_is_refused(tmp_path: Path, images: object):
    with pytest.raises(DataError, match="no image was read"):
        _half(decomposed_layer_norm(), tmp_path, images)


def test_another_number_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="half precision 'fp8'"):
        to_half(
            saved(decomposed_layer_norm(), tmp_path), Store(tmp_path), feeds(), HalfOptions(), number="fp8"
        )
