"""`optimize --compress`: pruned, distilled, judged like any step, and taken over by a second run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("torch_pruning", reason="needs torch_pruning: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning_fabric: pip install 'vitesse[compress]'")

from compress.pruning.pruned_networks import network  # noqa: E402
from vitesse import assess, pipeline  # noqa: E402
from vitesse.benchmark.latency import Ratio  # noqa: E402
from vitesse.cli import main  # noqa: E402
from vitesse.compress import trained_rows  # noqa: E402
from vitesse.data.preprocess import feeds  # noqa: E402
from vitesse.errors import DataError, UsageError  # noqa: E402
from vitesse.ledger import Latency, Row, Verdict  # noqa: E402
from vitesse.measure import Timing  # noqa: E402
from vitesse.recipe import CompressOptions, MeasureOptions, Recipe  # noqa: E402
from vitesse.report.figures import columns  # noqa: E402
from vitesse.run import Run  # noqa: E402
from vitesse.serve.releases.golden import tolerances_of  # noqa: E402
from vitesse.sources.trainable import Trainable, open_trainable, save_trainable  # noqa: E402

FASTER = Timing(
    Latency(1.0, 1.1, 1.2), Ratio(1.5, (1.4, 1.6), (1.45, 1.55), 9), Ratio(1.5, (1.4, 1.6), (1.45, 1.55), 9)
)


@pytest.fixture(autouse=True)
def timed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is 1.5× as fast as the one before: what is judged here is accuracy."""
    monkeypatch.setattr(assess, "time_candidate", lambda *given: FASTER)
    monkeypatch.setattr(pipeline, "choose", lambda ledger, accepted, assessor: ledger)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT that tells five classes apart by little, so that whatever is cut shows."""
    found = network("token")
    spec = replace(found.spec, labels=tuple("abcde"))
    prepared = [feeds([pixels], spec, ["noise"])[spec.image_input] for pixels in _noise(64)]
    with torch.no_grad():
        mean = found.module(torch.from_numpy(np.concatenate(prepared))).mean(0)
        found.module.get_parameter("head.bias").sub_(mean)
    return save_trainable(replace(found, spec=spec), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, each in the folder of the class that the network gives it: its top-1 is 100 %."""
    trainable, folder = open_trainable(model), tmp_path_factory.mktemp("images")
    parts = ["val"] * 40 + ["calib"] * 16 + ["train"] * 48
    for number, (part, pixels) in enumerate(zip(parts, _noise(len(parts)), strict=True)):
        name = "abcde"[_class_of(trainable, pixels)]
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / part / name / f"{part}{number}.png")
    return folder


def _noise(count: int) -> np.ndarray:
    """Images of 4 × 4 squares in random colours, (count, 16, 16, 3)."""
    squares = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return squares.repeat(4, 1).repeat(4, 2)


def _class_of(trainable: Trainable, pixels: np.ndarray) -> int:
    prepared = feeds([pixels], trainable.spec, ["noise"])[trainable.spec.image_input]
    with torch.no_grad():
        return int(trainable.module(torch.from_numpy(prepared)).argmax())


def recipe(images: Path, *, max_drop: float = 0.5, **compress: object) -> Recipe:
    options = {
        "share": 0.7,
        "train_data": str(images),
        "steps": 2,
        "method": "l1",
        "multiple": 4,
        "batch": 16,
    }
    return Recipe(
        target="onnxruntime",
        precisions=("fp32",),
        max_drop=max_drop,
        measure=MeasureOptions(seconds=0.05, min_rounds=2, parity_images=2),
        compress=CompressOptions(**{**options, **compress}),  # type: ignore[arg-type]
    )


def by_stage(run: Run) -> dict[str, Row]:
    return {row.stage: row for row in run.ledger.rows}


@pytest.fixture(scope="module")
def rejected(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A student that learnt nothing in two steps, at half of the operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assess, "time_candidate", lambda *given: FASTER)
        patch.setattr(pipeline, "choose", lambda ledger, accepted, assessor: ledger)
        out = tmp_path_factory.mktemp("runs") / "rejected"
        return pipeline.optimize(model, data=images, out=out, recipe=recipe(images, share=0.5, rate=1e-9))


def test_a_student_that_learnt_nothing_is_rejected_and_the_original_goes_on(rejected: Run) -> None:
    rows = by_stage(rejected)
    assert list(rows)[:5] == ["source", "prune:0.5", "distil:0.5", "clean", "fuse"]
    assert rows["source"].accuracy is not None and rows["source"].accuracy.value == 1.0
    for stage in ("prune:0.5", "distil:0.5"):
        assert rows[stage].verdict is Verdict.REJECTED and "loses" in rows[stage].reason
        assert rows[stage].latency_ms is not None
    assert rows["clean"].parameters == rows["source"].parameters
    assert rows["clean"].accuracy is not None and rows["clean"].accuracy.drop == 0.0
    assert "untrained" in rows["prune:0.5"].notes[0]
    assert tolerances_of(rows["fuse"], rejected.ledger).max_rel is not None


