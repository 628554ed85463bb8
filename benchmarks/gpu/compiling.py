"""torch.compile ahead of the race, in processes of their own: its caches are full when the race opens the candidates.

A process can be stopped when its time is over, and several compile at once. When they choose kernels by timing them on
the GPU they take turns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitesse.backends.torch_cuda.turns import turn
from vitesse.environment import usable_cores

from .apart import run_apart
from .models import MODELS, module_of
from .peers import MODES, PEERS, Candidate, Setting
from .race import Group

# A compilation is one busy thread and a few workers.
AT_ONCE = max(2, 3 * usable_cores() // 4)
Task = Callable[[], float | str]
DEFAULT, OVERHEAD = "torch.compile", "torch.compile reduce-overhead"


def compile_all(
    groups: Sequence[Group], peers: Sequence[str], folder: Path, limit_s: float
) -> dict[str, str | float]:
    """Compile what the race will ask for; `GROUP LABEL` → seconds, or why there is nothing in the caches.

    reduce-overhead is compiled as the default mode, whose kernels it takes.
    """
    tasks = compilations(groups, peers, folder, limit_s)
    return side_by_side(tasks, AT_ONCE)


def compilations(
    groups: Sequence[Group], peers: Sequence[str], folder: Path, limit_s: float
) -> dict[str, Task]:
    """What there is to compile, the longest first."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((folder / "inductor").resolve())
    # As many workers in all as there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, usable_cores() // AT_ONCE)))
    asked = [DEFAULT if label == OVERHEAD else label for label in peers if label in MODES]
    labels = sorted(dict.fromkeys(asked), key=lambda label: "autotune" not in label)
    return {
        f"{group.name} {label}": partial(compiled_apart, group, label, folder, limit_s)
        for label in labels
        for group in groups
    }


def side_by_side(tasks: Mapping[str, Task], at_once: int) -> dict[str, str | float]:
    """Run tasks that wait for processes; name → what each returned, printed as it comes."""
    found: dict[str, str | float] = {}
    with ThreadPoolExecutor(at_once) as pool:
        begun = {pool.submit(task): name for name, task in tasks.items()}
        for done in as_completed(begun):
            found[begun[done]] = done.result()
            print(f"made {begun[done]}: {found[begun[done]]}", flush=True)
    return found


def unready(compiled: Mapping[str, str | float]) -> dict[str, str]:
    """`GROUP LABEL` → why it has no place in a race; without the default mode's kernels reduce-overhead has none."""
    found = {name: said for name, said in compiled.items() if isinstance(said, str)}
    shared = {
        name.removesuffix(DEFAULT) + OVERHEAD: said
        for name, said in found.items()
        if name.endswith(f" {DEFAULT}")
    }
    return found | shared


def compiled_apart(group: Group, label: str, folder: Path, limit_s: float) -> float | str:
    """Compile one candidate in a process; seconds, or why not."""
    precision = "fp32" if group.precisions == ("fp32",) else "fp16"
    arguments = [group.model, str(group.batch), precision, label, str(folder)]
    return run_apart("benchmarks.gpu.compiling", arguments, limit_s)


def measured_in_turns(device: torch.device) -> None:
    """Let the compiler time kernels only while no other process on the GPU does."""
    from torch._inductor.runtime.benchmarking import Benchmarker

    alone = Benchmarker.benchmark

    def benchmark(self: Any, *given: Any, **named: Any) -> Any:
        with turn(device):
            return alone(self, *given, **named)

    Benchmarker.benchmark = benchmark  # type: ignore[method-assign]


def main(arguments: Sequence[str]) -> None:
    name, batch, precision, label, folder = arguments
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MODELS[name]
    images = torch.randn(int(batch), 3, *model.size, device=device)
    dtype = torch.float32 if precision == "fp32" else torch.float16
    measured_in_turns(device)
    given = Setting(model, module_of(model), images, dtype, device, None, Path(folder), 3600)
    with ExitStack() as stack:
        opened: AbstractContextManager[Candidate] = PEERS[label](given)
        stack.enter_context(opened).call()


if __name__ == "__main__":
    main(sys.argv[1:])
