"""torch.compile ahead of the race, in processes of their own: its caches are full when the race opens the candidates.

A process can be stopped when its time is over, and several compile at once. Those that choose kernels by measuring on
the GPU (max-autotune) do so one after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch

from .models import MODELS, module_of
from .peers import MODES, PEERS, Candidate, Setting
from .race import Group

AT_ONCE = 3
DEFAULT, OVERHEAD = "torch.compile", "torch.compile reduce-overhead"


def compile_all(
    groups: Sequence[Group], peers: Sequence[str], folder: Path, limit_s: float
) -> dict[str, str | float]:
    """Compile what the race will ask for; `GROUP LABEL` → seconds, or why there is nothing in the caches.

    reduce-overhead is compiled as the default mode, whose kernels it takes.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((folder / "inductor").resolve())
    asked = [DEFAULT if label == OVERHEAD else label for label in peers if label in MODES]
    labels = list(dict.fromkeys(asked))
    found: dict[str, str | float] = {}
    with ThreadPoolExecutor(AT_ONCE) as several, ThreadPoolExecutor(1) as one:
        tasks = {
            f"{group.name} {label}": (one if "autotune" in label else several).submit(
                compiled_apart, group, label, folder, limit_s
            )
            for label in labels
            for group in groups
        }
        for name, task in tasks.items():
            found[name] = task.result()
            print(f"compiled {name}: {found[name]}", flush=True)
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
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.compiling",
        group.model,
        str(group.batch),
        precision,
        label,
    ]
    began = time.perf_counter()
    # With its workers in a session of their own: they end with it.
    process = subprocess.Popen(
        [*command, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return f"not finished in {limit_s:g} s"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
    return round(time.perf_counter() - began, 1) if process.returncode == 0 else f"failed: {last[:300]}"


def main(arguments: Sequence[str]) -> None:
    name, batch, precision, label, folder = arguments
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MODELS[name]
    images = torch.randn(int(batch), 3, *model.size, device=device)
    dtype = torch.float32 if precision == "fp32" else torch.float16
    given = Setting(model, module_of(model), images, dtype, device, None, Path(folder), 3600)
    with ExitStack() as stack:
        opened: AbstractContextManager[Candidate] = PEERS[label](given)
        stack.enter_context(opened).call()


if __name__ == "__main__":
    main(sys.argv[1:])
