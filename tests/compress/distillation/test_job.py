"""The whole of `vitesse distill` on small images: what lies in the folder, and what is said."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning-fabric: pip install 'vitesse[compress]'")
from compress.distillation.networks import images, vit  # noqa: E402
from vitesse.cli import distill  # noqa: E402
from vitesse.compress.distillation import job  # noqa: E402
from vitesse.errors import DataError  # noqa: E402
from vitesse.sources.trainable import open_trainable, save_trainable  # noqa: E402
from vitesse.spec import Task  # noqa: E402
from vitesse.training.data.augment import augmentation  # noqa: E402
from vitesse.training.data.opening import open_training  # noqa: E402
from vitesse.training.options import AUGMENTATIONS  # noqa: E402

CLASSES = ("0_dark", "1_grey", "2_bright")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images whose brightness is their class, to train and to score on, and a teacher that was not trained."""
    rng = np.random.default_rng(0)
    for part in ("data/train", "data/val"):
        for label, name in enumerate(CLASSES):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 60, (16, 16, 3)) + 90 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    save_trainable(vit(), tmp_path / "teacher")
    return tmp_path


def asked(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distill.add(parser)
    return parser.parse_args(
        [
            "--teacher", f"{folder / 'teacher'}", "--student", "like:layers=2,hidden=12",
            "--data", f"{folder / 'data'}", "--out", f"{folder / 'run'}", "--steps", "6", "--batch", "4", *more,
        ]
    )  # fmt: skip


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_are_augmented_as_the_command_line_says(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def opened(*given: object, augment: object, **named: object) -> object:
        seen.append(augment)
        return open_training(*given, augment=augment, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "open_training", opened)
    assert distill.run(asked(folder, "--augment", name)) == 0
    assert seen == [augmentation(name, Task.CLASSIFICATION) or False]


def test_the_folder_holds_a_model_a_log_and_checkpoints(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill.run(asked(folder, "--no-labels")) == 0
    said = capsys.readouterr().out
    for name in ("teacher", "student before", "student after", "6 steps in"):
        assert name in said
    assert f"next: vitesse optimize {folder / 'run'} " in said
    student = open_trainable(folder / "run")
    assert (student.config.layers, student.config.hidden) == (2, 12)
    assert (folder / "run" / "training.csv").read_text().startswith("step,")
    assert student.module(images(1, 16)).isfinite().all()


def test_labels_alone_teach_what_an_untrained_teacher_cannot(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = ("--val", str(folder / "data"), "--steps", "40", "--rate", "0.01")
    with pytest.raises(DataError, match="guessing 33"):
        distill.run(asked(folder, *score))
    assert not (folder / "run").exists()
    assert distill.run(asked(folder, *score, "--labels-only")) == 0
    said = capsys.readouterr().out
    assert "top-1" in said
    rows = {line[:14].strip(): line.split() for line in said.splitlines()}
    assert float(rows["student after"][2]) > 60 > float(rows["teacher"][1])
