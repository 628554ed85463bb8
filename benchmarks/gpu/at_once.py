"""All groups at once: what is slow and needs no GPU side by side, what is measured one after the other.

    compile, build   a process each, as many as there are cores for; kernels are timed in turns
    open             a process for each group, until every group is ready
    measure          group after group, while the others wait

While a group is measured nothing else runs. Building and opening are timed while others are built and opened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any

import torch

from vitesse.environment import usable_cores

from . import ours
from .apart import ROOT
from .compiling import compilations, side_by_side, unready
from .ours import Effort
from .race import Group, Keep, Race, failure

GO = "measure"
# Times the limit of a candidate, for all of a group.
PATIENCE = 5


@dataclass(frozen=True)
class Settings:
    """What all groups share, as it crosses to their processes; see `Race`."""

    folder: str
    device: str
    peers: Sequence[str]
    seconds: float
    limit_s: float
    batches: Mapping[str, Sequence[int]]
    ours: bool
    effort: Effort
    loads: Sequence[str] | None
    profiles: bool


def prepare(groups: Sequence[Group], given: Settings) -> dict[str, str | float]:
    """Compile what the compiler's modes will ask for and build the target; name → seconds, or why not."""
    folder = Path(given.folder)
    wanted = dict.fromkeys((group.model, one) for group in groups for one in group.precisions if given.ours)
    builds = {
        f"{name} {ours.label_of(precision)}": partial(
            ours.build_apart, folder, name, precision, given.batches[name], given.effort, given.limit_s
        )
        for name, precision in wanted
    }
    modes = compilations(groups, given.peers, folder, given.limit_s)
    return side_by_side({**builds, **modes}, max(2, usable_cores()))


def race(groups: Sequence[Group], given: Settings, made: Mapping[str, str | float], keep: Keep) -> None:
    """Open all groups at once, then measure one after the other.

    Args:
        made: what `prepare` returned.
        keep: gets {"group": its name, "found": what is known} whenever there is something new.
    """
    turn = Lock()

    def one_by_one(said: dict[str, Any]) -> None:
        with turn:
            keep(said)

    children = [Child(group, given, unready(made), one_by_one) for group in groups]
    for child in children:
        child.wait_until_ready()
    for child in children:
        child.measure()


class Child:
    """The process of a group: it writes a line of JSON for each thing it knows, and waits for one to measure."""

    def __init__(self, group: Group, given: Settings, unready: Mapping[str, str], keep: Keep) -> None:
        self._group, self._keep = group, keep
        self._found: dict[str, Any] = {"precisions": list(group.precisions)}
        content = {"group": asdict(group), "settings": asdict(given), "unready": dict(unready)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.at_once", json.dumps(content)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._limit_s = PATIENCE * given.limit_s
        self._read(until="ready")

    def wait_until_ready(self) -> None:
        """Wait until its candidates are open; one that takes far longer than all of them may is ended."""
        self._reader.join(self._limit_s)
        if self._reader.is_alive():
            self._process.kill()
            self._reader.join()

    def measure(self) -> None:
        """Let it measure, and wait until it has ended."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended
            self._process.stdin.write(GO + "\n")
            self._process.stdin.close()
        self._read(until="")
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._process.wait() and "failed" not in self._found:
            self._found["failed"] = f"its process ended with {self._process.returncode}"
            self._keep({"group": self._group.name, "found": self._found})

    def _read(self, until: str) -> None:
        assert self._process.stdout is not None
        self._reader = Thread(target=self._lines, args=(self._process.stdout, until), daemon=True)
        self._reader.start()

    def _lines(self, stream: IO[str], until: str) -> None:
        for line in stream:
            said = json.loads(line)
            if until and until in said:
                return
            self._found = said
            self._keep({"group": self._group.name, "found": said})


def main(arguments: Sequence[str]) -> None:
    """The process of one group: open, say so, wait, measure."""
    content = json.loads(arguments[0])
    # What is printed goes to stderr: stdout is for lines of JSON.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(found: Mapping[str, Any]) -> None:
        lines.write(json.dumps(found) + "\n")
        lines.flush()

    given = content["settings"]
    group = Group(**{**content["group"], "precisions": tuple(content["group"]["precisions"])})
    folder = Path(given["folder"])
    effort = Effort(**given.pop("effort"))
    not_ready, built = dict(content["unready"]), {}
    for one in group.precisions:
        # What an earlier race left in the folder does not stand in for a build that failed.
        why = not_ready.get(f"{group.model} {ours.label_of(one)}")
        made = None if why else ours.known(folder, group.model, one)
        if made is None:
            not_ready[f"{group.name} {ours.label_of(one)}"] = why or "not built"
        else:
            built[group.model, one] = made
    run = Race(
        **{**given, "folder": folder, "device": torch.device(given["device"])},
        effort=effort,
        unready=not_ready,
        built=built,
    )
    with ExitStack() as stack:
        try:
            opened = run.open(group, stack, say)
        except Exception as error:
            say({"precisions": list(group.precisions), "failed": failure(error)})
            return
        say({"ready": True})
        if sys.stdin.readline().strip() == GO:
            try:
                say(run.measure(opened))
            except Exception as error:
                say({**opened.found, "failed": failure(error)})


if __name__ == "__main__":
    main(sys.argv[1:])
