"""Pictures at the model's input size as uint8: held in memory where they fit, else decoded again each epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitesse.data.boxes import Placement
from vitesse.data.images import Pixels
from vitesse.data.preprocess import place, prepare
from vitesse.data.split import Sample
from vitesse.environment import usable_cores
from vitesse.errors import DataError, SpecError
from vitesse.spec import ModelSpec, Resize
from vitesse.training.data.decoding import decoded_in_processes, shared_pixels, worth_processes
from vitesse.training.transfer import sent

MAX_DAMAGED = 0.01
_AHEAD = 2  # batches that are decoded while one is trained on
_SHOWN = 3
_MOST_THREADS = 16  # beyond, decoders wait for memory and not for a core


class Prepare:
    """Image files → (3, H, W) uint8 as the model sees them, before normalising; the same resizing as `prepare`'s.

    Padding, which is zero after normalising, is the mean colour here, rounded to 8 bits.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Raises SpecError where the size of the tensor depends on the image."""
        rules = spec.preprocessing
        if rules.buckets or rules.resize is Resize.SHORTEST:
            raise SpecError(
                f"the model takes images of many sizes: resize = {rules.resize.value!r}"
                + (f" with {len(rules.buckets)} buckets" if rules.buckets else ""),
                expected="one input size: a batch to train on has one shape",
                fix='train with a spec of one size: resize = "letterbox" or "stretch", no buckets',
            )
        self.size = rules.size
        raw = replace(rules, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), layout="NCHW")
        self._spec, self._rules = replace(spec, preprocessing=raw), rules
        padding = [round(min(max(mean / rules.scale, 0), 255)) for mean in rules.mean]
        order = padding if rules.color == "RGB" else padding[::-1]
        self._padding = np.array(order, np.uint8)[:, None, None]

    def __call__(self, sample: Sample) -> tuple[Pixels, Placement]:
        """Decode one image and place it; raises DataError where it is damaged or cannot be placed."""
        image = sample.read()
        placed = place((image.shape[0], image.shape[1]), self._rules, str(sample.path))
        pixels = prepare(image, self._spec, str(sample.path)).astype(np.uint8)
        rows, columns = placed.covers(self.size)
        pixels[:, rows:] = self._padding
        pixels[:, :, columns:] = self._padding
        return pixels, placed


class Store(Protocol):
    """Where the pictures of a batch come from."""

    def batches(self, chosen: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[Tensor]:
        """For each array of image indices, (B,) int64, give (B, 3, H, W) uint8 on `device`."""
        ...


class InMemory:
    """All pictures in one array; on a GPU that has room for them, there."""

    def __init__(self, pixels: Pixels) -> None:
        """Hold (N, 3, H, W) uint8."""
        self._pixels = torch.from_numpy(pixels)

    def batches(self, chosen: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[Tensor]:
        """Give the pictures; the first call with a GPU moves all of them, if they fill no quarter of what is free."""
        if device != self._pixels.device and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if 4 * self._pixels.numel() <= free:
                self._pixels = self._pixels.to(device)
        for indices in chosen:
            yield self._pixels[sent(indices, self._pixels.device)].to(device)


class Decoded:
    """Pictures decoded by threads each time, two batches ahead, so that memory holds three."""

    def __init__(self, samples: Sequence[Sample], load: Prepare, threads: int) -> None:
        """Hold the list of files alone."""
        self._samples, self._load, self._threads = samples, load, threads

    def batches(self, chosen: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[Tensor]:
        """Give the pictures; raises DataError for a file that could be read when the data was opened."""
        with ThreadPoolExecutor(self._threads, "decode") as pool:
            ahead: deque[list[Future[Pixels]]] = deque()
            rest = iter(chosen)
            try:
                for indices in islice(rest, _AHEAD):
                    ahead.append(self._begin(pool, indices))
                while ahead:
                    for indices in islice(rest, 1):
                        ahead.append(self._begin(pool, indices))
                    stacked = np.stack([one.result() for one in ahead.popleft()])
                    yield torch.from_numpy(stacked).to(device)
            finally:  # an epoch that is left early waits for no picture
                for futures in ahead:
                    for one in futures:
                        one.cancel()

    def _begin(self, pool: ThreadPoolExecutor, indices: NDArray[np.int64]) -> list[Future[Pixels]]:
        return [pool.submit(self._pixels, self._samples[index]) for index in indices]

    def _pixels(self, sample: Sample) -> Pixels:
        return self._load(sample)[0]


@dataclass(frozen=True, eq=False)
class Opened:
    """All images looked at once.

    placements: where each lies in the tensor; None for those that cannot be read, which are not trained on.
    """

    store: Store
    placements: tuple[Placement | None, ...]
    notes: tuple[str, ...]


def open_store(samples: Sequence[Sample], load: Prepare, memory: int) -> Opened:
    """Decode every image once: the damaged are found before training, and what fits into memory is kept.

    Args:
        memory: bytes that the pictures may fill.

    Raises:
        DataError: more than 1 % of the images cannot be read.
    """
    size = len(samples) * 3 * load.size[0] * load.size[1]
    pixels = shared_pixels((len(samples), 3, *load.size)) if samples and size <= memory else None
    placements: list[Placement | None] = [None] * len(samples)
    errors: dict[int, DataError] = {}

    def look(index: int) -> None:
        try:
            picture, placements[index] = load(samples[index])
        except DataError as error:
            errors[index] = error
            return
        if pixels is not None:
            pixels[index] = picture

    threads = min(usable_cores(), _MOST_THREADS)
    if pixels is not None and worth_processes(len(samples), threads):
        placements = decoded_in_processes(samples, load, pixels, threads)
    # What a process could not read is looked at again, for the words of its error.
    rest = [index for index, placed in enumerate(placements) if placed is None]
    _run(lambda number: look(rest[number]), len(rest), threads)
    note = _judged([errors[index] for index in sorted(errors)], len(samples))
    notes = [note] if note else []
    if pixels is None:
        notes.append(
            f"the images fill {size / 1e6:.0f} MB, more than the {memory / 1e6:.0f} MB set aside for them: "
            f"{threads} threads decode them anew in each epoch"
        )
    store = InMemory(pixels) if pixels is not None else Decoded(samples, load, threads)
    return Opened(store, tuple(placements), tuple(notes))


def _run(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call `work` with 0 … count - 1, each thread with every n-th of them."""

    def lane(first: int) -> None:
        for index in range(first, count, threads):
            work(index)

    with ThreadPoolExecutor(threads, "decode") as pool:
        for _ in pool.map(lane, range(threads)):
            pass


def _judged(errors: Sequence[DataError], images: int) -> str:
    """Return the note about images left out; raises DataError where they are too many."""
    if not errors:
        return ""
    named = "; ".join(error.what for error in errors[:_SHOWN])
    named += f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    what = f"{len(errors)} of {images} training images cannot be used: {named}"
    if len(errors) <= MAX_DAMAGED * images:
        return what + "; they are left out"
    first = errors[0]
    raise DataError(
        what,
        expected=first.expected
        + f"; at most {MAX_DAMAGED:.0%} of the images may be otherwise, and are left out",
        cause=first.cause,
        fix=first.fix,
    )
