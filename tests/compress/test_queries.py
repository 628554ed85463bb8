"""Dropping queries must give what a model without them gives, and touch nothing that only looks like a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compress.detr_levers import SIZE, copied, made, outputs, situation, stored
from fashion import DETR, IMAGES, VIT, artifact_of
from fusing import graph, normal, run
from vitesse.artifact import Artifact
from vitesse.compress import queries
from vitesse.compress.lever import NotApplicable
from vitesse.compress.query_axis import trace
from vitesse.compress.query_removal import keep_queries
from vitesse.compress.query_rules import Place, reshaped
from vitesse.data.images import decode_image
from vitesse.data.preprocess import feeds
from vitesse.fusion.contract import load
from vitesse.fusion.rules import LeftAlone
from vitesse.fusion.shapes import complete_shapes
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

POSTPROCESSED = ModelSpec(
    Task.DETECTION,
    Decode.POSTPROCESSED,
    "x",
    {"labels": "labels", "boxes": "boxes", "scores": "scores"},
    Preprocessing((8, 8)),
)


def opened(model: onnx.ModelProto) -> ir.Model:
    loaded = load(model)
    complete_shapes(loaded)
    return loaded


@pytest.mark.parametrize("batch", [1, 3])
def test_the_kept_queries_answer_as_in_a_torch_model_that_has_no_others(
    tiny_detr: tuple[Artifact, Path], batch: int
) -> None:
    """A DETR whose embedding holds the kept queries only: nobody attends to the others, as under a mask."""
    import torch

    from vitesse.sources.detr_checkpoint import load_detr

    artifact, checkpoint = tiny_detr
    kept = (0, 2, 3)
    found = outputs(
        queries._make(situation(artifact), kept).artifact,
        {"images": (images := normal(batch, 3, *SIZE, seed=batch))},
    )
    model = load_detr(checkpoint)
    model.fix_size(SIZE)
    with torch.no_grad():
        unmasked = model(torch.from_numpy(images))[0][:, list(kept)].numpy()
        model.query_embed.weight = torch.nn.Parameter(model.query_embed.weight[list(kept)])
        logits, boxes = (value.numpy() for value in model(torch.from_numpy(images)))
    assert found["logits"].shape == (batch, 3, 4)
    # random weights of large variance magnify float32's rounding; attention to the others shows far more
    assert np.abs(found["logits"] - logits).max() < 3e-4
    assert np.abs(found["boxes"] - boxes).max() < 3e-4
    assert np.abs(unmasked - logits).max() > 0.01


def test_queries_are_dropped_by_their_best_score_over_all_images(fashion_detr: Artifact) -> None:
    """Two queries are silenced by hand, with logits of no-object far above all others."""
    model = copied(fashion_detr)
    levels = np.zeros((1, 25, 11), np.float32)
    levels[0, 3, -1], levels[0, 7, -1] = 40.0, 60.0
    model.graph.initializer.append(onnx.numpy_helper.from_array(levels, "levels"))
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "spoken"
    model.graph.node.append(onnx.helper.make_node("Add", ["spoken", "levels"], ["logits"], "silenced"))
    silenced = stored(fashion_detr, model)
    images = [feeds([decode_image(path)], fashion_detr.spec) for path in IMAGES[DETR]]
    best = queries.best_scores(model, fashion_detr.spec, images)
    assert best.shape == (25,)
    assert best[3] < 0.01 and best[7] < 0.01
    variants = queries.variants(situation(silenced, images))
    count = int(np.sum(best >= 0.01))
    assert variants[0].stage == f"queries:{count}"
    assert [one.stage for one in variants] == list(
        dict.fromkeys(f"queries:{n}" for t in queries.THRESHOLDS if 0 < (n := int(np.sum(best >= t))) < 25)
    )
    built = variants[0].make()
    assert built.changes["dropped_queries"] == 25 - count
    # its two embeddings (content and place) and the levels above
    assert built.changes["constants_cut"] >= 3
    whole, fewer = outputs(silenced, images[0]), outputs(built.artifact, images[0])
    assert fewer["boxes"].shape == (1, count, 4) and whole["boxes"].shape == (1, 25, 4)


def test_scores_of_a_softmax_leave_no_object_out() -> None:
    logits = np.log(np.array([[[0.2, 0.1, 0.7]]], np.float32))
    np.testing.assert_allclose(queries._scores(logits, Decode.DETR_SOFTMAX), [[[0.2, 0.1]]], rtol=1e-5)
    logits = np.array([[[0.0, np.nan]]], np.float32)
    np.testing.assert_allclose(queries._scores(logits, Decode.DETR_SIGMOID), [[[0.5, 0.0]]])


def test_a_threshold_keeps_the_queries_that_reach_it_and_equal_choices_are_offered_once() -> None:
    best = np.array([0.9, 0.005, 0.2, 0.5], np.float32)
    # 0.01, 0.05 and 0.1 drop query 1 alone; 0.3 drops query 2 as well
    assert queries._choices(best) == [(0, 2, 3), (0, 3)]


def test_confident_queries_are_all_kept() -> None:
    with pytest.raises(NotApplicable, match=r"each of the 2 queries is confident .* weakest is 0\.40"):
        queries._choices(np.array([0.4, 0.9], np.float32))


def test_images_without_any_object_tell_nothing_about_queries() -> None:
    with pytest.raises(
        NotApplicable, match=r"no query is confident on any image: the best score of all is 0\.002"
    ):
        queries._choices(np.array([0.001, 0.002], np.float32))


# Six places, of which the four best become queries; the feature map has four channels, too, and the constant `shape`
# serves both. The post-processor takes ten of the twelve scores.
TWO_STAGE = """
    places = MatMul (x, w_score)
    best = ReduceMax <keepdims = 0> (places, last)
    top, index = TopK <axis = -1> (best, k)
    column = Unsqueeze (index, last)
    wide = Tile (column, to_eight)
    query = GatherElements <axis = 1> (x, wide)
    turned = Transpose <perm = [0, 2, 1]> (query)
    weighed = MatMul (query, turned)
    share = Softmax <axis = -1> (weighed)
    heard = MatMul (share, query)
    state = Add (query, heard)
    apart = Reshape (state, shape)
    joined = ReduceSum <keepdims = 0> (apart, two)
    upright = Transpose <perm = [0, 2, 1]> (x)
    narrow = MatMul (upright, w_map)
    map = Reshape (narrow, shape)
    context = ReduceSum <keepdims = 0> (map, two)
    whole = ReduceSum <keepdims = 1> (context, one)
    seen = Add (joined, whole)
    logits = MatMul (seen, w_class)
    raw = MatMul (state, w_box)
    box = Sigmoid (raw)
    chance = Sigmoid (logits)
    flat = Flatten <axis = 1> (chance)
    scores, place = TopK <axis = 1> (flat, count)
    number = Div (place, classes)
    start = Mul (number, classes)
    labels = Sub (place, start)
    upwards = Unsqueeze (number, last)
    four = Tile (upwards, to_four)
    boxes = GatherElements <axis = 1> (box, four)
