"""Processes that build for the same GPU time their kernels in turns: side by side they would slow each other down."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local

import torch

_mine = local()


@contextmanager
def turn(device: torch.device) -> Iterator[None]:
    """Hold the GPU's lock file while the block runs; waits for the process that holds it.

    A thread that has the turn may ask again. On the CPU, and where no file can be locked, nobody waits.
    """
    if device.type != "cuda" or getattr(_mine, "held", False):
        yield
        return
    # Imported here because Windows has none; the backend itself is for Linux.
    import fcntl

    try:
        lock = _file_of(device).open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _mine.held = True
        try:
            yield
        finally:
            # Closing the file gives the lock back, as does the end of the process, however it ends.
            _mine.held = False


def _file_of(device: torch.device) -> Path:
    # Of the GPU, whatever number CUDA_VISIBLE_DEVICES gives it.
    name = torch.cuda.get_device_properties(device).uuid
    return Path(tempfile.gettempdir()) / f"vitesse-{name}.lock"
