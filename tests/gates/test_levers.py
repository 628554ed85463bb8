"""Broken forms of every structure lever, through the assessment that a run makes; and sound twins.

Every file is taken to be faster than what it came from, so that its numbers alone decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fashion import DETR, FOLDER, artifact_of
from shared_data import shared
from vitesse import assess, stages
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.assess import Assessor, Step
from vitesse.backends.protocol import Built, LoadOptions
from vitesse.benchmark.latency import Ratio
from vitesse.compress import decoder, size
from vitesse.compress.decoder_layers import Decoder, find_decoder
from vitesse.compress.lever import Situation
from vitesse.compress.queries import best_scores, find_queries
from vitesse.compress.query_removal import keep_queries
from vitesse.data.dataset import open_dataset
from vitesse.fusion.contract import load
from vitesse.fusion.shapes import complete_shapes
from vitesse.ledger import Row, Verdict
from vitesse.measure import Timing
from vitesse.metadata import serialise
from vitesse.progress import Silent
from vitesse.recipe import MeasureOptions, Recipe, SourceOptions
from vitesse.run import RunFolder
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import ModelSpec
from vitesse.verify.gate import StepKind

IMAGES = 20
# One of 20 images weighs 5 points, which a sound variant may lose by chance; these faults cost far more.
RECIPE = Recipe(max_drop=6.0, measure=MeasureOptions(parity_images=8))
FASTER = Timing(over_before=Ratio(1.5, (1.4, 1.6), (1.4, 1.6), 12))


class Subject:
    """The trained detector, cleaned and fused, and the assessment of what levers make of it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "artifacts")
        source = artifact_of(DETR)
        self.fused = stages.fuse(stages.clean(source, self.store).artifact, self.store).artifact
        self.dataset = open_dataset(FOLDER / "detr", spec=source.spec)
        few = replace(self.dataset, val=self.dataset.val.spread(IMAGES))
        self._assessor = Assessor(source, few, RECIPE, RunFolder(folder), Silent())

    @property
    def model(self) -> ir.Model:
        """A copy of the fused graph with all shapes, to be broken."""
        model = load(load_onnx(self.fused.path))
        complete_shapes(model)
        return model

    def situation(self) -> Situation:
        images = stages.CalibrationFeeds(self.dataset.calib.spread(8), self.fused.spec)
        return Situation(self.fused, images, self.store, None, SourceOptions())

    def put(self, model: ir.Model, spec: ModelSpec | None = None) -> Artifact:
        spec = spec or self.fused.spec
        return self.store.put(serialise(ir.to_proto(model), spec), spec, Provenance("made"), suffix=".onnx")

    def judge(self, artifact: Artifact) -> Row:
        return self._assessor.assess(Step("lever", StepKind.LEVER, Built(artifact), LoadOptions(threads=1)))

    def with_queries(self, kept: Sequence[int]) -> Artifact:
        model = self.model
        keep_queries(model, find_queries(model, self.fused.spec), kept)
        return self.put(model)


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assess, "time_candidate", lambda *_: FASTER)


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("levers") / "run")


def points_lost(row: Row) -> float:
    assert row.accuracy is not None and row.accuracy.drop is not None
    return row.accuracy.drop


def assert_rejected(row: Row, *, at_least: float) -> None:
    assert row.verdict is Verdict.REJECTED, row.reason
    assert row.reason.startswith("loses ") and row.reason.endswith("of AP (budget 6)"), row.reason
    assert points_lost(row) >= at_least


def heads_on(model: ir.Model, spec: ModelSpec, value: str) -> ir.Model:
    """The graph with its heads behind another tensor."""
    found: Decoder = find_decoder(model, tuple(spec.outputs.values()))
    tensor = next(one for node in model.graph for one in node.outputs if one.name == value)
    decoder.read_layer(replace(found, states=(tensor, *found.states[1:])), 1)
    for one in (one for node in model.graph for one in node.outputs):
        one.shape = None
    for output in model.graph.outputs:
        output.shape = ir.Shape(["batch", "queries", 11 if output.name == "logits" else 4])
    return model


# --- decoder


def test_five_of_six_decoder_layers_are_sound_and_one_is_rejected(detr: Subject) -> None:
    variants = {one.stage: one for one in decoder.variants(detr.situation())}
    row = detr.judge(variants["decoder:5"].make().artifact)
    assert row.verdict is Verdict.PASS, row.reason
    assert_rejected(detr.judge(variants["decoder:1"].make().artifact), at_least=6)