"""
WEIGHTS = {
    "w_score": normal(8, 3, seed=1),
    "w_map": 0.1 * normal(6, 4, seed=2),
    "w_class": normal(4, 3, seed=3),
    "w_box": normal(8, 4, seed=4),
}


def two_stage(body: str = TWO_STAGE, **extra: Any) -> onnx.ModelProto:
    def whole(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    return graph(
        body,
        inputs="float[N,6,8] x",
        outputs="int64[N,10] labels, float[N,10,4] boxes, float[N,10] scores",
        opset=18,
        k=whole(4),
        count=whole(10),
        shape=whole(-1, 4, 2, 4),
        last=whole(-1),
        one=whole(1),
        two=whole(2),
        classes=np.array(3, np.int64),
        to_eight=whole(1, 1, 8),
        to_four=whole(1, 1, 4),
        **WEIGHTS,
        **extra,
    )


def by_hand(x: np.ndarray, count: int, detections: int) -> list[np.ndarray]:
    """The same in numpy for `count` queries: labels, boxes, scores."""

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    found: list[tuple[np.ndarray, ...]] = []
    for one in x:
        order = np.argsort(-(one @ WEIGHTS["w_score"]).max(1), kind="stable")[:count]
        query = one[order]
        scores = np.exp(query @ query.T)
        state = query + (scores / scores.sum(1, keepdims=True)) @ query
        context = (one.T @ WEIGHTS["w_map"]).reshape(4, 2, 4).sum((0, 1))
        chance = sigmoid((state.reshape(count, 2, 4).sum(1) + context) @ WEIGHTS["w_class"]).reshape(-1)
        best = np.argsort(-chance, kind="stable")[:detections]
        boxes = sigmoid(state @ WEIGHTS["w_box"])[best // 3]
        found.append((best % 3, boxes, chance[best]))
    return [np.stack(part) for part in zip(*found, strict=True)]


def test_the_hand_computed_two_stage_detector_is_the_graph() -> None:
    x = 0.3 * normal(3, 6, 8, seed=9)
    for found, wanted in zip(run(two_stage(), {"x": x}), by_hand(x, 4, 10), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_two_stage_detector_selects_fewer_and_returns_no_more_than_there_are(batch: int) -> None:
    model = opened(two_stage())
    found = queries.find_queries(model, POSTPROCESSED)
    assert found.queries == 4 and found.attends
    assert [node.outputs[0].name for node in found.sources] == ["top"]
    counts = keep_queries(model, found, range(3))
    assert (counts["selections_lowered"], counts["constants_cut"]) == (
        2,
        0,
    )  # 3 · 3 scores are fewer than ten
    x = 0.3 * normal(batch, 6, 8, seed=8)
    changed = ir.to_proto(model)
    for output in changed.graph.output:
        assert output.type.tensor_type.shape.dim[1].dim_value == 9
    for got, wanted in zip(run(changed, {"x": x}), by_hand(x, 3, 9), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    # the feature map has four channels still, although it shared the constant
    shapes = {
        node.outputs[0].name: node.inputs[1].const_value.numpy()
        for node in model.graph
        if node.op_type == "Reshape"
    }
    assert {name: list(shape) for name, shape in shapes.items()} == {
        "apart": [-1, 3, 2, 4],
        "map": [-1, 4, 2, 4],
    }


def test_of_selected_queries_only_the_first_can_be_kept() -> None:
    model = opened(two_stage())
    with pytest.raises(LeftAlone, match="only the first can be kept"):
        keep_queries(model, queries.find_queries(model, POSTPROCESSED), (0, 2))


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("state = Add (query, heard)", "sum = CumSum (query, one_scalar) state = Add (sum, heard)", "CumSum"),
        (
            "heard = MatMul (share, query)",
            "heard = MatMul (narrow_four, query)",
            "weighs the queries by constants",
        ),
        (
            "heard = MatMul (share, query)",
            "mean = ReduceMean <keepdims = 1> (query, one) heard = Add (mean, query)",
            "ReduceMean",
        ),
    ],
)
def test_an_operator_that_mixes_the_queries_otherwise_is_refused(line: str, instead: str, said: str) -> None:
    assert line in TWO_STAGE
    body = TWO_STAGE.replace(line, instead)
    model = two_stage(body, one_scalar=np.array(1, np.int64), narrow_four=normal(1, 4, 4))
    with pytest.raises(NotApplicable, match="cannot be followed through the graph") as caught:
        queries.find_queries(opened(model), POSTPROCESSED)
    assert said in caught.value.what


def test_an_axis_that_is_fed_is_no_axis_of_queries() -> None:
    model = opened(two_stage())
    with pytest.raises(LeftAlone, match="the queries are fed or constant: `x`"):
        trace([(model.graph.inputs[0], 1)], 6)


def test_a_graph_that_selects_nothing_is_refused() -> None:
    model = opened(graph("y = Relu (x)"))
    with pytest.raises(NotApplicable, match="no TopK selects what attention then mixes"):
        queries.find_queries(model, POSTPROCESSED)


def test_a_classifier_has_no_queries() -> None:
    with pytest.raises(NotApplicable, match="the model is a classifier: it has no object queries"):
        queries.variants(situation(artifact_of(VIT)))


def test_without_images_nothing_is_dropped(tiny_detr: tuple[Artifact, Path]) -> None:
    with pytest.raises(NotApplicable, match="cannot be told without images"):
        queries.variants(situation(tiny_detr[0]))


def test_deimv2_selects_three_quarters_a_half_and_a_quarter(tmp_path: Path) -> None:
    from shared_data import shared
    from vitesse import stages
    from vitesse.artifact import Store

    store = Store(tmp_path)
    path = shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx"
    artifact = stages.fuse(
        stages.clean(stages.open_model(path, preset="deimv2"), store).artifact, store
    ).artifact
    variants = queries.variants(situation(artifact))
    assert [one.stage for one in variants] == ["queries:75", "queries:50", "queries:25"]
    batch = {
        "images": normal(2, 3, 320, 320),
        "orig_target_sizes": np.array([[640, 480], [320, 200]], np.int64),
    }
    whole, fewer = outputs(artifact, batch), outputs(made(variants, "queries:75").artifact, batch)
    assert fewer["scores"].shape == (2, 300)
    # dropped proposals were the worst: the best detections move little
    assert np.abs(whole["scores"][:, 0] - fewer["scores"][:, 0]).max() < 0.1


@pytest.mark.parametrize(
    ("source", "place", "target", "wanted"),
    [
        # (batch, 4 queries, 2 · 4 features) → (batch, queries, heads, width) and back
        (["N", 4, 8], Place(1), ["N", 4, 2, 4], Place(1)),
        # merged with the batch: 12 numbers a query behind it, of which 4 rows of 3
        (["N", 4, 12], Place(1), ["16*N", 3], Place(0, 4)),
        # the first axis holds whatever is in front, by whatever name
        (["N", 4, 12], Place(1), ["unk", 3], Place(0, 4)),
        (["unk", 3], Place(0, 4), ["M", 4, 4, 3], Place(1)),
        # queries first, heads merged with the batch, as torch's own attention does
        ([4, "N", 8], Place(0), [4, "2*N", 4], Place(0)),
        # two queries' features in a row
        (["N", 4, 8], Place(1), ["N", 2, 16], None),
        # as many features as queries do not make them queries
        (["N", 4, 6], Place(1), ["N", 6, 4], None),
    ],
)
def test_a_reshape_keeps_what_lies_behind_a_query(
    source: list[int | str], place: Place, target: list[int | str], wanted: Place | None
) -> None:
    before, after = ir.Value(name="a"), ir.Value(name="b")
    before.shape, after.shape = ir.Shape(source), ir.Shape(target)
    assert reshaped(before, after, place, 4) == wanted
