"""The tables of docs/gpu.md, from what gpu_runtime.py measured: results/gpu_runtime_{race,streams,tune,soak}.json.

A file that is not there, and a model or point that a file lacks, is "not run". Figures of a point that was refused, or
that the watcher saw throttled or did not see, are not published: the word stands in their place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from gpu_runtime_cells import NOT_RUN, PRECISIONS, TITLES, Found, Refusals, origin
from gpu_runtime_race_table import lost_lines, parity_table, race_table, target_lines
from ledgers import ROOT, with_section

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "gpu.md"
SCRIPT = "python benchmarks/gpu_runtime.py"
# How far `tune` may be from the best of the whole grid.
TARGET_GAP = 0.05
# What needs several streams or long runs, and failed before captures excluded other work on the GPU.
LATER = {
    "streams": "Several streams with CUDA graphs",
    "tune": "`tune` over several streams",
    "soak": "the soak of 100,000 runs",
}


def write_page() -> None:
    """Write the tables into docs/gpu.md."""
    PAGE.write_text(page_with_tables(PAGE.read_text()))


def page_with_tables(page: str) -> str:
    """Return the page with every table between its markers."""
    tables: Mapping[str, tuple[str, Callable[[Found], str]]] = {
        "race": ("race", race_table),
        "target": ("race", target_lines),
        "lost": ("race", lost_lines),
        "parity": ("race", parity_table),
        "streams": ("streams", streams_table),
        "tune": ("tune", tune_table),
        "soak": ("soak", soak_table),
    }
    for marker, (what, table) in tables.items():
        page = with_section(page, marker, section(what, table))
    return with_section(page, "not-run", missing_line())


def file_of(what: str) -> Path:
    return RESULTS / f"gpu_runtime_{what}.json"


def missing_line() -> str:
    """What has not been measured since captures are exclusive, in a line of the list of what was not run."""
    missing = [title for what, title in LATER.items() if not file_of(what).is_file()]
    if not missing:
        return ""
    return (
        f"* **{', '.join(missing)} on a GPU**, since a capture has the GPU to itself. Attempts before that failed: "
        "captures broke each other."
    )


def section(what: str, table: Callable[[Found], str]) -> str:
    """A table of what one command measured, or that it was not run."""
    file = file_of(what)
    if not file.is_file():
        return f"Not run: `{SCRIPT} {what} … --out {what}.json`."
    return table(json.loads(file.read_text()))


def streams_table(record: Found) -> str:
    lines = [
        "| model | precision | batch | streams | img/s | p50 ms | p99 ms | MB | with graphs: img/s | p50 ms | p99 ms "
        "| MB |",
        f"|{'---|' * 12}",
    ]
    refusals = Refusals()
    for name, title in TITLES.items():
        for precision, word in PRECISIONS.items():
            pairs: dict[tuple[int, int], list[Found | None]] = {}
            for side, key in enumerate((precision, f"{precision}+graph")):
                for point in record["found"].get(name, {}).get(key, []):
                    pairs.setdefault((point["batch"], point["streams"]), [None, None])[side] = point
            for (batch, streams), both in pairs.items():
                cells = [cell for point in both for cell in point_cells(point, refusals)]
                lines.append(f"| {' | '.join([title, word, str(batch), str(streams), *cells])} |")
            if not pairs:
                lines.append(f"| {title} | {word} | – | – |{f' {NOT_RUN} |' * 8}")
    return "\n".join([*lines, *refusals.lines(), origin(record)])


def point_cells(point: Found | None, refusals: Refusals) -> list[str]:
    """Images per second, p50, p99 and memory of a point of `Bench`, or the word why not."""
    if point is None:
        return [NOT_RUN] * 4
    if point["verdict"] == "refused":
        return [refusals.cell(point["refusal"])] * 4
    if point["verdict"] != "clean":
        return [point["verdict"]] * 4
    shown = [
        (point["throughput_per_s"], 0),
        (point["p50_ms"], 2),
        (point["p99_ms"], 2),
        (point["memory_mb"], 0),
    ]
    return ["–" if value is None else f"{value:.{digits}f}" for value, digits in shown]


def tune_table(record: Found) -> str:
    lines = [
        "| model | setting | batch × streams | img/s | p50 ms | p99 ms | MB | behind the best of the grid |",
        f"|{'---|' * 8}",
    ]
    refusals = Refusals()
    said = []
    for name, title in TITLES.items():
        found = record["found"].get(name)
        if found is None:
            lines.append(f"| {title} |{f' {NOT_RUN} |' * 7}")
            continue
        bound = f"latency, p99 within {found['latency_bound_ms']:g} ms"
        for setting, key, gap in ((bound, "latency", "latency_gap"), ("throughput", "throughput", "gap")):
            point = found[key]
            pair = "none" if point is None else f"{point['batch']} × {point['streams']}"
            cells = ["none"] * 4 if point is None else point_cells(point, refusals)
            lines.append(f"| {' | '.join([title, setting, pair, *cells, gap_cell(found[gap])])} |")
        said.append(f"\n{title}: {grid_line(found)}")
    return "\n".join([*lines, *refusals.lines(), *said, origin(record)])


def gap_cell(gap: float | None) -> str:
    return NOT_RUN if gap is None else f"{100 * gap:.1f} %: {'met' if gap <= TARGET_GAP else 'missed'}"


def grid_line(found: Found) -> str:
    """How much of the grid was measured, what was not fit to be used, and the memory model."""
    verdicts = [point["verdict"] for point in found["points"]]
    unfit = "".join(
        f", {verdicts.count(word)} {word}"
        for word in ("refused", "throttled", "unobserved")
        if word in verdicts
    )
    measured = f"{len(verdicts)} points{unfit}, {len(found['skipped'])} skipped"
    model = found["memory"]
    if model is None:
        return f"{measured}."
    error = "" if model["error"] is None else f", off by at most {100 * model['error']:.0f} %"
    return (
        f"{measured}; memory = {model['fixed_mb']:.0f} MB + streams × ({model['per_stream_mb']:.0f} MB + batch × "
        f"{model['per_item_mb']:.1f} MB){error}."
    )


def soak_table(record: Found) -> str:
    """Of each model, memory at the first run, when every stream has had every shape, halfway, at the last run, and the
    most from then on."""
    lines = ["| model | | run | device MB | host MB |", "|---|---|---|---|---|"]
    said = []
    for name, found in record["found"].items():
        settled = [point for point in found["curve"] if point[0] >= found["shapes"] * found["streams"]]
        named = {"first run": found["curve"][0]}
        if settled:
            named["every shape has come"] = settled[0]
            named["halfway"] = min(settled, key=lambda point, runs=found["runs"]: abs(point[0] - runs / 2))
            named["last run"] = settled[-1]
        lines += [
            f"| {name} | {what} | {turn + 1} | {device:.0f} | {host:.0f} |"
            for what, (turn, device, host) in named.items()
        ]
        if settled:
            most = [max(point[side] for point in settled) for side in (1, 2)]
            lines.append(f"| {name} | the most after that | – | {most[0]:.0f} | {most[1]:.0f} |")
        why = f" ({found['without_graph']})" if found["without_graph"] else ""
        said.append(
            f"\n{name}: {found['runs']} runs over {found['shapes']} shapes on {found['streams']} streams in "
            f"{found['seconds']:.0f} s, {found['graphs']} CUDA graphs{why}; answers that differ from the first one of "
            f"their shape: {found['wrong']}."
        )
    asked = [Path(word).stem for word in record["command"].split() if word.endswith(".onnx")]
    said += [f"\n{name}: not run to its end." for name in asked if name not in record["found"]]
    return "\n".join([*lines, *said, "\nMemory is that of the process.", origin(record)])