def test_heads_on_the_encoders_output_are_rejected(detr: Subject) -> None:
    """64 cells instead of 25 queries: it runs, it can be read, and it finds nothing."""
    model = detr.model
    last_of_encoder = next(
        node.inputs[0].name
        for node in model.graph
        if node.op_type == "Add"
        and node.inputs[1] is not None
        and node.inputs[1].name == "position"
        and "encoder" not in str(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    )
    assert last_of_encoder is not None
    assert_rejected(detr.judge(detr.put(heads_on(model, detr.fused.spec, last_of_encoder))), at_least=70)


def test_heads_inside_a_layer_instead_of_behind_it_are_rejected(detr: Subject) -> None:
    """On what the first layer's self-attention gives, which has seen no image: the same boxes for all."""
    model = detr.model
    attention = next(
        node
        for node in model.graph
        if node.op_type == "Attention" and "decoder.layers.0" in str(node.metadata_props)
    )
    row = detr.judge(detr.put(heads_on(model, detr.fused.spec, attention.outputs[0].name or "")))
    assert row.verdict is Verdict.FAIL, row.reason
    assert "is the same for all 8 images" in row.reason


# --- queries


def test_without_its_most_confident_queries_the_detector_is_rejected(detr: Subject) -> None:
    best = best_scores(load_onnx(detr.fused.path), detr.fused.spec, detr.situation().images)
    order = np.argsort(best)
    weakest_five, strongest_twenty = sorted(order[:5].tolist()), sorted(order[5:].tolist())
    wrong = detr.judge(detr.with_queries(weakest_five))
    assert_rejected(wrong, at_least=20)
    assert points_lost(detr.judge(detr.with_queries(strongest_twenty))) < points_lost(wrong) / 2


def test_all_queries_kept_change_nothing(detr: Subject) -> None:
    row = detr.judge(detr.with_queries(range(25)))
    assert row.verdict is Verdict.PASS and points_lost(row) == 0


def test_queries_missing_from_one_constant_only_fail(detr: Subject) -> None:
    """The embedding is cut in one place and whole in another: no runtime can add the two."""
    model = detr.model
    found = find_queries(model, detr.fused.spec)
    found.constants.remove(min(found.constants, key=lambda one: one[0].name or ""))
    keep_queries(model, found, range(20))
    row = detr.judge(detr.put(model))
    assert row.verdict is Verdict.FAIL
    assert row.reason


# --- size


def test_a_spec_of_another_size_on_a_fixed_graph_is_refused_with_both_shapes(detr: Subject) -> None:
    artifact = detr.put(detr.model, size.spec_at(detr.fused.spec, (224, 224)))
    row = detr.judge(artifact)
    assert row.verdict is Verdict.FAIL
    assert "the feed 'images' has shape (1, 3, 224, 224)" in row.reason


def test_boxes_in_the_scale_of_another_size_are_rejected(detr: Subject) -> None:
    """Relative to 256 pixels where the image has 224: an eighth too small and too far up and left."""
    model = detr.model
    (boxes,) = [one for one in model.graph.outputs if one.name == "boxes"]
    node = boxes.producer()
    assert node is not None
    scale = ir.Value(name="scale", const_value=ir.tensor(np.float32(224 / 256), name="scale"))
    model.graph.register_initializer(scale)
    scaled = ir.Node("", "Mul", [boxes, scale], name="scaled")
    scaled.outputs[0].name, scaled.outputs[0].type, scaled.outputs[0].shape = "boxes", boxes.type, boxes.shape
    boxes.name = "relative"
    model.graph.insert_after(node, scaled)
    model.graph.outputs[list(model.graph.outputs).index(boxes)] = scaled.outputs[0]
    assert_rejected(detr.judge(detr.put(model)), at_least=20)


@pytest.mark.slow
def test_a_smaller_vit_is_sound_and_one_without_its_spec_is_not(tmp_path: Path) -> None:
    """Top-1 at 48×48 instead of 56×56; with the old spec the graph gets images of the wrong size."""
    from fashion import VIT

    store, source = Store(tmp_path / "artifacts"), artifact_of(VIT)
    fused = stages.fuse(stages.clean(source, store).artifact, store).artifact
    dataset = open_dataset(FOLDER / "vit", spec=source.spec)
    few = replace(dataset, val=dataset.val.spread(100))
    assessor = Assessor(source, few, RECIPE, RunFolder(tmp_path), Silent())
    situation = Situation(fused, [], store, shared("vit_fashion") / "vit_fashion.npz", SourceOptions())
    smaller = size.variants(situation)[0].make()

    def judge(artifact: Artifact) -> Row:
        return assessor.assess(Step("size", StepKind.LEVER, Built(artifact), LoadOptions(threads=1)))

    row = judge(smaller.artifact)
    assert row.verdict is Verdict.PASS, row.reason
    assert row.input_size == (48, 48)
    row = judge(replace(smaller.artifact, spec=source.spec))
    assert row.verdict is Verdict.FAIL
    assert "the feed 'images' has shape (1, 3, 56, 56)" in row.reason
