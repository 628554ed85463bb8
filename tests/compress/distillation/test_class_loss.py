"""Soft and hard labels, against numpy in float64."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
from vitesse.compress.distillation.class_loss import hard_loss, soft_loss  # noqa: E402

STUDENT = np.array([[0.3, -1.0, 2.0], [1.5, 0.0, -0.5]])
TEACHER = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.5])
def test_soft_labels_cost_the_divergence_of_the_student_from_the_teacher(temperature: float) -> None:
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1)
    swapped = temperature**2 * (q * np.log(q / p)).sum(1)
    got = soft_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert not np.allclose(expected, swapped, rtol=0.01), "the case would not tell a swap"


def test_the_size_of_the_gradient_hardly_depends_on_a_high_temperature() -> None:
    gradients = []
    for temperature in (20.0, 40.0):
        student = torch.tensor(STUDENT, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            soft_loss(student, torch.tensor(TEACHER), temperature).sum(), student
        )
        gradients.append(gradient.norm().item())
    assert gradients[0] == pytest.approx(gradients[1], rel=0.05)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = torch.tensor(STUDENT, requires_grad=True), torch.tensor(TEACHER, requires_grad=True)
    soft_loss(student, teacher, 2.0).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_equal_logits_cost_nothing_even_where_they_are_extreme() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]])
    assert soft_loss(logits, logits.clone(), 1.0).item() == 0


def test_smoothing_spreads_a_share_of_every_label_over_all_classes() -> None:
    logs = np.log(softmax(STUDENT))
    labels = [2, 1]
    wanted = np.full((2, 3), 0.1 / 3)
    wanted[range(2), labels] += 0.9
    got = hard_loss(torch.tensor(STUDENT), torch.tensor(labels), 0.1).item()
    assert got == pytest.approx(-(wanted * logs).sum(1).mean(), rel=1e-12)
