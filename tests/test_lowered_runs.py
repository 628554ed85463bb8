"""The main job with every precision and lever: a row for each, and words for what is left out."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

import shared_data
from vitesse import pipeline
from vitesse.artifact import Artifact
from vitesse.assess import Assessor, Step
from vitesse.ledger import Row, Verdict
from vitesse.precision.search import Found, load_found, search
from vitesse.precision.search.reference import Reference
from vitesse.predict import load
from vitesse.recipe import DataOptions, HalfOptions, MeasureOptions, Recipe, SearchOptions
from vitesse.run import Run

pytestmark = pytest.mark.usefixtures("short_races", "operators_listed_once")
EXAMPLES = Path(__file__).parents[1] / "examples" / "fashion"
MODEL, IMAGES = EXAMPLES / "vit_fashion.onnx", EXAMPLES / "vit"
RECIPE = Recipe(
    target="onnxruntime",
    precisions=("fp32", "fp16", "bf16", "int8", "fp8"),
    levers=("decoder",),
    max_drop=20.0,  # on so few images
    data=DataOptions(limit=40, calib_images=24),
    measure=MeasureOptions(seconds=0.1, min_rounds=8, parity_images=4),
    search=SearchOptions(images=24),
    half=HalfOptions(images=4),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, short_races: None) -> Run:
    return pipeline.optimize(MODEL, data=IMAGES, out=tmp_path_factory.mktemp("runs") / "run", recipe=RECIPE)


def rows_of(run: Run) -> dict[str, Row]:
    return {row.stage: row for row in run.ledger.rows}


def test_every_precision_and_lever_has_its_row_with_a_measured_accuracy(finished: Run) -> None:
    rows = rows_of(finished)
    assert [stage for stage in rows if stage in ("fp16", "bf16", "int8", "fp8")] == [
        "fp16",
        "bf16",
        "int8",
        "fp8",
    ]
    for stage in ("fp16", "bf16", "int8", "fp8"):
        accuracy = rows[stage].accuracy
        assert accuracy is not None
        assert accuracy.drop is not None
        assert accuracy.drop < 20
    for stage in ("fp16", "int8", "fp8"):
        assert rows[stage].latency_ms is not None
    assert rows["bf16"].verdict is Verdict.UNKNOWN, "its accuracy is emulated; no kernel here tells its speed"
    assert "speed was not measured" in rows["bf16"].reason
    assert any("emulation" in note for note in rows["fp16"].notes), (
        "half precision is judged as a GPU rounds it"
    )


def test_a_lever_that_finds_nothing_to_move_says_so(finished: Run) -> None:
    row = rows_of(finished)["decoder"]
    assert row.verdict is Verdict.REJECTED
    assert row.reason.startswith("nothing to move: ")
    assert row.artifact is None


def test_the_search_leaves_its_curve_beside_the_ledger(finished: Run) -> None:
    row = rows_of(finished)["int8:onnxruntime"]
    found = load_found(finished.folder / "search-onnxruntime.json")
    assert found.trials
    assert found.metric == "top1"
    assert found.reason in (finished.folder / "report.md").read_text()
    if row.artifact is not None:
        assert any(note.startswith("searched in") for note in row.notes)


def test_a_second_run_searches_nothing_again(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*anything: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Assessor, "assess", never)
    monkeypatch.setattr(Reference, "score", never)
    again = pipeline.optimize(MODEL, data=IMAGES, out=finished.folder, recipe=RECIPE)
    assert again.ledger.rows == finished.ledger.rows


def test_a_set_that_all_images_refuse_is_followed_by_a_more_careful_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few images of the search let everything pass; the gate, on all of them, refuses the first set."""
    refused: list[object] = []

    def watched(*arguments: object, **options: object) -> Found:
        refused.append(options["refused"])
        return search(*arguments, **options)  # type: ignore[arg-type]

    assess = Assessor.assess

    def strict(self: Assessor, step: Step) -> Row:
        row = assess(self, step)
        if step.stage != "int8:onnxruntime" or row.accuracy is None:
            return row
        return replace(row, verdict=Verdict.REJECTED, accuracy=replace(row.accuracy, drop=99.0))

    monkeypatch.setattr("vitesse.precision.search.rows.search", watched)
    monkeypatch.setattr(Assessor, "assess", strict)
    monkeypatch.setattr(Reference, "race", always_faster)
    recipe = replace(RECIPE, precisions=("fp32", "int8"), levers=())
    rows = rows_of(pipeline.optimize(MODEL, data=IMAGES, out=tmp_path / "run", recipe=recipe))
    first = rows["int8:onnxruntime"]
    assert first.verdict is Verdict.REJECTED
    second = rows["int8:onnxruntime:2"]
    assert len(refused) >= 2
    assert refused[0] == ()
    assert len(refused[1]) == 1  # type: ignore[arg-type]
    if second.artifact is not None and first.artifact is not None:
        assert second.artifact.sha256 != first.artifact.sha256
        assert second.changes["Linear to INT8"] < first.changes["Linear to INT8"]


def always_faster(self: Reference, artifacts: dict[str, Artifact]) -> dict[str, object]:
    """The machine that runs the tests may be busy; what is tested is not its speed."""
    from vitesse.precision.search import Speed

    return {name: Speed(2.0, 1.9, 2.1, 1.0, 2.0) for name in artifacts}


def test_without_images_half_precision_is_unknown_and_says_how_to_go_on(tmp_path: Path) -> None:
    import shutil

    (tmp_path / "images").mkdir()
    shutil.copyfile(IMAGES / "val/1_Trouser/00002.png", tmp_path / "images" / "only.png")
    recipe = replace(RECIPE, precisions=("fp32", "fp16"), levers=())
    row = rows_of(pipeline.optimize(MODEL, data=tmp_path / "images", out=tmp_path / "a", recipe=recipe))[
        "fp16"
    ]
    assert row.verdict is Verdict.UNKNOWN
    assert "--allow-random" in row.reason


def test_a_smaller_input_is_measured_chosen_and_served_at_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="exports anew: pip install 'vitesse[torch]'")
    monkeypatch.setattr("vitesse.compress.size.SCALES", (Fraction(3, 4), Fraction(1, 2)))  # each is an export
    recipe = replace(RECIPE, precisions=("fp32",), levers=("size",), max_drop=100.0)
    checkpoint = shared_data.shared("vit_fashion") / "vit_fashion.npz"
    run = pipeline.optimize(checkpoint, data=IMAGES, out=tmp_path / "run", recipe=recipe)
    sizes = [row for row in run.ledger.rows if row.stage.startswith("size:")]
    assert len(sizes) == 2
    for row in sizes:
        assert row.input_size is not None
        assert row.input_size < (56, 56)
        assert row.accuracy is not None
        assert row.accuracy.drop is not None
    built = rows_of(run)["build:onnxruntime"]
    assert built.verdict is not Verdict.FAIL, "what follows reproduces the smaller network, not the original"
    with load(run) as model:
        assert model.artifact.spec.preprocessing.size == (run.ledger.chosen_row().input_size or (56, 56))
        assert model(IMAGES / "val/1_Trouser/00002.png") is not None
