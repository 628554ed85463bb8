"""docs/torch_cuda.md: its tables, from benchmarks/results/torch_cuda_*.json; needs neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..cells import in_cell
from .results import ROOT, TARGET, TARGETS, Found, Results, own_ms, read

PAGE = ROOT / "docs/torch_cuda.md"
NOT_RUN = "not run"
TITLES = {
    "vit_b16": "ViT-B/16, 224×224",
    "vit_l16": "ViT-L/16, 224×224",
    "vit_h14": "ViT-H/14, 224×224",
    "dinov2_b14": "DINOv2-B/14, 518×518",
    "detr_r50": "DETR-R50, 800×1333",
}
# Peers by label, and as a column is headed.
PEERS = {
    "torch eager": "eager",
    "torch + CUDA graph": "eager + graph",
    "torch.compile": "compile",
    "torch.compile reduce-overhead": "reduce-overhead",
    "torch.compile max-autotune": "max-autotune",
    "ONNX Runtime CUDA": "ORT CUDA",
    "Vitesse cuda": "Vitesse `cuda`",
}
# Points of top-1 that FP8 may lose on vit_fashion.
MOST_LOSS = 0.2
PROFILE_LINES = 12
OUTCOMES = ("passed", "failed", "skipped")


class Notes:
    """Words that do not fit a cell: numbered when they first come, printed below the table."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cell(self, shown: str, words: str) -> str:
        return f"{shown} ({self._numbers.setdefault(in_cell(words), len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        return [f"\n({number}) {words}" for words, number in self._numbers.items()]


def time_cell(group: Found, label: str, notes: Notes) -> str:
    """Milliseconds, or in words why there are none; what was not measured undisturbed carries a note."""
    if not group:
        return NOT_RUN
    if "failed" in group:
        return notes.cell("failed", group["failed"])
    if label in group["refused"]:
        return notes.cell("–", group["refused"][label])
    if label not in group["candidates"] or "ms" not in group["candidates"][label]:
        return NOT_RUN
    one, observed = group["candidates"][label], group["observed"]
    said = [] if observed["verdict"] == "clean" else [f"{observed['verdict']}: {observed['why']}"]
    said += one.get("notes", [])
    shown = milliseconds(one["ms"])
    return notes.cell(shown, "; ".join(said)) if said else shown


def milliseconds(ms: float) -> str:
    return f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def target_table(found: Results) -> str:
    """Every row with its target, what was measured, and the fastest peer of the same run."""
    notes = Notes()
    lines = table("model", "batch", "precision", "target ms", "ms", "images/s", "met", "fastest peer", "gain")
    for key, target in TARGETS.items():
        name, batch, precision = key
        group = found.of(key)
        ms = own_ms(group, precision)
        peer = fastest_peer(group)
        lines.append(
            line(
                TITLES[name],
                str(batch),
                precision.upper(),
                "–" if target is None else f"{target:g}",
                time_cell(group, f"{TARGET} {precision}", notes),
                NOT_RUN if ms is None else f"{1000 * batch / ms:,.0f}",
                met(ms, target),
                "–" if peer is None else f"{PEERS[peer[0]]}, {milliseconds(peer[1])}",
                "–" if peer is None or ms is None else f"{peer[1] / ms:.2f}×",
            )
        )
    return "\n".join([*lines, *notes.lines()])


def met(ms: float | None, target: float | None) -> str:
    if target is None:
        return "–"
    if ms is None:
        return NOT_RUN
    return "yes" if ms <= target else f"no, {ms / target:.2f} times the target"


def fastest_peer(group: Found) -> tuple[str, float] | None:
    times = {
        label: one["ms"]
        for label, one in group.get("candidates", {}).items()
        if label in PEERS and "ms" in one
    }
    return min(times.items(), key=lambda one: one[1]) if times else None


def peer_table(found: Results) -> str:
    """Milliseconds of all candidates of a run; the peers' precision is FP16."""
    notes = Notes()
    lines = table("model", "batch", *(f"`{TARGET}` {one}" for one in ("FP16", "FP8")), *PEERS.values())
    for name, batch in dict.fromkeys(key[:2] for key in TARGETS):
        group = found.groups.get(f"{name}:{batch}", {})
        ours = [
            time_cell(group, f"{TARGET} {precision}", notes) if (name, batch, precision) in TARGETS else "–"
            for precision in ("fp16", "fp8")
        ]
        lines.append(line(TITLES[name], str(batch), *ours, *(time_cell(group, one, notes) for one in PEERS)))
    return "\n".join([*lines, *notes.lines()])


def detail_table(found: Results) -> str:
    """Spread, single calls, parity and memory of every candidate."""
    heads = (
        "model",
        "batch",
        "candidate",
        "ms (quartiles of rounds)",
        "single call ms",
        "largest error / largest value",
    )
    lines = table(*heads, "error norm / norm", "memory MB", "ready in s")
    for name, batch, label, one in candidates(found):
        parity = one.get("parity", [])
        spread = f"{milliseconds(one['ms'])} ({milliseconds(one['low_ms'])}–{milliseconds(one['high_ms'])})"
        lines.append(
            line(
                TITLES.get(name, name),
                batch,
                label,
                spread,
                milliseconds(one["single_ms"]),
                ", ".join(f"{output['max_rel']:.1e}" for output in parity) or NOT_RUN,
                ", ".join(f"{output['norm_rel']:.1e}" for output in parity) or NOT_RUN,
                f"{one['memory_mb']:,.0f}" if "memory_mb" in one else NOT_RUN,
                f"{one['open_s']:.1f}",
            )
        )
    return "\n".join(lines) if len(lines) > 2 else f"{NOT_RUN}."


