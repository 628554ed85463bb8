"""Training a student: on the example's detector for some seconds, and refusals before anything begins."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning-fabric: pip install 'vitesse[compress]'")
from compress.distillation.networks import detr, images, pictures, scenes, vit  # noqa: E402
from fashion import FOLDER  # noqa: E402
from shared_data import shared  # noqa: E402
from vitesse.cli import distill  # noqa: E402
from vitesse.compress.distillation.distil import DistilOptions, distil  # noqa: E402
from vitesse.compress.distillation.job import Distilled, Line  # noqa: E402
from vitesse.compress.distillation.student import open_student  # noqa: E402
from vitesse.data.preprocess import feeds  # noqa: E402
from vitesse.data.split import Sample  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.sources.source import Given  # noqa: E402
from vitesse.sources.spec_file import read_spec_file  # noqa: E402
from vitesse.sources.trainable import open_trainable  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402
from vitesse.training.live_norm import LiveNorm  # noqa: E402
from vitesse.training.loop import Trained  # noqa: E402
from vitesse.training.options import TrainOptions  # noqa: E402

STEPS = TrainOptions(steps=8, batch=4, accelerator="cpu", rate=1e-2, score_every=1.0)


@dataclass
class Same:
    """One batch, over and over."""

    batch: Batch

    @property
    def images(self) -> int:
        return len(self.batch)

    def epoch(self, index: int, batch: int, device: torch.device) -> Iterator[Batch]:
        yield self.batch.to(device)


def test_three_layers_come_closer_to_six_in_thirty_steps(tmp_path: Path) -> None:
    spec = read_spec_file(FOLDER / "detr.toml")
    teacher = open_trainable(shared("detr_fashion") / "detr_fashion.pth", Given(spec))
    student = open_student("cut:decoder_layers=3", teacher)
    paths = sorted((FOLDER / "detr" / "val").glob("*.jpg"))[:1]
    pixels = feeds([Sample(path, 0).read() for path in paths], spec, [path.name for path in paths])
    data = Same(Batch(torch.from_numpy(pixels[spec.image_input])))
    before = {name: weight.clone() for name, weight in teacher.module.state_dict().items()}
    train = TrainOptions(steps=30, batch=1, rate=3e-5, accelerator="cpu", ema=0.0)
    trained = distil(teacher, student, data, DistilOptions(train, labels=False), tmp_path)
    losses = [row["loss"] for row in trained.history if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(before[name], weight) for name, weight in teacher.module.state_dict().items())
    assert not student.module.training


@pytest.mark.parametrize("live", [True, False])
def test_frozen_norms_learn_where_they_are_asked_to_and_are_frozen_afterwards(
    live: bool, tmp_path: Path
) -> None:
    student = detr()
    before = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
    distil(None, student, Same(scenes()), DistilOptions(STEPS, live_norms=live), tmp_path)
    norms = [name for name in before if ".bn" in name]
    changed = [name for name in norms if not torch.equal(before[name], student.module.state_dict()[name])]
    assert len(norms) > 4 and len(changed) == (len(norms) if live else 0)
    assert not any(isinstance(one, LiveNorm) for one in student.module.modules())
    assert not {name for name, _ in student.module.named_parameters()} & set(norms)


def test_a_run_that_is_at_its_end_gives_the_same_student_again(tmp_path: Path) -> None:
    options = DistilOptions(STEPS, features=True)
    students = [vit(seed=1, layers=2, hidden=8) for _ in range(2)]
    before = students[0].module.state_dict()["head.weight"].clone()
    for student in students:
        distil(vit(), student, Same(pictures()), options, tmp_path)
    first, second = (student.module.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], before)
    assert students[0].module(images(2, 16)).shape == (2, 3)


def test_a_run_with_other_weights_of_its_losses_or_other_data_is_another(tmp_path: Path) -> None:
    options = DistilOptions(STEPS)
    distil(vit(), vit(seed=1), Same(pictures()), options, tmp_path, data_sha256="a")
    with pytest.raises(UsageError, match=r"teacher weight: 1\.0 there, 2\.0 here"):
        distil(
            vit(),
            vit(seed=1),
            Same(pictures()),
            replace(options, teacher_weight=2.0),
            tmp_path,
            data_sha256="a",
        )
    with pytest.raises(UsageError, match="data: a there, b here"):
        distil(vit(), vit(seed=1), Same(pictures()), options, tmp_path, data_sha256="b")


def test_numbers_that_run_away_end_the_training_with_the_reason(tmp_path: Path) -> None:
    student = detr(seed=1)
    with torch.no_grad():
        student.module.bbox_embed.layers[2].weight.fill_(torch.inf)
    data = Same(Batch(images(2, 64)))
    trained = distil(detr(), student, data, DistilOptions(STEPS, labels=False), tmp_path)
    assert "teacher_class" in trained.stopped
    assert "nan" in trained.stopped


@pytest.mark.parametrize(
    ("taught", "options", "said"),
    [
        (False, {"labels": False}, "neither a teacher nor labels"),
        (False, {"features": True}, "features without a teacher"),
        (True, {}, "which detects"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_a_file_is_written(
    taught: bool, options: dict[str, bool], said: str, tmp_path: Path
) -> None:
    teacher = detr() if taught else None
    with pytest.raises(UsageError, match=said):
        distil(teacher, vit(), Same(pictures()), DistilOptions(STEPS, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def command(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distill.add(parser)
    return parser.parse_args(arguments)


NEEDED = ("--teacher", "a.pth", "--student", "cut:decoder_layers=3", "--data", "train", "--out", "run")


def test_the_command_line_becomes_a_job() -> None:
    job, options = distill.asked(
        command(*NEEDED, "--time", "30m", "--no-labels", "--set", "heads=8", "--batch", "32")
    )
    assert (job.teacher, job.student, job.val, job.taught) == ("a.pth", "cut:decoder_layers=3", None, True)
    assert job.given is not None
    assert job.given.settings == {"heads": "8"}
    assert (options.train.seconds, options.train.steps, options.train.batch) == (1800, None, 32)
    assert (options.labels, options.temperature, options.features) == (False, None, False)
    job, options = distill.asked(command(*NEEDED, "--steps", "9", "--labels-only", "--temperature", "2"))
    assert (job.taught, options.labels, options.train.steps, options.temperature) == (False, True, 9, 2.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--time", "soon"), "'soon' is no length of time"),
        ((), "one of the arguments --time --steps is required"),
        (("--steps", "3", "--no-labels", "--labels-only"), "not allowed with argument"),
    ],
)
def test_a_wrong_command_line_is_refused(
    given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(*NEEDED, *given)
    assert said in capsys.readouterr().err


def test_the_table_sets_teacher_and_student_side_by_side() -> None:
    lines = (
        Line("teacher", 82.59, 633_000_000, 3_158_000),
        Line("student before", None, 582_000_000, 2_364_000),
    )
    trained = Trained(20, 12.0, 80.0, "", (), 4)
    done = Distilled(vit(), trained, "coco_ap", lines, ("two images were damaged",))
    assert distill.table(done).splitlines() == [
        "                        AP    GFLOPs  M params",
        "teacher              82.59     0.633     3.158",
        "student before                 0.582     2.364",
        "20 steps in 12 s",
        "note: two images were damaged",
    ]
