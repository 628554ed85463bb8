"""Tens of thousands of pictures decoded by processes, which have no interpreter's lock in common as threads have."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

from vitesse.data.boxes import Placement
from vitesse.data.images import Pixels
from vitesse.data.split import Sample
from vitesse.errors import DataError

Load = Callable[[Sample], tuple[Pixels, Placement]]

# Below, processes take longer to start than they save.
_MANY = 4_000
_LEAST_CORES = 4


def worth_processes(images: int, cores: int) -> bool:
    """Whether there is enough to do for processes, and a system that forks them safely."""
    return images >= _MANY and cores >= _LEAST_CORES and sys.platform == "linux"


def shared_pixels(shape: tuple[int, ...]) -> Pixels:
    """Zeros of a shape that forked processes write to."""
    return np.frombuffer(mmap.mmap(-1, prod(shape)), np.uint8).reshape(shape)


def decoded_in_processes(
    samples: Sequence[Sample], load: Load, pixels: Pixels, processes: int
) -> list[Placement | None]:
    """Decode every image into `pixels`, of `shared_pixels`; None where it could not be read.

    A process that dies leaves None for what it should have told.
    """
    placements: list[Placement | None] = [None] * len(samples)
    context = get_context("fork")

    def lane(first: int, parent: Connection) -> None:
        found: dict[int, Placement] = {}
        for index in range(first, len(samples), processes):
            with suppress(DataError):
                pixels[index], found[index] = load(samples[index])
        parent.send(found)

    lanes = []
    for first in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lane, args=(first, sender), daemon=True)
        process.start()
        sender.close()
        lanes.append((process, receiver))
    for process, receiver in lanes:
        with receiver, suppress(EOFError):
            for index, placed in receiver.recv().items():
                placements[index] = placed
        process.join()
    return placements
