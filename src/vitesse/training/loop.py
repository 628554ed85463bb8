"""Training with a checkpoint to go on from: what a call of `train` is, from its options to the weights it leaves.

Task, BatchSource, TrainOptions ──▶ devices ──▶ Run (in every process) ──▶ folder/training.csv
                                                 │  plan · step · average    folder/checkpoints/
                                                 ▼
                                  task.student with the best scored weights ──▶ Trained
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from vitesse.errors import DataError
from vitesse.progress import Progress, Silent
from vitesse.training.checkpoint import Checkpoints, Value, identity_of
from vitesse.training.devices import launch, open_fabric
from vitesse.training.interruption import interruptible
from vitesse.training.log import read_log
from vitesse.training.options import TrainOptions
from vitesse.training.running import Job, Outcome, Run
from vitesse.training.source import BatchSource
from vitesse.training.task import Task

LOG = "training.csv"


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        steps: optimiser steps taken.
        seconds: training time, over all starts.
        score: of the weights that the student holds; None where nothing was scored.
        stopped: why it ended early; "" when it went to its end.
        history: the rows of training.csv, see `read_log`.
        batch: images that went through the network at once on one device; less than its share of the options'
            batch where memory ran out.
    """

    steps: int
    seconds: float
    score: float | None
    stopped: str
    history: tuple[Mapping[str, float], ...]
    batch: int


def train(
    task: Task,
    data: BatchSource,
    options: TrainOptions,
    folder: Path,
    *,
    score: Callable[[nn.Module], float] | None = None,
    progress: Progress | None = None,
    identity: Mapping[str, Value] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Train `task.student`; afterwards it holds the best scored weights, else the averaged ones, on the CPU.

    A folder that has a checkpoint of this training is gone on from; one that is at its end is only read. On the CPU
    with one process the result is the same bit for bit, wherever it was cut.

    Args:
        folder: gets training.csv and checkpoints/.
        score: of a network on its device, more is better; called by the first process, with the averaged weights.
        identity: what decides the result and only the caller knows (the data, the weights of the loss's parts); a
            checkpoint with another one is refused.
        clock: seconds, rising.

    Raises:
        UsageError: the checkpoint in the folder is another training's; the devices are not there.
        MissingExtra: CUDA is asked for and not here.
        DataError: the source has no images, or gives no batch.
        RunFolderError: the checkpoints are damaged.
        StorageError: the folder cannot be written.
        VitesseError: memory does not hold one image.
        KeyboardInterrupt: after Ctrl-C; the step was finished and a checkpoint written.
    """
    if data.images < options.devices:
        raise DataError(
            f"{data.images} images to train with on {options.devices} devices",
            expected="at least one image for every device",
        )
    fabric = open_fabric(options)
    checkpoints = Checkpoints(folder, _identity(task, data, options, fabric, score, identity))
    job = Job(task, data, options, checkpoints, folder / LOG, score, progress or Silent(), clock)
    outcome: Outcome = launch(fabric, partial(_work, job=job))
    if outcome.interrupted:
        raise KeyboardInterrupt
    best = _take_result(task.student, checkpoints)
    history = read_log(folder / LOG)
    return Trained(outcome.steps, outcome.seconds, best, outcome.stopped, history, outcome.at_once)


def _identity(
    task: Task,
    data: BatchSource,
    options: TrainOptions,
    fabric: Fabric,
    score: Callable[[nn.Module], float] | None,
    given: Mapping[str, Value] | None,
) -> Mapping[str, Value]:
    known: dict[str, Value] = {
        "precision": fabric.strategy.precision.precision,
        "scored": "yes" if score else "no",
        **(given or {}),
    }
    return identity_of(options, task.student, task.frozen, data.images, known)


def _work(fabric: Fabric, job: Job) -> Outcome:
    """One process's part."""
    if fabric.world_size > 1:
        # A forked process inherits the thread pool's state without its threads, and would wait for them forever.
        torch.set_num_threads(1)
    device, cuda = fabric.device, fabric.device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if cuda else []),
        _on_device(job.task.student, job.task.frozen, device),
        interruptible() as interruption,
    ):
        return Run(fabric, job, interruption).go()


@contextmanager
def _on_device(student: nn.Module, frozen: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Student and teachers on the device while the block runs, then on the CPU; teachers stay without gradients."""
    was_training = student.training
    for module in (student, *frozen):
        module.to(device)
        if device.type == "cuda":
            # Its convolutions want the channels last, and so do norms over few channels, which else take half the time.
            _order(module, torch.channels_last)
    student.train()
    for teacher in frozen:
        teacher.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module in (student, *frozen):
            module.cpu()
            _order(module, torch.contiguous_format)
        student.train(was_training)


def _order(module: nn.Module, order: torch.memory_format) -> None:
    """Lay kernels of convolutions out in an order of their dimensions."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=order)


def _take_result(student: nn.Module, checkpoints: Checkpoints) -> float | None:
    """Load the best scored weights, else the averaged ones of the last checkpoint; return the score."""
    best = checkpoints.best()
    if best is not None:
        student.load_state_dict(best[1])
        return best[0].score
    last = checkpoints.latest()
    assert last is not None, "a run ends with a checkpoint"
    student.load_state_dict(last["average"])
    return None