def candidates(found: Results) -> Iterator[tuple[str, str, str, Found]]:
    """Model, batch, label and figures of all that was timed."""
    for group_name, group in found.groups.items():
        name, _, batch = group_name.partition(":")
        for label, one in group.get("candidates", {}).items():
            if "ms" in one:
                yield name, batch, label, one


def load_table(found: Results) -> str:
    """Seconds of building, and in a fresh process of loading and the first call, Triton's cache empty and filled."""
    heads = ("build s", "artifact MB", "load s, empty cache", "load s, filled")
    lines = table("model", "precision", *heads, "first call s, empty cache", "first call s, filled")
    for name, batch, label, one in candidates(found):
        if "build" not in one or "load" not in one:
            continue
        empty, filled = (one["load"][kind] for kind in ("empty", "filled"))
        cells = [seconds(fresh, part) for part in ("load_ms", "cold_start_ms") for fresh in (empty, filled)]
        precision = label.removeprefix(TARGET).strip().upper()
        lines.append(
            line(
                f"{TITLES.get(name, name)}, batch {batch}",
                precision,
                str(one["build"]["build_s"]),
                str(one["build"]["artifact_mb"]),
                *cells,
            )
        )
    return "\n".join(lines) if len(lines) > 2 else f"{NOT_RUN}."


def seconds(fresh: Found, part: str) -> str:
    if fresh[part] is not None:
        return f"{fresh[part] / 1000:.1f}"
    return in_cell(fresh["unmeasured"]) if part == "load_ms" else "–"


def accuracy_lines(found: Results) -> str:
    if found.accuracy is None:
        return f"Top-1 of vit_fashion on the target, FP8 may lose {MOST_LOSS:g} points: {NOT_RUN}."
    one = found.accuracy
    lines = table("precision", "top-1", "lost, points", f"at most {MOST_LOSS:g}")
    for precision, value in one["top1"].items():
        loss = one["loss_points"][precision]
        lines.append(
            line(precision.upper(), f"{value:.4f}", f"{loss:.2f}", "yes" if loss <= MOST_LOSS else "no")
        )
    return "\n".join(
        [f"vit_fashion, {one['images']} images; FP32 on the CPU has {one['reference']:.4f}.\n", *lines]
    )


def test_table(found: Results) -> str:
    """How many tests passed in each file, and the words of those that failed."""
    if not found.outcomes:
        return f"{NOT_RUN}."
    files: dict[str, list[str]] = {}
    for test, outcome in found.outcomes.items():
        files.setdefault(test.partition("::")[0], []).append(outcome.partition(":")[0])
    lines = table("tests", *OUTCOMES)
    lines += [line(f"`{file}`", *(str(said.count(one)) for one in OUTCOMES)) for file, said in files.items()]
    failed = {test: said for test, said in found.outcomes.items() if said.startswith("failed")}
    lines += [f"\n* `{in_cell(test)}` {in_cell(said)}" for test, said in failed.items()]
    return "\n".join(lines)


def profile_tables(found: Results) -> str:
    """The kernels that take most, row by row."""
    parts = []
    for name, profile in found.profiles.items():
        model, batch, precision = name.split(":")
        kernels = profile["kernels"]
        lines = table("kernel", "launches", "µs", "share")
        lines += [
            line(
                f"`{in_cell(one['kernel'])}`",
                f"{one['launches']:g}",
                f"{one['us']:.1f}",
                f"{100 * one['share']:.1f} %",
            )
            for one in kernels[:PROFILE_LINES]
        ]
        whole = sum(one["us"] for one in kernels)
        title = (
            f"**{TITLES.get(model, model)}, batch {batch}, {precision.upper()}**: {whole:,.0f} µs in kernels."
        )
        parts += [title, "\n".join(lines), *step_table(profile["steps"])]
    return "\n\n".join(parts) or f"{NOT_RUN}."


def step_table(steps: Sequence[Found]) -> list[str]:
    """Nodes of the plan by step and tactic, with the time that each took alone when it was chosen."""
    summed: dict[tuple[str, str], list[float]] = {}
    for one in steps:
        summed.setdefault((one["step"], one["tactic"]), []).append(one.get("microseconds") or 0.0)
    if not summed:
        return []
    lines = table("step", "tactic", "nodes", "µs")
    for (step, tactic), spent in sorted(summed.items(), key=lambda one: -sum(one[1]))[:PROFILE_LINES]:
        lines.append(line(step, f"`{in_cell(tactic)}`", str(len(spent)), f"{sum(spent):.1f}"))
    return ["\n".join(lines)]


def table(*heads: str) -> list[str]:
    return [line(*heads), f"|{'---|' * len(heads)}"]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


SECTIONS = {
    "targets": target_table,
    "peers": peer_table,
    "details": detail_table,
    "loading": load_table,
    "accuracy": accuracy_lines,
    "profile": profile_tables,
    "tests": test_table,
    "origin": lambda found: "\n".join(f"* {one}" for one in found.origins) or f"{NOT_RUN}.",
}


def page_with_tables(page: str, found: Results) -> str:
    """The page with each table between its marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    for name, made in SECTIONS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page has not the marks {begin} and {end}, once each")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{made(found)}\n\n{end}{rest.partition(end)[2]}"
    return page


def write_page() -> None:
    PAGE.write_text(page_with_tables(PAGE.read_text(), read()))
