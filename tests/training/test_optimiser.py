"""The rate follows its formula, and weight decay touches weight matrices alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")

from torch import nn  # noqa: E402

from vitesse.training.optimiser import adamw, rate_at  # noqa: E402
from vitesse.training.options import TrainOptions  # noqa: E402


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [rate_at(step, 100, 2.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0), "half-way down"
    assert rates[32] == pytest.approx(1 + math.cos(math.pi * 22 / 90))
    assert rates[99] == pytest.approx(1 - math.cos(math.pi / 90))
    assert all(before >= after for before, after in pairwise(rates[10:]))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.5), (20, 0.0)])
def test_every_step_of_a_short_run_has_a_rate_above_zero(steps: int, warmup: float) -> None:
    assert all(0 < rate_at(step, steps, 1.0, warmup) <= 1 for step in range(steps))


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm, self.batch_norm, self.group_norm = nn.LayerNorm(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.queries = nn.Embedding(5, 4)
        self.position, self.token = nn.Parameter(torch.zeros(1, 5, 4)), nn.Parameter(torch.zeros(1, 1, 4))


def test_norms_biases_embeddings_and_positions_do_not_decay() -> None:
    module = Parts()
    decayed, others = adamw(module, TrainOptions(steps=1, weight_decay=0.3)).param_groups
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(one)] for one in decayed["params"]} == {
        "convolution.weight",
        "linear.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names), "none is forgotten"


def test_decay_of_the_networks_that_are_trained_here() -> None:
    from vitesse.sources.vit import ViT, ViTConfig

    vit = ViT(ViTConfig((8, 8), 4, hidden=8, layers=1, heads=2, mlp=16, classes=3))
    decayed = {id(one) for one in adamw(vit, TrainOptions(steps=1)).param_groups[0]["params"]}
    names = {name for name, parameter in vit.named_parameters() if id(parameter) in decayed}
    assert names and all(name.endswith("weight") for name in names)
    assert not any("norm" in name or "position" in name for name in names)


def test_frozen_weights_are_left_out() -> None:
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    groups = adamw(module, TrainOptions(steps=1)).param_groups
    assert [list(group["params"]) for group in groups] == [[module.bias]]
