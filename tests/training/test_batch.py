"""A part of a batch is the same images with the same labels."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")

from vitesse.training.batch import Batch, Objects  # noqa: E402


def test_a_part_holds_what_belongs_to_its_images() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    objects = tuple(Objects(torch.full((n,), n), torch.full((n, 4), float(n))) for n in range(5))
    part = Batch(images, torch.arange(5), objects).part(1, 3)
    assert len(part) == 2 and part.labels is not None and part.objects is not None
    assert part.images[:, 0, 0, 0].tolist() == [1.0, 2.0] == part.labels.tolist()
    assert [len(one.labels) for one in part.objects] == [1, 2]


def test_what_is_unknown_stays_unknown() -> None:
    part = Batch(torch.zeros(4, 3, 2, 2)).to(torch.device("cpu")).part(0, 9)
    assert len(part) == 4 and part.labels is None and part.objects is None


def test_everything_moves_to_the_device() -> None:
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1), (Objects(torch.zeros(2), torch.zeros(2, 4)),))
    moved = batch.to(torch.device("meta"))
    assert moved.images.is_meta and moved.labels is not None and moved.labels.is_meta
    assert moved.objects is not None and moved.objects[0].labels.is_meta and moved.objects[0].boxes.is_meta