def test_operations_and_parameters_stand_in_the_ledger(rejected: Run) -> None:
    rows = by_stage(rejected)
    whole, left = rows["source"], rows["distil:0.5"]
    assert whole.flops and left.flops and whole.parameters and left.parameters
    assert 0.4 < left.flops / whole.flops < 0.6 and left.parameters < whole.parameters
    assert {"flops", "parameters"} <= {column.key for column in columns(rejected.ledger)}
    without = replace(
        rejected.ledger, rows=tuple(row for row in rejected.ledger.rows if ":0.5" not in row.stage)
    )
    assert "flops" not in {column.key for column in columns(without)}


def test_the_curve_of_a_rejected_student_is_linked_and_shown(rejected: Run) -> None:
    row = by_stage(rejected)["distil:0.5"]
    assert row.training_log is not None and (rejected.folder / row.training_log).is_file()
    page, text = ((rejected.folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert f'<a href="{row.training_log}">' in page and "p-learning" in page
    assert "How distil:0.5 learnt" in page and "How distil:0.5 learnt" in text
    assert f"]({row.training_log})" in text and "| step | score, points | loss |" in text


def test_a_second_run_takes_the_training_over(
    rejected: Run, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **options: object) -> None:
        raise AssertionError("pruned or trained again")

    monkeypatch.setattr(trained_rows, "cut", never)
    monkeypatch.setattr(trained_rows, "distil_from", never)
    same = recipe(images, share=0.5, rate=1e-9)
    again = pipeline.optimize(model, data=images, out=rejected.folder, recipe=same)
    assert again.ledger.rows == rejected.ledger.rows
    with pytest.raises(AssertionError, match="trained again"):
        pipeline.optimize(model, data=images, out=rejected.folder, recipe=recipe(images, share=0.6))


def test_inside_the_budget_the_rest_of_the_run_goes_on_from_the_student(
    model: Path, images: Path, tmp_path: Path
) -> None:
    run = pipeline.optimize(
        model, data=images, out=tmp_path / "run", recipe=recipe(images, max_drop=100.0, labels=False)
    )
    rows = by_stage(run)
    assert rows["distil:0.7"].verdict is Verdict.PASS
    for stage in ("clean", "fuse"):
        assert rows[stage].verdict is Verdict.PASS
        assert rows[stage].parameters == rows["distil:0.7"].parameters
        # Held against the student's own outputs, not the original's.
        assert rows[stage].parity is not None and rows[stage].parity.cosine > 0.9999
    # A server compares what a smaller network finds, not its numbers.
    assert tolerances_of(rows["fuse"], run.ledger).max_rel is None
    student = open_trainable(run.folder / Path(rows["distil:0.7"].training_log or "").parent)
    assert sum(one.numel() for one in student.module.parameters()) == rows["distil:0.7"].parameters


def test_a_graph_is_refused_with_what_to_give_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    given = [
        "--data",
        str(tmp_path),
        "--compress",
        "0.7",
        "--train-data",
        str(tmp_path),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["optimize", str(file), *given]) == 2
    said = capsys.readouterr().err
    assert "an exported graph has no gradients" in said and "give the checkpoint" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_data": None}, "without training images"),
        ({"share": 1.5}, "--compress 1.5"),
        ({"method": "guess"}, "compress.method"),
        ({"augmentation": "mild"}, "compress.augmentation"),
        ({"seconds": 0.0}, "0 seconds"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(
    change: dict[str, object], said: str, model: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline.optimize(model, data=images, out=tmp_path / "run", recipe=recipe(images, **change))
    assert not (tmp_path / "run").exists()


def test_an_open_size_cannot_be_trained(model: Path, images: Path, tmp_path: Path) -> None:
    opened = recipe(images)
    opened = replace(opened, source=replace(opened.source, dynamic=("batch", "height", "width")))
    with pytest.raises(UsageError, match="a network is trained at one"):
        pipeline.optimize(model, data=images, out=tmp_path / "run", recipe=opened)


def test_images_that_are_verified_on_are_not_trained_on(model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="trained on and verified on"):
        pipeline.optimize(model, data=images / "val", out=tmp_path / "run", recipe=recipe(images / "val"))


def test_the_command_line_says_what_a_recipe_says() -> None:
    import argparse

    from vitesse.cli import optimize as command

    parser = argparse.ArgumentParser()
    command.add(parser)
    given = [
        "m.npz",
        "--data",
        "d",
        "--compress",
        "0.7",
        "--train-data",
        "t",
        "--train-time",
        "2m",
        "--train-val",
        "v",
    ]
    found = command.recipe_from(parser.parse_args(given)).compress
    assert found == CompressOptions(share=0.7, train_data="t", train_val="v", seconds=120.0)
    assert found.asked and not CompressOptions().asked
    assert json.loads(json.dumps(vars(found)))["share"] == 0.7
