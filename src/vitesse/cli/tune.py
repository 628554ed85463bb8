"""`vitesse tune`: the batch size and number of streams that suit this machine."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.cli.bench import add_subject, device_of, graph_note
from vitesse.cli.values import bytes_of, milliseconds, number, whole, within

if TYPE_CHECKING:
    from vitesse.benchmark.points import Point
    from vitesse.benchmark.subject import Subject
    from vitesse.benchmark.tune import Tuning
    from vitesse.tuning import Setting, Tuned


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Find by measuring the batch size and streams for latency and for throughput."
    add_subject(parser)
    parser.add_argument(
        "--latency-bound",
        type=within(milliseconds, above=0),
        metavar="TIME",
        help="p99 of a call that the latency setting keeps, as 16ms (default: batch 1 with one stream)",
    )
    parser.add_argument(
        "--memory",
        type=within(bytes_of, above=0),
        metavar="SIZE",
        help="memory to use, as 8GiB (default: 90%% of what is free)",
    )
    parser.add_argument("--max-batch", type=whole(1), default=64, metavar="N", help="default: 64")
    parser.add_argument("--max-streams", type=whole(1), default=4, metavar="N", help="default: 4")
    parser.add_argument(
        "--seconds", type=number(above=0), default=1.0, help="of every measurement (default: 1)"
    )
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="measure the whole grid and say how far the search is from the best",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 where no setting keeps the limits."""
    from rich.console import Console

    from vitesse.backends.protocol import LoadOptions
    from vitesse.benchmark.grid_search import grid
    from vitesse.benchmark.subject import fed_with, subject
    from vitesse.benchmark.table import print_points
    from vitesse.benchmark.tune import tune
    from vitesse.report.progress import progress_bar
    from vitesse.tuning import check_readable

    console, device = Console(), device_of(options)
    with (
        subject(options.model, options.target, options.stage, options.preset) as found,
        progress_bar() as progress,
    ):
        if found.folder is not None:
            check_readable(found.folder)
        fed = fed_with(found.artifact.spec, options.data)
        progress.stage("tune", found.why, len(grid(options.max_batch)) * len(grid(options.max_streams)))
        tuning = tune(
            found.artifact,
            fed,
            options=LoadOptions(threads=options.threads, cuda_graph=not options.no_cuda_graph),
            device=device,
            latency_bound_ms=options.latency_bound,
            memory_mb=None if options.memory is None else options.memory / 1e6,
            most_batch=options.max_batch,
            most_streams=options.max_streams,
            seconds=options.seconds,
            exhaustive=options.exhaustive,
            on_point=lambda points: progress.advance(len(points)),
        )
    print_points(tuning.points, console, chosen_of(tuning))
    lines = [*summary(tuning), fed.note, *graph_note(options, device)]
    if found.folder is not None:
        lines.append(f"written to {_keep(tuning, found, found.folder, options, device)}")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    return 0 if tuning.latency is not None and tuning.throughput is not None else 1


def _keep(
    tuning: Tuning, found: Subject, folder: Path, options: argparse.Namespace, device: int | None
) -> Path:
    """Write settings and raw samples into the run."""
    from vitesse.run import RunFolder
    from vitesse.tuning import save_tuning

    samples = {"points": [point.to_json() for point in tuning.points]}
    RunFolder(folder).keep_samples(f"tune:{options.target}", samples)
    command = shlex.join(options.command_line)
    return save_tuning(folder, entry(tuning, found, options.target, device, command))


def chosen_of(tuning: Tuning) -> dict[tuple[int, int], str]:
    """Return what points were chosen for."""
    named = {"latency": tuning.latency, "throughput": tuning.throughput}
    pairs = {point.pair for point in named.values() if point is not None}
    return {
        pair: " and ".join(name for name, point in named.items() if point is not None and point.pair == pair)
        for pair in pairs
    }


def summary(tuning: Tuning) -> list[str]:
    """Return the settings, what limited them, the memory model and what was left out, in words."""
    limits, memory = tuning.limits, tuning.memory
    bound = "batch 1 with 1 stream" if limits.latency_ms is None else f"p99 within {limits.latency_ms:g} ms"
    budget = "unlimited" if limits.memory_mb is None else f"within {limits.memory_mb:.0f} MB"
    lines = [
        _setting_line("latency", tuning.latency, bound),
        _setting_line("throughput", tuning.throughput, f"memory {budget}"),
    ]
    if memory is not None:
        error = "not checked" if memory.error is None else f"off by at most {100 * memory.error:.0f} %"
        lines.append(
            f"memory = {memory.fixed_mb:.0f} MB + streams × ({memory.per_stream_mb:.1f} MB + batch × "
            f"{memory.per_item_mb:.2f} MB), {error}"
        )
    lines += [
        f"{name}: the search's choice is {100 * gap:.1f} % from the best of the whole grid"
        for name, gap in (("throughput", tuning.gap), ("latency", tuning.latency_gap))
        if gap is not None
    ]
    why: dict[str, list[str]] = {}
    for one in tuning.skipped:
        why.setdefault(one.why, []).append(f"{one.batch}×{one.streams}")
    return lines + [f"not measured: {' '.join(pairs)} ({reason})" for reason, pairs in why.items()]


def entry(tuning: Tuning, found: Subject, target: str, device: int | None, command: str) -> Tuned:
    """Return what is kept in the run."""
    from dataclasses import asdict

    from vitesse.environment import describe
    from vitesse.tuning import Settings, Tuned, device_name

    return Tuned(
        target,
        device_name(device),
        found.artifact.sha256,
        Settings(setting(tuning.latency), setting(tuning.throughput)),
        asdict(tuning.limits),
        [point.figures() for point in tuning.points],
        [asdict(one) for one in tuning.skipped],
        None if tuning.memory is None else asdict(tuning.memory),
        {"gap": tuning.gap, "latency_gap": tuning.latency_gap},
        describe(),
        command,
    )


def setting(point: Point | None) -> Setting | None:
    """Return how to run as a point was run."""
    from vitesse.tuning import Setting

    if point is None:
        return None
    return Setting(
        point.batch,
        point.streams,
        point.threads,
        point.cuda_graph,
        point.throughput_per_s,
        point.p99_ms,
        point.memory_mb,
        point.verdict,
    )


def _setting_line(name: str, point: Point | None, limit: str) -> str:
    if point is None:
        return f"{name:<10}  nothing measured keeps the limit: {limit}"
    return (
        f"{name:<10}  batch {point.batch}, {point.streams} stream{'s' * (point.streams > 1)}: "
        f"{point.throughput_per_s:.1f} img/s, p99 {point.p99_ms:.2f} ms ({limit})"
    )
