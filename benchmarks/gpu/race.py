"""One group of the table: all candidates of a model and a batch, against float32 and against one another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitesse.benchmark.watch import Watch
from vitesse.errors import VitesseError

from . import graphs, ours
from .memory import memory
from .models import MODELS, module_of
from .ours import FULL, Effort
from .peers import PEERS, Candidate, OutOfTime, Setting
from .profiling import of_candidate
from .rows import Row
from .timing import alone, interleaved

# Characters of an error's message that are kept.
CUT = 400
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Group:
    """Rows of one model and batch: they share an interleaved run."""

    model: str
    batch: int
    precisions: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model}:{self.batch}"


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The groups of some rows, in their order."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        found.setdefault((row.model, row.batch), []).append(row.precision)
    return [Group(model, batch, tuple(some)) for (model, batch), some in found.items()]


@dataclass
class Opened:
    """A group whose candidates are ready: each by label, and what is known of them."""

    group: Group
    setting: Setting
    timed: dict[str, Candidate] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found |= {"precisions": list(self.group.precisions), "candidates": {}, "refused": {}}


@dataclass
class Race:
    """What groups share: where files lie, which peers, how long; and what was built already.

    Args:
        batches: of each model, for which its artifact is built.
        ours: False leaves out the target itself.
        effort: of its builds.
        unready: `GROUP LABEL` → why a candidate is not tried: it could not be compiled ahead.
        loads: groups of which loading is timed, in fresh processes; None: of all.
        profiles: look at the kernels of the target's candidates, too.
    """

    folder: Path
    device: torch.device
    peers: Sequence[str]
    seconds: float
    limit_s: float
    batches: Mapping[str, Sequence[int]]
    ours: bool = True
    effort: Effort = FULL
    unready: Mapping[str, str] = field(default_factory=dict)
    loads: Sequence[str] | None = None
    profiles: bool = False
    built: dict[tuple[str, str], ours.Made] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def run(self, group: Group, keep: Keep) -> dict[str, Any]:
        """Open and measure a group; a candidate that fails is told in `refused`, and the others go on.

        Args:
            keep: gets what is known after every candidate, with `alone_ms`, its median in one block of calls, so that
                a run that is cut off leaves something; no figure of the tables comes from there.
        """
        with ExitStack() as stack:
            opened = self.open(group, stack, keep)
            found = self.measure(opened)
        self._clear()
        return found

    def open(self, group: Group, stack: ExitStack, keep: Keep) -> Opened:
        """Get all candidates of a group ready; they stay open as long as the stack does."""
        given = self._setting(group)
        wanted = reference(given)
        opened = Opened(group, given)
        refused = opened.found["refused"]
        for label, begin in self._openers(group, given):
            if f"{group.name} {label}" in self.unready:
                refused[label] = self.unready[f"{group.name} {label}"]
                continue
            print(group.name, label, flush=True)
            try:
                one, about = self._opened(begin, stack, wanted)
                about["alone_ms"] = alone(one)
                opened.timed[label], opened.found["candidates"][label] = one, about
            except (Exception, OutOfTime) as error:
                refused[label] = self._words(error)
                print(group.name, label, refused[label], flush=True)
            keep(opened.found)
        return opened

    def measure(self, opened: Opened) -> dict[str, Any]:
        """Time what was opened, interleaved; of the target, look where its time goes and how long it loads."""
        found, given = opened.found, opened.setting
        with Watch(given.device.index or 0 if given.device.type == "cuda" else None) as watch:
            samples = interleaved(opened.timed, self.seconds)
            found["observed"] = watch.observed().to_json()
        for label, some in samples.items():
            found["candidates"][label] |= some.figures()
        found["samples"] = {label: some.to_json() for label, some in samples.items()}
        for precision in opened.group.precisions:
            label = ours.label_of(precision)
            if label not in opened.timed:
                continue
            if self.profiles:
                found.setdefault("profiles", {})[precision] = of_candidate(opened.timed[label])
            if self.loads is None or opened.group.name in self.loads:
                artifact = self.built[opened.group.model, precision].artifact
                found["candidates"][label]["load"] = ours.load_times(artifact, given.images)
        return found

    def _setting(self, group: Group) -> Setting:
        model = MODELS[group.model]
        self.modules = {name: one for name, one in self.modules.items() if name == group.model}
        module = self.modules.setdefault(group.model, module_of(model))
        images = torch.randn(group.batch, 3, *model.size, generator=torch.Generator().manual_seed(2)).to(
            self.device
        )
        precision = "fp32" if group.precisions == ("fp32",) else "fp16"
        dtype = torch.float32 if precision == "fp32" else torch.float16
        graph = None
        if graphs.path_of(self.folder, group.model, precision).is_file():
            graph = graphs.artifact(self.folder, group.model, precision)
        return Setting(model, module, images, dtype, self.device, graph, self.folder, self.limit_s)

    def _openers(self, group: Group, given: Setting) -> Iterator[tuple[str, Any]]:
        """Label → what makes (a context manager of the candidate, what is known of it)."""
        for precision in group.precisions if self.ours else ():
            yield ours.label_of(precision), lambda precision=precision: self._ours(group, precision, given)
        for label in self.peers:
            yield label, lambda label=label: (PEERS[label](given), {})

    def _ours(
        self, group: Group, precision: str, given: Setting
    ) -> tuple[AbstractContextManager[Candidate], dict[str, Any]]:
        key = group.model, precision
        if key not in self.built:
            self.built[key] = ours.build(self.folder, *key, self.batches[group.model], self.effort)
        made = self.built[key]
        return ours.opened(made.artifact, given.images), {"build": made.to_json()}

    def _opened(self, begin: Any, stack: ExitStack, wanted: list[Tensor]) -> tuple[Candidate, dict[str, Any]]:
        manager, about = begin()
        self._clear()
        before = memory(self.device)
        began = time.perf_counter()
        # Entered alone, so that one whose outputs are of no use is closed at once.
        with ExitStack() as own:
            candidate = own.enter_context(manager)
            about |= candidate.about
            about["open_s"] = round(time.perf_counter() - began, 2)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            about["parity"] = parity(candidate.outputs(), wanted)
            stack.push(own.pop_all())
        if before is not None:
            peak = torch.cuda.max_memory_allocated() - before.allocated
            torch.cuda.empty_cache()
            after = memory(self.device)
            assert after is not None
            about["memory_mb"] = round(max(peak, after.used - before.used) / 1e6, 1)
        return candidate, about

    def _clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _words(self, error: BaseException) -> str:
        if isinstance(error, OutOfTime):
            return f"not finished in {self.limit_s:g} s"
        said = str(error) if isinstance(error, VitesseError) else f"{type(error).__name__}: {error}"
        return " ".join(said.split())[:CUT]


def failure(error: Exception) -> str:
    """The words of a group that failed as a whole."""
    return f"{type(error).__name__}: {error}"[:CUT]


def reference(given: Setting) -> list[Tensor]:
    """Outputs of the float32 module, its products not rounded to TF32, on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    module = given.module.to(given.device)
    try:
        with torch.inference_mode():
            made = module(given.images)
            tensors = made if isinstance(made, tuple) else (made,)
            return [tensor.float().cpu() for tensor in tensors]
    finally:
        module.cpu()


def parity(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[dict[str, float]]:
    """For each output: largest difference, also over the largest value, and the difference's norm over the norm.

    Raises:
        ValueError: another number of outputs, another shape, or a value that is no finite number.
    """
    shapes = [list(tensor.shape) for tensor in found], [list(tensor.shape) for tensor in wanted]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs of shapes {shapes[0]}, expected {shapes[1]}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
        raise ValueError("an output has NaN or infinity")
    return [_distance(one.double(), other.double()) for one, other in zip(found, wanted, strict=True)]


def _distance(found: Tensor, wanted: Tensor) -> dict[str, float]:
    difference = found - wanted
    largest = float(difference.abs().max())
    return {
        "max_abs": largest,
        "max_rel": largest / float(wanted.abs().max()),
        "norm_rel": float(difference.norm() / wanted.norm()),
    }
