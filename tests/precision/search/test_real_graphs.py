"""The search on trained models of the examples: a few images, short races, no claim about speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from fashion import DETR, FOLDER, VIT
from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import LoadOptions
from vitesse.data.dataset import open_dataset
from vitesse.data.split import Split
from vitesse.measure import Candidate, opened
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.search import Trial, TrialStore, search
from vitesse.precision.search.block_times import _Owner, saved_by_block
from vitesse.precision.search.quantised import QuantisedSubject
from vitesse.precision.search.reference import Reference
from vitesse.profile.modules import Found, Place, modules_of
from vitesse.profile.parts import Part
from vitesse.recipe import Int8Options, MeasureOptions, SearchOptions
from vitesse.stages import CalibrationFeeds
from vitesse.verify.accuracy import against, evaluate

SHORT = MeasureOptions(seconds=0.2, min_rounds=6)


def _graph(source: Path, folder: Path) -> Artifact:
    store = Store(folder)
    return stages.fuse(stages.clean(stages.open_model(source), store).artifact, store).artifact


def _split(name: str, images: int) -> Split:
    return open_dataset(FOLDER / name).calib.spread(images)


def _subject(source: Path, split: Split, folder: Path) -> QuantisedSubject:
    graph = _graph(source, folder)
    reference = Reference(
        graph, split, "onnxruntime", load=LoadOptions(threads=1), measure=SHORT, scratch=folder / "scratch"
    )
    feeds = CalibrationFeeds(split.spread(4), graph.spec)
    calibrated = calibrate_graph(graph, Store(folder), feeds, Int8Options(), symmetric=False)
    return QuantisedSubject(reference, calibrated, Int8Options(), scratch=folder / "scratch")


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> QuantisedSubject:
    return _subject(DETR, _split("detr", 12), tmp_path_factory.mktemp("detr"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> QuantisedSubject:
    return _subject(VIT, _split("vit", 20), tmp_path_factory.mktemp("vit"))


def test_the_original_itself_loses_nothing(detr: QuantisedSubject, vit: QuantisedSubject) -> None:
    for subject in (detr, vit):
        score = subject.score(subject._reference.build, subject.images)
        assert (score.drop, score.error, score.images) == (0.0, 0.0, subject.images)


def test_a_broken_model_is_far_away_and_loses_all(vit: QuantisedSubject, tmp_path: Path) -> None:
    model = onnx.load(vit._reference.graph.path)
    last = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")][-1]
    head = next(one for one in model.graph.initializer if one.name == last.input[1])
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    score = vit.score(replace(vit._reference.build, path=path), vit.images)
    assert score.drop > 50 and score.error > 0.5


def test_a_score_is_what_evaluating_the_same_file_gives(detr: QuantisedSubject) -> None:
    artifact = detr.lowered(frozenset(detr.blocks))
    reference = detr._reference
    with opened(Candidate(artifact, reference.load)) as session:
        done = evaluate(lambda inputs: session.run(inputs).outputs, reference.split, artifact.spec)
    assert detr.metric == "coco_ap"
    assert detr.score(artifact, detr.images).drop == against(done.accuracy, reference.accuracy).drop


def test_only_the_layers_of_the_blocks_are_lowered(detr: QuantisedSubject) -> None:
    block = "encoder.layers.0.mlp"
    names = detr.names(frozenset({block}))
    assert 1 <= len(names) <= 3
    detr.lowered(frozenset({block}))
    graph = detr._graphs[detr.lowered(frozenset({block})).sha256]
    model = onnx.load(graph.path)
    rounded = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    touched = {node.name for node in model.graph.node if rounded & set(node.input)}
    assert set(names) <= touched


def test_errors_of_blocks_alone_are_smaller_than_that_of_all(vit: QuantisedSubject) -> None:
    whole = vit.score(vit.lowered(frozenset(vit.blocks)), 20).error
    alone = [vit.score(vit.lowered(frozenset({name})), 20).error for name in vit.blocks[:3]]
    assert min(alone) > 0 and max(alone) < whole


def test_every_block_gets_a_time_of_its_own(detr: QuantisedSubject) -> None:
    gains = detr.gains(detr.lowered(frozenset(detr.blocks)))
    assert gains is not None and set(gains) == set(detr.blocks)
    # Clocks tick in microseconds: a block or two may come out even.
    assert sum(bool(ms) for ms in gains.values()) > 0.8 * len(gains)


def test_a_kernel_counts_for_the_nearest_block_and_between_blocks_for_none(detr: QuantisedSubject) -> None:
    modules = modules_of(onnx.load(detr._reference.graph.path))
    owner = _Owner(modules, detr._groups)
    decoder = ("transformer", "decoder", "layers.0")
    assert owner.of(Place(Part.DECODER, (*decoder, "self_attn", "added"), Found.NAME)) == (
        "decoder.layers.0.attention"
    )
    assert owner.of(Place(Part.DECODER, (*decoder, "norm1"), Found.NAME)) is None
    assert owner.of(Place(Part.HEADS, ("class_embed",), Found.NAME)) is None


def test_the_same_graph_saves_next_to_nothing_and_a_graph_without_names_tells_nothing(
    detr: QuantisedSubject,
) -> None:
    reference = detr._reference
    same = (reference.graph, reference.build)
    assert saved_by_block(same, same, {}, reference.timed_feeds(), threads=1) == {}
    unnamed = {
        "block": [replace(layer, output="no such tensor") for layer in detr._calibrated.layers[:1]],
    }
    assert saved_by_block(same, same, unnamed, reference.timed_feeds(), threads=1) is None


def test_another_range_makes_another_key(vit: QuantisedSubject) -> None:
    ranges = vit._calibrated.ranges
    name, (low, high) = next(iter(ranges.by_tensor.items()))
    wider = replace(ranges, by_tensor={**ranges.by_tensor, name: (low, 2 * high + 1)})
    other = QuantisedSubject(
        vit._reference, replace(vit._calibrated, ranges=wider), Int8Options(), scratch=vit._scratch
    )
    assert other.key != vit.key


def test_a_whole_search_keeps_its_word_and_is_taken_over(vit: QuantisedSubject, tmp_path: Path) -> None:
    def run(heard: list[Trial]):
        return search(
            vit,
            max_drop=10.0,
            options=SearchOptions(images=20, minutes=0.5),
            trials=TrialStore(tmp_path),
            on_trial=heard.append,
        )

    first, second = list[Trial](), list[Trial]()
    found = run(first)
    files = set(tmp_path.iterdir())
    assert found.trials[0].blocks == frozenset(vit.blocks)
    assert found.trials[0].speed is not None
    assert sum(one.share or 0 for one in found.sensitivities) == pytest.approx(1.0)
    chosen = [trial for trial in found.trials if trial.blocks == found.chosen]
    assert bool(found.chosen) == bool(chosen)
    for trial in chosen:
        assert trial.score.drop <= found.allowed
        assert trial.speed is not None and trial.speed.faster
        assert trial.verdict.startswith("chosen")
    again = run(second)
    assert set(tmp_path.iterdir()) == files, "nothing was measured again"
    assert again.chosen == found.chosen and len(second) == len(first)


def test_what_was_asked_for_last_is_not_deleted_for_what_comes_next(
    vit: QuantisedSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitesse.precision.search.quantised.KEPT", 2)
    first, second, third = (frozenset({block}) for block in vit.blocks[:3])
    for blocks in (first, second, first, third):
        vit.lowered(blocks)
    assert vit.lowered(first).path.is_file(), (
        "a race asks for old sets and new ones, and needs the files of all"
    )
