"""Generalised IoU, against boxes whose overlap is known."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
from vitesse.compress.distillation.overlap import generalised_iou  # noqa: E402

# (cx, cy, w, h) twice → IoU − (hull − union) / hull, by hand.
KNOWN = {
    "the same box": ((0.5, 0.5, 0.2, 0.4), (0.5, 0.5, 0.2, 0.4), 1.0),
    "a quarter inside": ((0.5, 0.5, 0.4, 0.4), (0.5, 0.5, 0.2, 0.2), 0.25),
    "side by side": ((0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0), 0.0),
    "half over": ((1.0, 1.0, 2.0, 2.0), (2.0, 1.0, 2.0, 2.0), 1 / 3),
    "apart by one width": ((0.5, 0.5, 1.0, 1.0), (2.5, 0.5, 1.0, 1.0), -1 / 3),
    "corners touch": ((0.5, 0.5, 1.0, 1.0), (1.5, 1.5, 1.0, 1.0), -0.5),
    "crossed": ((1.5, 1.5, 3.0, 1.0), (1.5, 1.5, 1.0, 3.0), 1 / 5 - 4 / 9),
}


@pytest.mark.parametrize("name", KNOWN)
def test_boxes_overlap_as_worked_out_by_hand(name: str) -> None:
    one, other, expected = KNOWN[name]
    boxes = torch.tensor([one, other], dtype=torch.float64)
    assert generalised_iou(boxes[0], boxes[1]).item() == pytest.approx(expected, abs=1e-12)
    assert generalised_iou(boxes[1], boxes[0]).item() == pytest.approx(expected, abs=1e-12)


def test_all_are_compared_with_all_where_shapes_broadcast() -> None:
    ones, others = torch.rand(3, 1, 4) + 0.1, torch.rand(1, 5, 4) + 0.1
    table = generalised_iou(ones, others)
    assert table.shape == (3, 5)
    assert table[2, 4] == generalised_iou(ones[2, 0], others[0, 4])


def test_empty_boxes_have_values_and_gradients_that_are_numbers() -> None:
    box = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    for other in ((0.5, 0.5, 0.0, 0.0), (0.7, 0.5, 0.1, 0.1)):
        value = generalised_iou(box, torch.tensor(other))
        (gradient,) = torch.autograd.grad(value, box)
        assert -1 <= value.item() <= 1
        assert gradient.isfinite().all()


def test_boxes_apart_are_drawn_together() -> None:
    box = torch.tensor([0.2, 0.5, 0.1, 0.1], requires_grad=True)
    (gradient,) = torch.autograd.grad(generalised_iou(box, torch.tensor([0.8, 0.5, 0.1, 0.1])), box)
    assert gradient[0] > 0, "to the right it overlaps sooner"
