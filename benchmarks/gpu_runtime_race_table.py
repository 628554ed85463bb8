"""The tables of the race: ONNX Runtime's CUDA provider as people call it, and as Vitesse does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from cells import in_cell
from gpu_runtime_cells import NOT_RUN, PRECISIONS, TITLES, Found, Refusals, origin

# The candidates, as gpu_runtime.py labels them.
PLAIN, NO_GRAPH, OURS, NUMPY = "plain", "ours, no graph", "ours", "ours, numpy to numpy"
# Of FP16 at batch 1 over `plain` in the same run.
TARGET_GAIN = 1.5
# What `plain` took there on another machine with an H100 (one run each, exploratory): the gain depends on the host.
ELSEWHERE_MS = {"vit_b16": 1.93, "detr_r50": 5.45}
# Below this a gain counts as little, and is said.
LITTLE_GAIN = 1.1
# A busier machine than this is named, as `Interleaved.quiet` has it.
FOREIGN_CORES = 0.1

# Model, precision, batch size, and what the race found there.
Point = tuple[str, str, str, Found]


def groups(record: Found) -> Iterator[tuple[str, str, str, Found | None]]:
    """Model, precision, batch and group of every point; None where a model or a precision was not run."""
    for name in TITLES:
        batches = record["found"].get(name, {}).get("batches", {})
        for precision in PRECISIONS:
            found = {batch: group[precision] for batch, group in batches.items() if precision in group}
            yield from ((name, precision, batch, group) for batch, group in found.items())
            if not found:
                yield name, precision, "–", None


def race_table(record: Found) -> str:
    lines = [
        "| model | precision | batch | plain ms | no graph ms | gain (interval) | ours ms | gain (interval) | img/s "
        "| numpy to numpy ms | remarks |",
        f"|{'---|' * 11}",
    ]
    refusals = Refusals()
    for name, precision, batch, group in groups(record):
        cells = [NOT_RUN] * 7 + ["–"] if group is None else race_cells(batch, group, refusals)
        lines.append(f"| {' | '.join([TITLES[name], PRECISIONS[precision], batch, *cells])} |")
    return "\n".join([*lines, *refusals.lines(), origin(record)])


def race_cells(batch: str, group: Found, refusals: Refusals) -> list[str]:
    verdict = group["observed"]["verdict"]
    known = group["candidates"]

    def figure(label: str, of: Callable[[Found], str]) -> str:
        if label in group["refused"]:
            return refusals.cell(group["refused"][label])
        if verdict != "clean":
            return str(verdict)
        return of(known[label]) if label in known else NOT_RUN

    return [
        figure(PLAIN, milliseconds),
        figure(NO_GRAPH, milliseconds),
        figure(NO_GRAPH, gain),
        figure(OURS, milliseconds),
        figure(OURS, gain),
        figure(OURS, lambda one: f"{1000 * int(batch) / one['p50_ms']:.0f}"),
        figure(NUMPY, milliseconds),
        in_cell("; ".join(remarks(group)) or "–"),
    ]


def milliseconds(one: Found) -> str:
    return f"{one['p50_ms']:.3f}" if one["p50_ms"] < 10 else f"{one['p50_ms']:.1f}"


def gain(one: Found) -> str:
    """Time of `plain` over that of the candidate, with the interval of 95 %."""
    if "gain" not in one:
        return "–"
    low, high = one["gain_interval"]
    return f"{one['gain']:.2f}× ({low:.2f}–{high:.2f})"


def remarks(group: Found) -> Iterator[str]:
    observed, run = group["observed"], group["run"]
    if observed["verdict"] != "clean":
        yield f"{observed['verdict']}: {observed['why']}"
    if (run["foreign_cores"] or 0) >= FOREIGN_CORES:
        yield f"other processes kept {run['foreign_cores']:.1f} cores busy"
    unsteady = [label for label, warm in run["warm_up"].items() if not warm["stable"]]
    if unsteady:
        yield f"still changing after the warm-up: {', '.join(unsteady)}"
    if group["refused"] and "gpu_memory_mb" in observed["series"]:
        yield f"all candidates together held up to {observed['series']['gpu_memory_mb'][2] / 1000:.1f} GB of the GPU"


def clean(record: Found) -> Iterator[Point]:
    """The points whose figures are published."""
    for name, precision, batch, group in groups(record):
        if group is not None and group["observed"]["verdict"] == "clean":
            yield name, precision, batch, group


def target_lines(record: Found) -> str:
    """Whether FP16 at batch 1 is as much faster than `plain` as was aimed at: by the interval's lower end.

    A plain call at batch 1 waits for the processor, so that it varies: the round and the call least in our favour are
    said, too.
    """
    found = {
        name: group
        for name, precision, batch, group in groups(record)
        if (precision, batch) == ("fp16", "1") and group is not None
    }
    return "\n".join(
        f"* {title}: {against_target(name, found[name]) if name in found else NOT_RUN}"
        for name, title in TITLES.items()
    )


def against_target(name: str, group: Found) -> str:
    if group["observed"]["verdict"] != "clean":
        return f"not decided, {group['observed']['verdict']}"
    if set(group["refused"]) & {PLAIN, OURS}:
        return "not decided, refused"
    one, rounds = group["candidates"][OURS], group["run"]["rounds"]
    least = min(
        statistics.median(a) / statistics.median(b) for a, b in zip(rounds[PLAIN], rounds[OURS], strict=True)
    )
    fastest = min(ms for block in rounds[PLAIN] for ms in block)
    said = (
        f"{gain(one)}, {met(one)}",
        f"{least:.2f}× in the least favourable of {len(rounds[PLAIN])} rounds",
        f"plain's fastest single call took {fastest:.2f} ms, {fastest / one['p50_ms']:.2f}× our p50",
        f"on another machine plain took {ELSEWHERE_MS[name]:.2f} ms (one run, exploratory), "
        f"{ELSEWHERE_MS[name] / one['p50_ms']:.2f}× our p50 here",
    )
    return "; ".join(said)


def met(one: Found) -> str:
    low, high = one["gain_interval"]
    if low >= TARGET_GAIN:
        return "met"
    return "missed" if high < TARGET_GAIN else f"open, the interval reaches to both sides of {TARGET_GAIN}×"


def lost_lines(record: Found) -> str:
    """What is slower than `plain` or hardly faster, and what the copies cost."""
    points = [
        (f"{TITLES[name].partition(',')[0]} {PRECISIONS[precision]} batch {batch}", group["candidates"])
        for name, precision, batch, group in clean(record)
    ]
    slow, ungraphed = (
        [f"{title}, {gain(known[label])}" for title, known in points if behind(known, label)]
        for label in (NUMPY, NO_GRAPH)
    )
    little = [
        f"{title}, {gain(known[OURS])}"
        for title, known in points
        if known.get(OURS, {}).get("gain", LITTLE_GAIN) < LITTLE_GAIN
    ]
    copies = [
        f"{title}, {known[NUMPY]['p50_ms'] - known[OURS]['p50_ms']:.1f} ms"
        for title, known in points
        if {NUMPY, OURS} <= set(known)
    ]
    return "\n".join(
        f"* {text}: {'; '.join(some) or 'none'}."
        for text, some in (
            ("From numpy to numpy slower than plain between buffers on the GPU", slow),
            ("Without a CUDA graph slower than plain", ungraphed),
            (f"With a CUDA graph less than {LITTLE_GAIN}× faster than plain", little),
            ("What the way from numpy to numpy adds", copies),
        )
    )


def behind(known: Found, label: str) -> bool:
    """Whether a candidate is slower than `plain` beyond noise."""
    return bool(known.get(label, {}).get("gain_interval", (1.0, 1.0))[1] < 1)


def parity_table(record: Found) -> str:
    lines = ["| model | precision | largest difference / largest value, by output |", "|---|---|---|"]
    for name, title in TITLES.items():
        parity = record["found"].get(name, {}).get("parity", {})
        for precision, word in PRECISIONS.items():
            by_output = parity.get(precision, {})
            said = ", ".join(f"`{output}` {value:.1e}" for output, value in by_output.items())
            lines.append(f"| {title} | {word} | {said or NOT_RUN} |")
    return "\n".join(lines)
