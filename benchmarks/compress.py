"""Pruning and distillation on the models of examples/fashion: training, latency, tables.

    python benchmarks/compress.py data DATA [--images 60000] [--scenes 30000]        training images, from no test item
    python benchmarks/compress.py train CASE|students|all --data DATA --sources SOURCES --models MODELS --seconds N
                                  [--parallel] [--out RESULTS]    RESULTS/compress_CASE.json and .tgz, MODELS/CASE
    python benchmarks/compress.py latency MODELS --sources SOURCES [--race vit|detr|student] [--out RESULTS]
                                                              RESULTS/compress_latency_{cpu,cuda}_{vit,detr,student}.json
    python benchmarks/compress.py --table            tables and picture of docs/compress.md from benchmarks/results

SOURCES holds detr_fashion and vit_fashion with weights and val/; without val/, those of examples/fashion are scored.
Needs the packages of vitesse[compress]; from a checkout, PYTHONPATH=src. A training that was cut goes on if repeated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 where a training failed."""
    options = parser().parse_args(arguments)
    if options.table:
        from compress_tables import write_page

        write_page(RESULTS)
        return 0
    if options.command is None:
        parser().error("data, train, latency or --table")
    commands = {"data": make_data, "train": train, "latency": latency}
    return commands[options.command](options)


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    commands = parser.add_subparsers(dest="command")
    data = commands.add_parser("data")
    data.add_argument("out", type=Path)
    data.add_argument("--images", type=int, default=60_000)
    data.add_argument("--scenes", type=int, default=30_000)
    data.add_argument("--items", type=Path)
    train = commands.add_parser("train")
    train.add_argument("case", choices=["vit", "detr", "student", "student_labels", "students", "all"])
    train.add_argument("--data", type=Path, required=True)
    length = train.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float)
    length.add_argument("--steps", type=int)
    train.add_argument("--batch", type=int, help="instead of the case's own")
    train.add_argument("--parallel", action="store_true", help="all cases at the same moment, on one device")
    latency = commands.add_parser("latency")
    latency.add_argument("models", type=Path)
    latency.add_argument("--seconds", type=float, default=60.0)
    latency.add_argument("--device", choices=["cpu", "cuda"], help="only there")
    latency.add_argument("--race", choices=["vit", "detr", "student"], help="only this one")
    for command in (train, latency):
        command.add_argument("--sources", type=Path, required=True)
        command.add_argument("--out", type=Path, default=RESULTS)
    train.add_argument("--models", type=Path, required=True)
    return parser


def make_data(options: argparse.Namespace) -> int:
    """Write OUT/images and OUT/scenes by fashion_data.py."""
    items = [] if options.items is None else ["--items", str(options.items)]
    for kind, count in (("images", options.images), ("scenes", options.scenes)):
        script = Path(__file__).with_name("fashion_data.py")
        command = [sys.executable, str(script), kind, str(options.out / kind), "--count", str(count), *items]
        subprocess.run(command, check=True)
    return 0


def train(options: argparse.Namespace) -> int:
    """Train one case here, or several one after the other or at the same moment, each in a process of its own."""
    from compress_training import CASES, train_case

    groups = {"students": [name for name in CASES if name.startswith("student")], "all": list(CASES)}
    if options.case not in groups:
        train_case(options)
        return 0
    given = sys.argv[1:]
    at = given.index(options.case)
    commands = [
        [sys.executable, __file__, *given[:at], name, *given[at + 1 :]] for name in groups[options.case]
    ]
    if not options.parallel:
        return max(subprocess.run(command, check=False).returncode for command in commands)
    # Decoding images takes all cores at the beginning; afterwards a training is one thread that feeds a GPU.
    threads = str(max(1, (os.cpu_count() or 1) // len(commands)))
    running = [
        subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}) for command in commands
    ]
    return max(process.wait() for process in running)


def latency(options: argparse.Namespace) -> int:
    """Race original and smaller networks."""
    from compress_latency import RACES, RUNTIMES, measure

    devices = [options.device] if options.device else list(RUNTIMES)
    names = [options.race] if options.race else list(RACES)
    measure(options.models, options.sources, options.out, options.seconds, devices, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
