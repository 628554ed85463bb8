"""The task's metric of a network in torch is the one that `optimize` judges by."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fashion import FOLDER
from shared_data import shared

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from torch import Tensor, nn  # noqa: E402

from vitesse.compress.scoring import Scorer, check_knows, scorer  # noqa: E402
from vitesse.data.dataset import open_dataset  # noqa: E402
from vitesse.data.images import Pixels  # noqa: E402
from vitesse.data.split import Sample, Split  # noqa: E402
from vitesse.errors import DataError, NotVerified  # noqa: E402
from vitesse.sources.source import Given  # noqa: E402
from vitesse.sources.spec_file import read_spec_file  # noqa: E402
from vitesse.sources.trainable import Trainable, open_trainable  # noqa: E402
from vitesse.sources.vit import ViTConfig  # noqa: E402
from vitesse.spec import ModelSpec  # noqa: E402

VIT_SPEC = read_spec_file(FOLDER / "vit.toml")
DETR_SPEC = read_spec_file(FOLDER / "detr.toml")


class Scripted(nn.Module):
    """Answers the given rows, one an image, in the order of the images."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.rows, self.at = rows, 0
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        start, self.at = self.at, self.at + len(images)
        return self.rows[start : self.at] + self.weight


def classes(count: int = 20) -> Split:
    return open_dataset(FOLDER / "vit", spec=VIT_SPEC).val.spread(count)


def answering(rows: Tensor, spec: ModelSpec = VIT_SPEC) -> Trainable:
    config = ViTConfig(size=(56, 56), patch=8, hidden=8, layers=1, heads=1, mlp=8, classes=10)
    return Trainable("vit", config, Scripted(rows), spec)


def one_hot(split: Split, wrong: int = 0) -> Tensor:
    """Logits that name every image's class, but for the first `wrong` images the next one."""
    labels = torch.tensor([sample.label for sample in split.samples])
    labels[:wrong] = (labels[:wrong] + 1) % 10
    return 5.0 * nn.functional.one_hot(labels, 10).float()


def test_the_score_is_the_share_of_right_answers_in_points() -> None:
    split = classes()
    trainable = answering(one_hot(split, wrong=5))
    judge = scorer(trainable, split, batch=8)
    assert (judge.metric, judge(trainable.module)) == ("top1", 75.0)


def test_a_network_that_answers_nan_scores_nothing() -> None:
    split = classes()
    trainable = answering(one_hot(split) * math.nan)
    assert scorer(trainable, split)(trainable.module) == 0


def test_a_network_is_scored_in_eval_mode_and_left_in_its_own() -> None:
    split = classes(4)
    trainable = answering(one_hot(split))
    module = trainable.module.train()
    scorer(trainable, split)(module)
    assert module.training and module.modes == [False]


def test_images_that_do_not_fit_into_memory_are_read_again_and_score_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = classes(6)
    trainable = answering(one_hot(split).repeat(2, 1))
    size = split.samples[0].read().nbytes
    judge = scorer(trainable, split, held_bytes=3 * size)
    read: list[Path] = []
    decode = Sample.read

    def noted(sample: Sample) -> Pixels:
        read.append(sample.path)
        return decode(sample)

    monkeypatch.setattr(Sample, "read", noted)
    assert judge(trainable.module) == judge(trainable.module) == 100
    assert read == 2 * [sample.path for sample in split.samples[3:]]


def test_without_labels_it_is_the_agreement_with_the_network_as_it_was() -> None:
    split = classes()
    bare = replace(split, samples=tuple(replace(sample, label=None) for sample in split.samples))
    trainable = answering(torch.cat([one_hot(split), one_hot(split), one_hot(split, wrong=2)]))
    judge = scorer(trainable, bare)
    assert judge.metric == "agreement"
    assert (judge(trainable.module), judge(trainable.module)) == (100, 90)


def test_a_network_that_guesses_is_refused() -> None:
    split = classes()  # two images of each of ten classes
    by_class = Scorer("top1", VIT_SPEC, split, 1, None)
    for points in (0.0, 12.0):
        with pytest.raises(DataError, match=rf"the teacher scores {points} points .*, and guessing 10\.0"):
            check_knows(points, by_class, "the teacher")
    check_knows(12.1, by_class, "the teacher")
    by_boxes = Scorer("coco_ap", DETR_SPEC, split, 1, None)
    with pytest.raises(DataError, match=r"(?s)scores 1\.0 points .*give --spec"):
        check_knows(1.0, by_boxes, "the teacher")
    check_knows(5.0, by_boxes, "the teacher")


def test_labels_of_which_nearly_all_are_one_class_let_a_constant_answer_score() -> None:
    split = classes()
    one_class = replace(split, samples=tuple(replace(sample, label=0) for sample in split.samples[:19]))
    skewed = Split((*one_class.samples, split.samples[-1]))
    judge = Scorer("top1", VIT_SPEC, skewed, 1, None)
    with pytest.raises(DataError, match=r"and guessing 95\.0"):
        check_knows(95.0, judge, "the original")
    check_knows(100.0, judge, "the original")


def test_without_labels_nothing_is_guessed() -> None:
    check_knows(0.0, Scorer("agreement", VIT_SPEC, classes(), 1, ()), "the original")


def test_a_detector_that_finds_nothing_leaves_nothing_to_agree_with() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            logits = torch.zeros(len(images), 2, 11)
            return logits, torch.zeros(len(images), 2, 4), logits[None], torch.zeros(1, len(images), 2, 4)

    samples = open_dataset(FOLDER / "detr", spec=DETR_SPEC).val.samples[:2]
    config = answering(torch.zeros(0)).config
    with pytest.raises(NotVerified, match="finds nothing"):
        scorer(Trainable("detr", config, Empty(), DETR_SPEC), Split(samples))


@pytest.mark.parametrize(("name", "expected"), [("vit_fashion.npz", 93.45), ("detr_fashion.pth", 82.59)])
def test_a_trained_network_scores_near_its_published_accuracy_whatever_the_batch(
    name: str, expected: float
) -> None:
    folder = shared(Path(name).stem)
    spec = DETR_SPEC if name.endswith(".pth") else VIT_SPEC
    trainable = open_trainable(folder / name, Given(spec))
    split = open_dataset(folder, spec=spec).val.spread(24 if name.endswith(".pth") else 100)
    judge = scorer(trainable, split, batch=8)
    found = judge(trainable.module)
    assert found == pytest.approx(expected, abs=5)
    assert scorer(trainable, split, batch=5)(trainable.module) == pytest.approx(found, abs=0.01)
