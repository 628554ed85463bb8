"""The order of batches and the position behind the last one, whether the next is made ready early or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")

from training.toys import Cut, Noise, at_call, cut  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402
from vitesse.training.feed import Feed  # noqa: E402
from vitesse.training.transfer import fetched  # noqa: E402

CPU = torch.device("cpu")
# Of 18 images in batches of 4: four of each of the first two epochs, and two of the third.
STEPS = 10
POSITIONS = [(epoch, used) for epoch in range(3) for used in range(1, 5)][:STEPS]


def walked(feed: Feed, steps: int, *, early: bool) -> tuple[list[Batch], list[tuple[int, int]]]:
    batches, positions = [], []
    for _ in range(steps):
        batches.append(feed.next())
        if early:
            feed.prepare()
            feed.prepare()
        positions.append((feed.epoch, feed.used))
    feed.close()
    return batches, positions


def equal(some: list[Batch], others: list[Batch]) -> bool:
    return all(torch.equal(one.images, other.images) for one, other in zip(some, others, strict=True))


def test_batches_made_ready_early_are_the_same_and_their_positions_too() -> None:
    plain, early = (walked(Feed(Noise(), 4, CPU), STEPS, early=flag) for flag in (False, True))
    assert equal(plain[0], early[0])
    assert plain[1] == early[1] == POSITIONS


@pytest.mark.parametrize("done", [3, 4, 5])
def test_a_feed_goes_on_from_the_position_of_the_last_batch_that_was_taken(done: int) -> None:
    whole, positions = walked(Feed(Noise(), 4, CPU), STEPS, early=True)
    rest, _ = walked(Feed(Noise(), 4, CPU, *positions[done - 1]), STEPS - done, early=True)
    assert equal(whole[done:], rest)


def test_where_there_is_no_room_for_a_second_batch_it_is_made_when_the_first_is_gone() -> None:
    full = iter([False, False, True, *[False] * 20])

    class Narrow(Noise):
        def epoch(self, index: int, batch: int, device: torch.device) -> Iterator[Batch]:
            for one in super().epoch(index, batch, device):
                if next(full):
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield one

    feed = Feed(Narrow(), 4, CPU)
    batches = [feed.next(), feed.next()]
    feed.prepare()
    assert (feed.epoch, feed.used) == (0, 2)
    batches.append(feed.next())
    assert equal(batches, walked(Feed(Noise(), 4, CPU), 3, early=False)[0])


def test_a_source_that_fails_does_so_when_its_batch_is_asked_for() -> None:
    feed = Feed(Noise(on_batch=at_call(2, cut)), 4, CPU)
    feed.next()
    feed.prepare()
    assert (feed.epoch, feed.used) == (0, 1)
    with pytest.raises(Cut):
        feed.next()


def test_what_is_fetched_is_there_after_the_wait_and_has_no_gradients() -> None:
    numbers = torch.tensor([1.5, -2.0], requires_grad=True)
    arrived = fetched(2 * numbers).wait()
    assert arrived.tolist() == [3.0, -4.0]
    assert not arrived.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_a_gpu_computes_is_fetched_as_it_was_when_it_was_asked_for() -> None:
    numbers = torch.arange(5.0, device="cuda") * 3
    arriving = fetched(numbers)
    numbers.zero_()
    assert arriving.wait().tolist() == [0.0, 3.0, 6.0, 9.0, 12.0]
