"""What a student is trained on: which losses, where gradients go, and what happens without labels or numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")
from compress.distillation.networks import detr, images, pictures, scenes, twin, vit  # noqa: E402
from vitesse.compress.distillation.options import DistilOptions  # noqa: E402
from vitesse.compress.distillation.tasks import make_task, task_loss  # noqa: E402
from vitesse.errors import DataError, UsageError  # noqa: E402
from vitesse.sources.trainable import Trainable  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402
from vitesse.training.options import TrainOptions  # noqa: E402

OPTIONS = DistilOptions(TrainOptions(steps=1))
TAUGHT = replace(OPTIONS, labels=False, features=True)


def networks(kind: str, **sizes: object) -> tuple[Trainable, Batch]:
    return (detr(**sizes), scenes()) if kind == "detr" else (vit(**sizes), pictures())


@pytest.mark.parametrize("kind", ["detr", "vit"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(kind: str) -> None:
    teacher, batch = networks(kind)
    equal = make_task(teacher, twin(teacher), TAUGHT).loss(batch)
    assert {name: loss.item() for name, loss in equal.items()} == pytest.approx(
        dict.fromkeys(equal, 0), abs=1e-5
    )
    other, _ = networks(kind, seed=1)
    unlike = make_task(teacher, other, TAUGHT).loss(batch)
    assert all(loss.item() > 1e-3 for loss in unlike.values())
    assert any(name.startswith("teacher") for name in equal)
    assert "features" in equal


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["detr", "vit"])
def test_every_weight_of_the_student_gets_a_gradient_and_none_of_the_teacher(kind: str, labels: bool) -> None:
    teacher, batch = networks(kind)
    smaller = {"decoder_layers": 2, "queries": 4} if kind == "detr" else {"layers": 2, "hidden": 8}
    student, _ = networks(kind, seed=1, **smaller)
    task = make_task(teacher, student, replace(OPTIONS, labels=labels, features=True))
    torch.stack(list(task.loss(batch).values())).sum().backward()
    dead = [
        name
        for name, weight in task.student.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    # A key's bias moves all scores of a query alike, and softmax does not see it. The first decoder layer's
    # self-attention mixes queries that are all zero.
    spared = r"key\.bias$|decoder\.layers\.0\.self_attn\."
    assert [name for name in dead if not re.search(spared, name)] == []
    assert all(weight.grad is None for weight in teacher.module.parameters())
    assert list(task.frozen) == [teacher.module]


@pytest.mark.parametrize("kind", ["detr", "vit"])
def test_ground_truth_alone_needs_no_teacher_and_is_what_taylor_scores_use(kind: str) -> None:
    student, batch = networks(kind)
    task = make_task(None, student, replace(OPTIONS, smoothing=0.0))
    losses = task.loss(batch)
    assert all(name.startswith("truth") for name in losses)
    assert list(task.frozen) == []
    assert task_loss(student)(student.module, batch).item() == pytest.approx(sum(losses.values()).item())


def test_weights_and_temperature_reach_their_losses() -> None:
    teacher, batch = networks("detr")
    student, _ = networks("detr", seed=1)
    plain = make_task(teacher, student, replace(OPTIONS, features=True)).loss(batch)
    weighed = replace(OPTIONS, features=True, truth_weight=2, teacher_weight=3, feature_weight=5)
    for name, loss in make_task(teacher, student, weighed).loss(batch).items():
        factor = {"truth": 2, "teacher": 3, "features": 5}[name.partition("_")[0]]
        assert loss.item() == pytest.approx(factor * plain[name].item(), rel=1e-4), name
    softer = make_task(teacher, student, replace(OPTIONS, temperature=4.0)).loss(batch)
    assert softer["teacher_class"].item() != pytest.approx(plain["teacher_class"].item(), rel=0.01)
    assert softer["teacher_l1"].item() == pytest.approx(plain["teacher_l1"].item(), rel=1e-4)
    assert (OPTIONS.temperature_of("vit"), OPTIONS.temperature_of("detr")) == (3.0, 1.0)


@pytest.mark.parametrize("kind", ["detr", "vit"])
def test_labels_that_are_asked_for_and_absent_are_an_error(kind: str) -> None:
    teacher, batch = networks(kind)
    with pytest.raises(DataError, match="training images come without labels") as refused:
        make_task(teacher, twin(teacher), OPTIONS).loss(Batch(batch.images))
    assert "--no-labels" in str(refused.value)
    assert make_task(teacher, twin(teacher), TAUGHT).loss(Batch(batch.images))


def test_a_diverged_detector_has_losses_of_the_same_names_that_are_no_numbers() -> None:
    teacher, batch = networks("detr")
    student = twin(teacher)
    for labels in (True, False):
        options = replace(OPTIONS, labels=labels, features=True)
        names = list(make_task(teacher, student, options).loss(batch))
        broken = twin(student)
        with torch.no_grad():
            broken.module.class_embed.bias.fill_(torch.nan)
        losses = make_task(teacher, broken, options).loss(batch)
        assert list(losses) == names
        assert all(loss.isnan() and loss.requires_grad for loss in losses.values())


def test_half_precision_of_the_forward_pass_leaves_losses_in_float32() -> None:
    teacher, batch = networks("detr")
    task = make_task(teacher, twin(teacher), replace(OPTIONS, features=True))
    with torch.autocast("cpu", torch.bfloat16):
        losses = task.loss(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_projections_begin_the_same_in_every_start_of_a_run() -> None:
    teacher, student = vit(), vit(seed=1, hidden=8)
    first, second = (make_task(teacher, student, TAUGHT).student.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert student.module(images(1, 16)).shape == (1, 3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"teacher_weight": -1.0}, "teacher_weight is -1.0"),
        ({"feature_weight": float("nan")}, "feature_weight is nan"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
    ],
)
def test_options_out_of_their_range_are_refused(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        replace(OPTIONS, **wrong)
