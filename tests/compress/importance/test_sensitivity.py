"""The drop that is reported is the metric's, with exactly those units masked that were said to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from torch import nn  # noqa: E402

from compress.importance.networks import answers, cut, noise, tiny_vit  # noqa: E402
from vitesse.compress.importance.scores import scores  # noqa: E402
from vitesse.compress.importance.sensitivity import Curve, sensitivity  # noqa: E402
from vitesse.compress.importance.units import Kind  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.sources.trainable import Trainable  # noqa: E402

MLP, HEADS = "blocks.1.mlp.dense1", "blocks.0.attention"


class Fidelity:
    """100 points for the answers of the whole network, less by their distance from these."""

    def __init__(self, trainable: Trainable) -> None:
        self.images = noise(trainable)
        (self.wanted,) = answers(trainable.module, self.images)
        self.calls = 0

    def __call__(self, module: nn.Module) -> float:
        self.calls += 1
        (found,) = answers(module, self.images)
        return 100 - float((found - self.wanted).abs().mean())


class Counted:
    """Counts what progress is told."""

    def __init__(self) -> None:
        self.total = self.done = 0.0

    def stage(self, name: str, activity: str, total: int) -> None:
        self.total = total

    def advance(self, steps: float = 1) -> None:
        self.done += steps

    def row(self, stage: str, verdict: str, reason: str) -> None: ...


def with_dead_units() -> Trainable:
    """A ViT in which 12 of 24 units of one MLP, and head 3 of one attention, are read by nobody."""
    trainable = tiny_vit()
    with torch.no_grad():
        trainable.module.get_submodule("blocks.1.mlp.dense2").get_parameter("weight")[:, ::2] = 0
        trainable.module.get_submodule(f"{HEADS}.out").get_parameter("weight")[:, 12:] = 0
    return trainable


def test_the_least_important_units_are_masked_first() -> None:
    trainable = with_dead_units()
    found = sensitivity(trainable, Fidelity(trainable), {MLP: np.arange(24) % 2.0}, shares=(0.25, 0.5, 0.75))
    curve = found.curves[MLP]
    assert (curve.masked, curve.drops[:2]) == ((6, 12, 18), (0, 0)) and curve.drops[2] > 0
    backwards = sensitivity(trainable, Fidelity(trainable), {MLP: 1 - np.arange(24) % 2.0}, shares=(0.25,))
    assert backwards.curves[MLP].drops[0] > 0, "the other order masks the units that are read"


def test_a_drop_is_that_of_a_network_without_these_units() -> None:
    trainable = tiny_vit()
    score = Fidelity(trainable)
    found = sensitivity(trainable, score, {HEADS: np.array([3.0, 1.0, 2.0, 4.0])}, shares=(0.5,))
    for drop, gone in [(found.curves[HEADS].drops[0], [1, 2]), (found.alone[HEADS][3], [3])]:
        assert drop == pytest.approx(100 - score(cut(trainable, HEADS, gone)), abs=1e-4)


def test_what_costs_nothing_alone_is_masked_together_and_named() -> None:
    trainable = with_dead_units()
    found = sensitivity(
        trainable, Fidelity(trainable), {HEADS: np.array([4.0, 3.0, 2.0, 1.0])}, shares=(0.25,)
    )
    costs = found.alone[HEADS]
    assert costs[3] == 0 and costs[:3].min() > 0
    (together,) = found.together
    expected = {(HEADS, int(index)) for index in np.flatnonzero(costs <= 0.1)}
    assert together.kind is Kind.HEADS and together.units[0] == (HEADS, 3) and set(together.units) == expected


def test_rank_agreement_is_one_for_scores_in_the_order_of_the_costs_and_minus_one_backwards() -> None:
    trainable = tiny_vit()
    costs = sensitivity(trainable, Fidelity(trainable), scores(trainable, "l1"), shares=(0.5,)).alone
    for sign in (1, -1):
        found = sensitivity(trainable, Fidelity(trainable), {"blocks": sign * costs["blocks"]}, shares=(0.5,))
        assert found.agreement == {Kind.LAYERS: pytest.approx(sign)}


def test_one_forward_pass_is_made_for_each_mask_and_progress_hears_of_all() -> None:
    trainable, told = tiny_vit(), Counted()
    score = Fidelity(trainable)
    found = sensitivity(
        trainable, score, {HEADS: np.arange(4.0)}, shares=(0.2, 0.25, 0.5, 0.99), progress=told
    )
    assert found.curves[HEADS].masked == (1, 2, 3), "0.2 and 0.25 of four heads are the same one; never all"
    assert score.calls == 1 + 3 + 4 + len(found.together)
    assert told.done == told.total == 1 + 3 + 4 + 3, "a kind without cheap units counts as done"


def test_a_curve_answers_with_the_largest_share_that_was_measured_up_to_it() -> None:
    curve = Curve((0.25, 0.5), (1, 2), (0.5, 4.0))
    assert [curve.drop_at(share) for share in (0.1, 0.25, 0.4, 0.9)] == [0, 0.5, 0.5, 4.0]


def test_shares_and_scores_that_do_not_fit_are_refused() -> None:
    trainable = tiny_vit()
    with pytest.raises(UsageError, match="a share of 1 masked"):
        sensitivity(trainable, Fidelity(trainable), {}, shares=(0.5, 1))
    smaller = replace(trainable, module=cut(trainable, HEADS, [0]))
    with pytest.raises(UsageError, match=r"blocks.0.attention has shape \(4,\)") as raised:
        sensitivity(smaller, Fidelity(smaller), scores(trainable, "l1"))
    assert "before it was pruned" in str(raised.value)
