"""Which network learns: opened, cut or new; and which do not belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'vitesse[torch]'")
from compress.distillation.networks import SIDE, detr, images, vit  # noqa: E402
from vitesse.compress.distillation.student import check_pair, open_student  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.sources.trainable import Trainable, save_trainable  # noqa: E402


def test_cut_layers_give_what_the_teachers_layer_before_gave() -> None:
    teacher = detr()
    student = open_student("cut:decoder_layers=2", teacher)
    _, _, aux_logits, aux_boxes = teacher.module(images(2, SIDE))
    logits, boxes, *_ = student.module(images(2, SIDE))
    assert student.config.decoder_layers == 2
    torch.testing.assert_close(logits, aux_logits[1])
    torch.testing.assert_close(boxes, aux_boxes[1])


def test_cut_weights_are_copies_and_all_of_them_learn() -> None:
    for teacher, text in ((detr(), "cut:queries=3,encoder_layers=1"), (vit(), "cut:layers=2")):
        student = open_student(text, teacher)
        before = {name: weight.clone() for name, weight in teacher.module.state_dict().items()}
        with torch.no_grad():
            for weight in student.module.parameters():
                assert weight.requires_grad
                weight.add_(1)
        assert all(torch.equal(before[name], weight) for name, weight in teacher.module.state_dict().items())


def test_the_first_queries_stay() -> None:
    teacher = detr()
    student = open_student("cut:queries=3", teacher)
    assert torch.equal(student.module.query_embed.weight, teacher.module.query_embed.weight[:3])
    assert student.module(images(1, SIDE))[0].shape == (1, 3, 4)


def test_a_pruned_teacher_is_cut_with_the_sizes_of_its_layers() -> None:
    uneven = tuple((f"transformer.decoder.layers.{i}.linear1", 8 * (i + 1)) for i in range(3))
    student = open_student("cut:decoder_layers=2", detr(uneven=uneven))
    assert student.config.uneven == uneven[:2]
    assert student.module(images(1, SIDE))[0].isfinite().all()
    assert open_student("like:decoder_layers=2", detr(uneven=uneven)).config.uneven == ()


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        (detr(), "like:hidden=8,heads=1,feedforward=16,depths=1+2+1+1,channels=4+4+4+4,decoder_layers=4"),
        (vit(), "like:hidden=8,heads=4,mlp=8,layers=2,patch=4"),
    ],
)
def test_a_new_network_has_the_sizes_asked_for_and_depends_on_the_seed_alone(
    teacher: Trainable, text: str
) -> None:
    one, same, other = (open_student(text, teacher, seed=seed) for seed in (1, 1, 2))
    assert one.config.hidden == 8
    states = [network.module.state_dict() for network in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    answers = one.module(images(4, one.spec.preprocessing.size[0]))
    assert (answers[0] if isinstance(answers, tuple) else answers).std(0).min() > 1e-5, (
        "all images look alike"
    )
    assert all(weight.any() or name.endswith("bias") for name, weight in one.module.named_parameters())


def test_a_saved_student_is_opened_as_it_was_kept(tmp_path: Path) -> None:
    student = vit(seed=1, layers=2)
    save_trainable(student, tmp_path / "student")
    opened = open_student(str(tmp_path / "student"), vit())
    assert opened.config == student.config
    torch.testing.assert_close(opened.module(images(2, 16)), student.module(images(2, 16)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cut:decoder_layers=4", "the teacher has 3"),
        ("cut:decoder_layers=0", "NAME=NUMBER"),
        ("cut:hidden=8", "one of encoder_layers, decoder_layers, queries"),
        ("cut:", "for example cut:encoder_layers=2"),
        ("like:hidden=18", "a multiple of 4 and of heads"),
        ("like:depths=1+1", "four numbers, as 1+1+1+1"),
        ("like:hidden=4+4+4+4", "NAME=NUMBER"),
        ("model.onnx", "its weights cannot be trained here"),
    ],
)
def test_students_that_cannot_be_had_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_student(text, detr())
    assert said in str(refused.value)


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match="like:patch=17"):
        open_student("like:patch=17", vit())


def other_labels(trainable: Trainable) -> Trainable:
    return replace(trainable, spec=replace(trainable.spec, labels=("ant", "cow", "bee")))


def other_pixels(trainable: Trainable) -> Trainable:
    rules = replace(trainable.spec.preprocessing, size=(96, 64), mean=(0.5, 0.5, 0.5))
    return replace(trainable, spec=replace(trainable.spec, preprocessing=rules))


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (vit(), "the teacher is a DETR, which detects, the student a ViT, which classifies"),
        (detr(logits=7), "the teacher has 3 classes, the student 6"),
        (other_labels(detr()), "class 1 is 'bee' for the teacher and 'cow' for the student"),
        (
            other_pixels(detr()),
            r"size \(64, 64\) and \(96, 64\); mean \(0.0, 0.0, 0.0\) and \(0.5, 0.5, 0.5\)",
        ),
    ],
)
def test_a_student_that_answers_something_else_is_refused(student: Trainable, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_pair(detr(), student)
    check_pair(detr(), detr(queries=2, hidden=8))
