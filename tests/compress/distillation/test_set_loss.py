"""Losses of sets, against numpy in float64 that goes through queries one by one."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")
from vitesse.compress.distillation.matching import Pairs  # noqa: E402
from vitesse.compress.distillation.overlap import generalised_iou  # noqa: E402
from vitesse.compress.distillation.set_loss import (  # noqa: E402
    Queries,
    Truth,
    match_teacher,
    teacher_loss,
    truth_loss,
)
from vitesse.training.batch import Objects  # noqa: E402


def queries(layers: int, count: int, seed: int, images: int = 2) -> Queries:
    """Random answers over two classes and no-object, float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(layers, images, count, 3, generator=generator, dtype=torch.float64)
    boxes = 0.2 + 0.4 * torch.rand(layers, images, count, 4, generator=generator, dtype=torch.float64)
    return Queries(logits, boxes)


def truth() -> Truth:
    """Two objects in the first image, none in the second."""
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.7, 0.3, 0.1]], dtype=torch.float64)
    return Truth.of(
        [Objects(torch.tensor([1, 0]), boxes), Objects(torch.zeros(0, dtype=torch.int64), boxes[:0])]
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def pairs_of(triples: list[tuple[int, int, int, int]]) -> Pairs:
    return Pairs(*torch.tensor(triples).T)


def test_the_last_layer_comes_last() -> None:
    layers = queries(3, 4, seed=8)
    outputs = (layers.logits[-1], layers.boxes[-1], layers.logits[:-1], layers.boxes[:-1])
    stacked = Queries.of(outputs)
    torch.testing.assert_close(stacked.logits, layers.logits.float())
    torch.testing.assert_close(stacked.boxes, layers.boxes.float())


def test_objects_are_padded_to_the_most_of_any_image() -> None:
    padded = truth()
    assert padded.labels.shape == (2, 2)
    assert padded.boxes.shape == (2, 2, 4)
    assert padded.counts == (2, 0)


def test_ground_truth_costs_what_going_through_the_queries_gives() -> None:
    found, wanted = queries(2, 3, seed=0), truth()
    given = {(0, 0, 0): 1, (0, 0, 2): 0, (1, 0, 1): 0, (1, 0, 2): 1}
    pairs = pairs_of([(*at, column) for at, column in given.items()])
    losses = truth_loss(found, wanted, pairs)
    classes, weights, l1, giou = 0.0, 0.0, 0.0, 0.0
    for at in np.ndindex(2, 2, 3):
        label = int(wanted.labels[0, given[at]]) if at in given else 2
        weight = 1.0 if at in given else 0.1
        classes -= weight * np.log(softmax(found.logits[at].numpy())[label])
        weights += weight
        if at in given:
            place = wanted.boxes[0, given[at]]
            l1 += float((found.boxes[at] - place).abs().sum())
            giou += 1 - float(generalised_iou(found.boxes[at], place))
    assert losses["class"].item() == pytest.approx(classes / weights, rel=1e-9)
    assert losses["l1"].item() == pytest.approx(5 * l1 / (2 * 2), rel=1e-9)
    assert losses["giou"].item() == pytest.approx(2 * giou / (2 * 2), rel=1e-9)


def test_images_without_any_object_teach_that_there_is_none() -> None:
    nothing = Truth.of([Objects(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))] * 2)
    found = queries(2, 3, seed=0)
    losses = truth_loss(found, nothing, nothing.match(found).pairs())
    expected = -found.logits.log_softmax(3)[..., 2].mean()
    assert losses["class"].item() == pytest.approx(expected.item())
    assert losses["l1"].item() == losses["giou"].item() == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_costs_what_going_through_the_queries_gives(temperature: float) -> None:
    student, teacher = queries(1, 3, seed=1, images=1), queries(1, 2, seed=2, images=1)
    given = {0: 1, 2: 0}  # query of the student → of the teacher; query 1 is left over
    losses = teacher_loss(student, teacher, pairs_of([(0, 0, a, b) for a, b in given.items()]), temperature)
    classes = weights = boxes = sures = giou = 0.0
    for query in range(3):
        q = softmax(student.logits[0, 0, query].numpy() / temperature)
        if query not in given:
            classes -= 0.1 * temperature**2 * np.log(q[2])
            weights += 0.1
            continue
        other = given[query]
        p = softmax(teacher.logits[0, 0, other].numpy() / temperature)
        sure = 1 - softmax(teacher.logits[0, 0, other].numpy())[2]
        weight = sure + 0.1 * (1 - sure)
        classes += weight * temperature**2 * float((p * np.log(p / q)).sum())
        weights += weight
        one, place = student.boxes[0, 0, query], teacher.boxes[0, 0, other]
        boxes += sure * float((one - place).abs().sum())
        giou += sure * (1 - float(generalised_iou(one, place)))
        sures += sure
    assert losses["class"].item() == pytest.approx(classes / weights, rel=1e-9)
    assert losses["l1"].item() == pytest.approx(5 * boxes / max(1, sures), rel=1e-9)
    assert losses["giou"].item() == pytest.approx(2 * giou / max(1, sures), rel=1e-9)


