"""The target `torch-cuda` on a data-centre GPU, against torch, its compiler and ONNX Runtime.

    python -m benchmarks.gpu race --out benchmarks/results/torch_cuda_race.json
    python -m benchmarks.gpu race --rows vit_b16:32:fp16,vit_b16:32:fp8 --peers none --out first.json
    python -m benchmarks.gpu accuracy --out benchmarks/results/torch_cuda_accuracy.json
    python -m benchmarks.gpu profile --rows vit_b16:32:fp16 --out benchmarks/results/torch_cuda_profile.json
    python -m benchmarks.gpu tests --out benchmarks/results/torch_cuda_tests.json
    python -m benchmarks.gpu make --rows vit_b16:32:fp16 --folder FOLDER
    python -m benchmarks.gpu --table

From the root of the repository. All but the last need torch; `race`, `accuracy`, `profile` and `tests` an NVIDIA GPU.
The models are made in --folder, random weights, and are taken from there the next time. Rows of one model and batch
share one interleaved run. `profile` looks at what was built last in the same --folder, else it builds. Results are
written after every candidate: a run that is stopped keeps what it has. Where time on the GPU is short, --at-once
prepares all groups side by side (`at_once.py`), and --tactics 4 --build-seconds 0.05 shorten the builds of the target.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .tables import write_page

ALL, NO_PEERS = "all", "none"


def main(arguments: Sequence[str]) -> None:
    given = _parsed(arguments)
    if given.table:
        write_page()
        return
    record = Record(
        given.out, {"kind": given.what, "command": command(arguments), "environment": environment()}
    )
    DO[given.what](given, record)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=tuple(DO))
    parser.add_argument("--rows", default="", help="MODEL:BATCH:PRECISION,… (default: all of the table)")
    parser.add_argument("--peers", default=ALL, help=f"labels, with commas between; or {NO_PEERS}")
    parser.add_argument("--without-ours", action="store_true", help="peers alone")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring, for each model and batch")
    parser.add_argument(
        "--tactics", type=int, default=32, help="of each kernel that a build of the target tries for a step"
    )
    parser.add_argument("--build-seconds", type=float, default=0.2, help="that a build measures one step for")
    parser.add_argument("--limit-s", type=float, default=120.0, help="that a candidate may take to get ready")
    parser.add_argument("--at-once", action="store_true", help="groups side by side but for what is measured")
    parser.add_argument("--loads", default=ALL, help="MODEL:BATCH,… whose loading is timed")
    parser.add_argument("--profiles", action="store_true", help="look where the target's time goes, too")
    parser.add_argument(
        "--images", type=Path, help="labelled images for accuracy (default: those of the examples)"
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/vitesse-gpu"), help="for models and caches")
    parser.add_argument("--paths", nargs="*", default=(), help="for tests (default: all of the target's)")
    parser.add_argument("--target", default="torch-cuda", help="for accuracy")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the program")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args(arguments)
    if not given.table and (given.what is None or (given.out is None and given.what != "make")):
        parser.error("say what to do, and --out where the results go")
    return given


@dataclass
class Record:
    """The results of a run as they grow; written whenever something is added."""

    path: Path | None
    content: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, value: Any, *, under: str = "") -> None:
        (self.content.setdefault(under, {}) if under else self.content)[key] = value
        if self.path is not None:
            from vitesse.storage import write_atomically

            write_atomically(self.path, (json.dumps(self.content) + "\n").encode())


def make(given: argparse.Namespace, record: Record) -> None:
    from .graphs import make_all
    from .rows import rows_of

    wanted: dict[str, set[str]] = {}
    for row in rows_of(given.rows):
        wanted.setdefault(row.model, set()).add(row.precision)
    for name, precisions in wanted.items():
        # Peers that run ONNX get the FP16 graph.
        precisions |= {"fp16"} if precisions != {"fp32"} else set()
        wanted[name] = precisions
    found = make_all(wanted, given.folder)
    print(f"made: {found}", flush=True)
    record.add("made", found)


def race(given: argparse.Namespace, record: Record) -> None:
    from .rows import rows_of

    make(given, record)
    import torch

    from .compiling import compile_all, unready
    from .ours import Effort
    from .race import Race, failure, groups_of

    rows = rows_of(given.rows)
    groups = groups_of(rows)
    batches = {row.model: sorted({other.batch for other in rows if other.model == row.model}) for row in rows}
    peers = peers_of(given.peers)
    effort = Effort(given.tactics, given.build_seconds)
    loads = None if given.loads == ALL else [one.strip() for one in given.loads.split(",")]
    record.add("limit_s", given.limit_s)
    if given.at_once:
        from . import at_once

        settings = at_once.Settings(
            str(given.folder), given.device, peers, given.seconds, given.limit_s, batches,
            not given.without_ours, effort, loads, given.profiles,
        )  # fmt: skip
        made = at_once.prepare(groups, settings)
        record.add("compiled", made)
        at_once.race(groups, settings, made, lambda said: take(record, said["group"], said["found"]))
        return
    compiled = compile_all(groups, peers, given.folder, given.limit_s)
    record.add("compiled", compiled)
    run = Race(
        given.folder,
        torch.device(given.device),
        peers,
        given.seconds,
        given.limit_s,
        batches,
        not given.without_ours,
        effort,
        unready(compiled),
        loads,
        given.profiles,
    )
    for group in groups:
        try:
            found = run.run(group, keep=partial(record.add, group.name, under="groups"))
        except Exception as error:
            kept = record.content.get("groups", {}).get(group.name, {"precisions": list(group.precisions)})
            found = {**kept, "failed": failure(error)}
        take(record, group.name, found)


def take(record: Record, name: str, found: dict[str, Any]) -> None:
    """Keep what a group found; its profiles lie where those of `profile` do."""
    for precision, profile in found.pop("profiles", {}).items():
        record.add(f"{name}:{precision}", profile, under="rows")
    record.add(name, found, under="groups")
    print(name, shown(found), flush=True)


def shown(found: dict[str, Any]) -> Any:
    return found.get("failed") or {
        label: f"{one['ms']:.3f} ms" for label, one in found["candidates"].items() if "ms" in one
    }


def peers_of(text: str) -> list[str]:
    """Labels of peers.

    Raises:
        ValueError: a label that no peer has.
    """
    from .peers import PEERS

    if text == NO_PEERS:
        return []
    labels = list(PEERS) if text == ALL else [one.strip() for one in text.split(",")]
    for label in labels:
        if label not in PEERS:
            raise ValueError(f"no peer {label!r}: expected some of: {', '.join(PEERS)}")
    return labels


def accuracy(given: argparse.Namespace, record: Record) -> None:
    from .accuracy import EXAMPLES, measure
    from .ours import Effort

    images = given.images or EXAMPLES / "vit"
    found = measure(images, given.folder, given.target, Effort(given.tactics, given.build_seconds))
    print(found, flush=True)
    record.add("accuracy", found)


def profile(given: argparse.Namespace, record: Record) -> None:
    from . import ours
    from .profiling import profiled
    from .rows import rows_of

    make(given, record)
    effort = ours.Effort(given.tactics, given.build_seconds)
    for row in rows_of(given.rows):
        built = ours.last_built(given.folder, row.model, row.precision)
        if built is None:
            built = ours.build(given.folder, row.model, row.precision, [row.batch], effort).artifact
        found = profiled(built, row, given.device)
        record.add(row.name, found, under="rows")
        for line in found["kernels"][:20]:
            print(
                f"{line['us']:10.1f} µs {line['launches']:6.1f}× {100 * line['share']:5.1f} % {line['kernel'][:90]}"
            )


def tests(given: argparse.Namespace, record: Record) -> None:
    from .suite import run

    record.add("outcomes", run(given.paths))


def command(arguments: Sequence[str]) -> str:
    """What was typed, without folders that only this machine has."""
    shown = [Path(one).name if one.startswith("/") else one for one in arguments]
    return shlex.join(["python", "-m", "benchmarks.gpu", *shown])


def environment() -> dict[str, Any]:
    import torch

    from vitesse.environment import describe

    found = {**describe(), "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cudnn"] = torch.backends.cudnn.version()
    return found


DO = {"race": race, "accuracy": accuracy, "profile": profile, "tests": tests, "make": make}


if __name__ == "__main__":
    main(sys.argv[1:])
