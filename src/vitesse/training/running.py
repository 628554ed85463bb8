"""A training run in one process: begun or gone on with, step by step to its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from vitesse.progress import Progress
from vitesse.training.average import Average
from vitesse.training.checkpoint import Best, Checkpoints
from vitesse.training.feed import Feed
from vitesse.training.interruption import Interruption
from vitesse.training.log import NOTE, Log
from vitesse.training.optimiser import rate_at
from vitesse.training.options import TrainOptions
from vitesse.training.plan import Plan, measured_step, plan_of_seconds, plan_of_steps
from vitesse.training.source import BatchSource
from vitesse.training.stepping import Step, Stepper
from vitesse.training.task import Task

# A row for every step of a short run, and about so many for a long one.
LOG_ROWS = 2000
# Steps and runs get seeds of their own: those of a run lie together, those of two runs far apart.
_SEEDS = 1_000_003


@dataclass(frozen=True)
class Job:
    """What `train` was called with."""

    task: Task
    data: BatchSource
    options: TrainOptions
    checkpoints: Checkpoints
    log: Path
    score: Callable[[nn.Module], float] | None
    progress: Progress
    clock: Callable[[], float]


class Outcome(NamedTuple):
    """How a run ended; its weights are in its checkpoints. Fabric carries it from process to process."""

    steps: int
    seconds: float
    stopped: str
    interrupted: bool
    at_once: int


class Run:
    """A run on its device.

    Args:
        fabric: launched; the first process writes, all compute.
        job: its student and its teachers are on the device.
        interruption: heard between two steps.
    """

    def __init__(self, fabric: Fabric, job: Job, interruption: Interruption) -> None:
        self._fabric, self._job, self._interruption = fabric, job, interruption
        self._first = fabric.global_rank == 0
        self._student = job.task.student
        self._average = Average(self._student, job.options.ema)
        share = math.ceil(job.options.batch / fabric.world_size)
        self._stepper = Stepper(fabric, job.task, job.options, share)
        self._done = self._epoch = self._used = 0
        self._best: Best | None = None

    def go(self) -> Outcome:
        """Run to the end, to a number that is not finite, or to Ctrl-C. Raises as `train`."""
        state = self._job.checkpoints.latest()
        self._fabric.barrier()  # nothing is written before all have read
        self._started = self._job.clock()
        if state is None:
            self._begin()
        else:
            self._go_on(state)
        options, progress = self._job.options, self._job.progress
        where = f"{self._fabric.world_size} × {self._fabric.device.type}"
        progress.stage(
            "training", f"{self._plan.steps} steps of {options.batch} images on {where}", self._plan.steps
        )
        progress.advance(self._done)
        stopped, interrupted = self._walk()
        self._save()
        return Outcome(self._done, self._seconds(), stopped, interrupted, self._stepper.at_once)

    def _begin(self) -> None:
        self._open_log()
        begin = self._job.clock()
        score = self._score()
        self._plan = self._planned(begin, self._job.clock() - begin)
        if score:
            self._write(score)
        self._save()  # the plan, measured once, is that of every later start

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self._student.load_state_dict(state["student"])
        self._average.load(state["average"])
        self._stepper.optimiser.load_state_dict(state["optimiser"])
        self._stepper.at_once = min(self._stepper.at_once, state["at_once"])
        self._done, self._epoch, self._used = state["step"], state["epoch"], state["used"]
        self._started -= state["seconds"]
        self._plan = Plan(**state["plan"])
        best = self._job.checkpoints.best()
        self._best = best[0] if best else None
        self._open_log()
        if self._done == 0 and self._best:
            self._write({"score": self._best.score})

    def _planned(self, begin: float, score_seconds: float) -> Plan:
        """From the options, or from the time that a few steps take, which leave no trace."""
        options, clock = self._job.options, self._job.clock
        if options.seconds is None:
            assert options.steps is not None
            return plan_of_steps(options.steps, options.score_every)
        buffers = [buffer.clone() for buffer in self._student.buffers()]
        with closing(self._feed()) as feed:
            # At rate 0 AdamW leaves the weights as they are.
            each = measured_step(
                lambda: self._take(feed, rate=0.0), options.seconds, clock, self._fabric.broadcast
            )
        for buffer, old in zip(self._student.buffers(), buffers, strict=True):
            buffer.copy_(old)
        self._stepper.reset()
        left = options.seconds - (clock() - begin)
        plan: Plan = self._fabric.broadcast(plan_of_seconds(left, each, score_seconds, options.score_every))
        return plan

    def _walk(self) -> tuple[str, bool]:
        """Take the steps that are left; return why it stopped early, and whether it was interrupted."""
        clock, options = self._job.clock, self._job.options
        saved = clock()
        with closing(self._feed()) as feed:
            while self._done < self._plan.steps:
                rate = rate_at(self._done, self._plan.steps, options.rate, options.warmup)
                last = self._done + 1 == self._plan.steps
                step, note = self._take(feed, rate, last=last)
                if step.not_finite:
                    stopped = self._stopped(step.not_finite)
                    self._write({"rate": rate, **_numbers(step), NOTE: stopped}, taken=False)
                    return stopped, False
                self._done, self._epoch, self._used = self._done + 1, feed.epoch, feed.used
                self._average.update(self._done)
                due = self._done % self._plan.score_every == 0 or self._done == self._plan.steps
                score = self._score() if due else {}
                if due or note or self._done % math.ceil(self._plan.steps / LOG_ROWS) == 0:
                    self._write({"rate": rate, **_numbers(step), **score, NOTE: note})
                self._job.progress.advance()
                if step.asked_to_end:
                    return "", True
                if due or clock() - saved >= options.checkpoint_seconds:
                    self._save()
                    saved = clock()
        return "", False

    def _feed(self) -> Feed:
        return Feed(self._job.data, self._job.options.batch, self._fabric.device, self._epoch, self._used)

    def _take(self, feed: Feed, rate: float, *, last: bool = False) -> tuple[Step, str]:
        """Take a step; return it, and what happened besides. Unless it is the last, the next batch is made ready."""
        before, seed = self._stepper.at_once, self._job.options.seed * _SEEDS + self._done
        batch = feed.next()
        step = self._stepper.take(
            batch, rate, seed, end=self._interruption.asked, meanwhile=_nothing if last else feed.prepare
        )
        after = self._stepper.at_once
        if after == before:
            return step, ""
        note = (
            f"memory ran out: {after} images at once instead of {before}, for the same steps of {len(batch)}"
        )
        self._job.progress.row("training", "NOTE", note)
        return step, note

    def _stopped(self, reason: str) -> str:
        best = self._best
        kept = f"of step {best.step}, which scored {best.score:.4g}," if best else f"after step {self._done}"
        stopped = f"{reason} in step {self._done + 1}; the weights {kept} stay"
        self._job.progress.row("training", "STOPPED", stopped)
        return stopped

    def _score(self) -> dict[str, float]:
        """Score the averaged weights, and keep them if none were better; {} without a score."""
        if self._job.score is None:
            return {}
        row: dict[str, float] = {}
        if self._first:
            with self._average.applied(), torch.no_grad():
                self._student.eval()
                row["score"] = float(self._job.score(self._student))
                self._student.train()
            # An equal score goes to the later weights: they were averaged over more.
            if math.isfinite(row["score"]) and (self._best is None or row["score"] >= self._best.score):
                self._best = Best(self._done, row["score"])
                self._job.checkpoints.save_best(self._best, self._average.state())
            self._job.progress.row("training", "SCORED", f"{row['score']:.4g} after step {self._done}")
        self._fabric.barrier()
        return row

    def _seconds(self) -> float:
        return self._job.clock() - self._started

    def _open_log(self) -> None:
        if self._first:
            self._log = Log(self._job.log, self._done)

    def _write(self, row: Mapping[str, float | str], *, taken: bool = True) -> None:
        if self._first:
            self._log.write({"step": self._done + (not taken), "seconds": round(self._seconds(), 3), **row})

    def _save(self) -> None:
        if not self._first:
            return
        state = {
            "epoch": self._epoch,
            "used": self._used,
            "seconds": self._seconds(),
            "plan": asdict(self._plan),
            "at_once": self._stepper.at_once,
            "student": self._student.state_dict(),
            "average": dict(self._average.state()),
            "optimiser": self._stepper.optimiser.state_dict(),
        }
        self._job.checkpoints.save(self._done, state)


def _nothing() -> None:
    """Of the last step there is none to make ready."""


def _numbers(step: Step) -> dict[str, float]:
    parts = {f"loss.{name}": value for name, value in step.parts.items()}
    return {"loss": step.loss, **parts, "gradient_norm": step.gradient_norm}
