"""Kernels compiled by many processes at once, before they are measured one after the other.

Triton's compiler holds Python's lock for most of its time, so that threads gain little. Processes meet in Triton's
cache folder: what one has compiled, the one that measures finds there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from vitesse.backends.closing import Closing
from vitesse.backends.torch_cuda.candidates import KERNELS, Kernels, Tactic, kernels
from vitesse.backends.torch_cuda.device import facts_of
from vitesse.backends.torch_cuda.tactics import Problem, TacticCache

# What has to be compiled for every configuration; libraries come compiled.
COMPILED = "triton."
# Starting a process that imports torch costs seconds: fewer jobs than this are not worth it.
FEWEST_JOBS = 8
MOST_WORKERS = 16


@dataclass(frozen=True)
class Like:
    """A tensor as a compiler sees it: shape, strides in elements, dtype."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor | None) -> Like | None:
        """Return how a tensor looks; None for an input that is not given."""
        return None if tensor is None else cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def zeros(self, device: torch.device) -> Tensor:
        """Return a tensor that looks so."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return made.zero_()


@dataclass(frozen=True)
class Job:
    """One tactic for one step."""

    kernel: str
    tactic: Tactic
    attributes: Mapping[str, Any]
    tensors: tuple[Like | None, ...]


class Compilers(Closing):
    """Worker processes on one device, started with the first jobs."""

    def __init__(self, device: torch.device, workers: int = 0) -> None:
        """`workers` is the number of processes; 0 = two less than the cores, 16 at most."""
        self._device = device
        self._workers = workers or min(MOST_WORKERS, (os.cpu_count() or 1) - 2)
        self._pool: ProcessPoolExecutor | None = None

    def compile(self, problems: Iterable[Problem], found: Kernels, cache: TacticCache, most: int) -> int:
        """Compile what will be measured for these steps; returns how many jobs there were.

        What does not compile fails again, with its reason, where it is measured. Processes that die are done without.

        Args:
            cache: signatures that it has are not compiled.
            most: tactics of each kernel.
        """
        jobs = self._jobs(problems, found, cache, most)
        if len(jobs) < FEWEST_JOBS or self._workers < 2:
            return 0
        try:
            list(self._started().map(_compiled, jobs))
        except BrokenProcessPool:
            self.close()
        return len(jobs)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _jobs(
        self, problems: Iterable[Problem], found: Kernels, cache: TacticCache, most: int
    ) -> Sequence[Job]:
        facts = facts_of(self._device)
        jobs: dict[str, list[Job]] = {}
        for problem in problems:
            if problem.signature in cache.choices or problem.signature in jobs:
                continue
            likes = tuple(map(Like.of, problem.tensors))
            jobs[problem.signature] = [
                Job(kernel.name, tactic, dict(problem.attributes), likes)
                for kernel in found.of(problem.step)
                if kernel.name.startswith(COMPILED)
                and not kernel.refuses(problem.tensors, problem.attributes, facts)
                for tactic in kernel.tactics(problem.tensors, problem.attributes, facts)[:most]
            ]
        return [job for each in jobs.values() for job in each]

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # A forked process could not use CUDA.
            self._pool = ProcessPoolExecutor(
                self._workers, get_context("spawn"), initializer=_start, initargs=(str(self._device),)
            )
        return self._pool


def _start(device: str) -> None:
    """Of each process: the device, and the kernel modules."""
    global _DEVICE, _KERNELS
    _DEVICE = torch.device(device)
    if _DEVICE.type == "cuda":
        torch.cuda.set_device(_DEVICE)
    _KERNELS = kernels({name: place for name, place in KERNELS.items() if name.startswith(COMPILED)})


def _compiled(job: Job) -> str:
    """Run a tactic once on zeros, which compiles it; returns why that failed."""
    try:
        tensors = [None if like is None else like.zeros(_DEVICE) for like in job.tensors]
        with torch.no_grad():
            _KERNELS.found[job.kernel].prepare(tensors, job.attributes, job.tactic)(*tensors)
    except Exception as error:  # compilers raise dozens of kinds; the one who measures meets it again
        return f"{type(error).__name__}: {error}"
    return ""


_DEVICE = torch.device("cpu")
_KERNELS = Kernels({})
