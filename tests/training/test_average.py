"""The average of weights against values computed by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")

from torch import nn  # noqa: E402

from vitesse.training.average import Average, decay_at  # noqa: E402


def test_the_decay_rises_to_the_one_that_was_given() -> None:
    assert [decay_at(step, 0.9) for step in (1, 2, 8, 80, 1000)] == pytest.approx(
        [2 / 11, 0.25, 0.5, 0.9, 0.9]
    )


def test_the_average_is_the_hand_computed_one() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 8.0)
    average, expected = Average(module, 0.2), 8.0
    for step, (value, decay) in enumerate(((2.0, 2 / 11), (4.0, 0.2), (-1.0, 0.2)), 1):
        nn.init.constant_(module.weight, value)
        average.update(step)
        expected = decay * expected + (1 - decay) * value
    assert average.state()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_a_decay_of_zero_is_the_module_itself() -> None:
    module = nn.Linear(3, 3)
    average = Average(module, 0.0)
    nn.init.normal_(module.weight)
    average.update(1)
    assert torch.equal(average.state()["weight"], module.weight)


def test_statistics_are_averaged_and_counts_copied() -> None:
    module = nn.BatchNorm1d(2)
    average = Average(module, 0.5)
    module(torch.randn(8, 2) + 5)
    average.update(1)
    module(torch.randn(8, 2) + 5)
    average.update(2)
    assert average.state()["num_batches_tracked"].item() == 2
    assert not torch.equal(average.state()["running_mean"], module.running_mean)


def test_the_module_is_its_own_again_after_the_average_was_applied() -> None:
    module = nn.Linear(3, 3)
    average, own = Average(module, 0.9), {}
    nn.init.normal_(module.weight)
    own = module.weight.detach().clone()
    with pytest.raises(RuntimeError, match="scoring failed"), average.applied():
        assert torch.equal(module.weight, average.state()["weight"]) and not torch.equal(module.weight, own)
        raise RuntimeError("scoring failed")
    assert torch.equal(module.weight, own)
