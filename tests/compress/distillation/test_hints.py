"""Inner tokens that a student imitates."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
from compress.distillation.networks import detr, images, vit  # noqa: E402
from vitesse.compress.distillation.hints import (  # noqa: E402
    Hinted,
    hint_loss,
    hint_places,
    normalised,
    outputs_of,
)
from vitesse.errors import UsageError  # noqa: E402


def test_tokens_cost_the_squared_distance_of_what_is_normalised() -> None:
    one, other = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[0.0, 4.0]]])
    wanted = np.array([-1.0, 1.0])  # 0 and 4, brought to mean 0 and variance 1
    expected = ((np.array([1.0, -1.0]) - wanted) ** 2).mean()
    assert hint_loss([one], [other]).item() == pytest.approx(expected, rel=1e-4)
    assert hint_loss([one, normalised(other)], [other, other]).item() == pytest.approx(expected / 2, rel=1e-4)


def test_a_hinted_network_answers_as_the_student_alone() -> None:
    student = vit().module
    hinted = Hinted(student, ["blocks.0"], (16, 20))
    assert torch.equal(hinted(images(2, 16)), student(images(2, 16)))
    assert sum(p.numel() for p in hinted.parameters()) > sum(p.numel() for p in student.parameters())


def test_tokens_of_the_same_width_begin_where_they_are() -> None:
    hinted = Hinted(vit().module, ["blocks.0"], (16, 16))
    tokens = torch.randn(2, 5, 16)
    torch.testing.assert_close(hinted.projected([tokens])[0], normalised(tokens))


def test_outputs_are_collected_while_the_block_runs_and_not_after() -> None:
    network = vit().module
    with outputs_of(network, ["blocks.0", "blocks.1", "blocks.1"]) as found:
        network(images(2, 16))
    network(images(2, 16))
    assert [tuple(one.shape) for one in found] == [(2, 5, 16)] * 3
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (6, 3, ("blocks.1", "blocks.3")),
        (3, 3, ("blocks.0", "blocks.1")),
        (2, 4, ("blocks.0", "blocks.0", "blocks.0")),
    ],
)
def test_blocks_are_compared_with_those_as_deep_but_never_with_the_last(
    teacher: int, student: int, expected: tuple[str, ...]
) -> None:
    places = hint_places(vit(layers=teacher), vit(layers=student))
    assert places == (expected, tuple(f"blocks.{i}" for i in range(student - 1)))


def test_detectors_are_compared_by_what_the_decoder_looks_at() -> None:
    assert hint_places(detr(), detr(decoder_layers=1)) == (("transformer.encoder",), ("transformer.encoder",))


def test_other_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="teacher has tokens 5 of a grid") as refused:
        hint_places(vit(), vit(patch=4))
    assert "distil without features" in str(refused.value)
    with pytest.raises(UsageError, match="teacher of 3 blocks and a student of 1"):
        hint_places(vit(), vit(layers=1))