def test_a_student_in_another_order_than_its_teacher_costs_nothing() -> None:
    teacher = queries(2, 6, seed=3)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    student = Queries(teacher.logits[:, :, order], teacher.boxes[:, :, order])
    matched = match_teacher(student, teacher).pairs()
    assert matched.column.tolist() == order.tolist() * 4
    losses = teacher_loss(student, teacher, matched, 1.0)
    assert max(loss.item() for loss in losses.values()) < 1e-12
    in_order = pairs_of([(layer, image, i, i) for layer in range(2) for image in range(2) for i in range(6)])
    unmatched = teacher_loss(student, teacher, in_order, 1.0)
    assert min(loss.item() for loss in unmatched.values()) > 0.1, "without matching it would cost"


def test_a_larger_set_than_the_teachers_matches_it_all_and_a_smaller_one_its_surest() -> None:
    teacher = queries(1, 4, seed=4, images=1)
    assert teacher.for_student(1, 9).logits.shape[2] == 4
    kept = teacher.for_student(1, 2)
    surest = teacher.confidence[0, 0].topk(2).indices
    assert torch.equal(kept.logits[0, 0], teacher.logits[0, 0, surest])
    assert torch.equal(kept.boxes[0, 0], teacher.boxes[0, 0, surest])
    for count in (2, 7):
        student = queries(1, count, seed=5, images=1)
        matched = match_teacher(student, teacher.for_student(1, count)).pairs()
        assert len(matched.row) == min(4, count)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 6, [2, 4, 6]),
        (6, 6, [1, 2, 3, 4, 5, 6]),
        (4, 6, [2, 3, 5, 6]),
        (1, 6, [6]),
        (6, 3, [1, 1, 2, 2, 3, 3]),
    ],
)
def test_a_layer_learns_from_the_one_as_deep_in_the_teacher(
    student: int, teacher: int, expected: list[int]
) -> None:
    answers = queries(teacher, 3, seed=6)
    chosen = answers.for_student(student, 3)
    assert torch.equal(chosen.logits, answers.logits[[layer - 1 for layer in expected]])
    assert torch.equal(chosen.boxes, answers.boxes[[layer - 1 for layer in expected]])


def test_queries_that_differ_little_are_told_apart_under_mixed_precision() -> None:
    apart = torch.randn(2, 2, 12, 3, generator=torch.Generator().manual_seed(7))
    teacher = Queries(0.05 * apart, torch.full((2, 2, 12, 4), 0.5))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    student = Queries(teacher.logits[:, :, order], teacher.boxes)
    with torch.autocast("cpu", torch.bfloat16):
        matched = match_teacher(student, teacher).pairs()
    assert matched.column.tolist() == order.tolist() * 4
