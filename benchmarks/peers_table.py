"""The tables of peers.py, made from its raw results alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import in_cell

from vitesse.benchmark.latency import latency_of, ratio_of

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "peers.md"
BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
OURS = "Vitesse"
BASELINE = "ONNX Runtime default, FP32"
_OPERATORS = 8


def page_with_tables(page: str) -> str:
    """The page with the tables of the committed results between its marks."""
    before, _, rest = page.partition(BEGIN)
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("peers_*.json"), reverse=True)]
    made = "\n".join(tables(one) for one in found) or "not run\n"
    return f"{before}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}"


def tables(found: Mapping[str, Any]) -> str:
    """Return Markdown: who is how fast, and by operator what ours and the baseline spend their time on."""
    chosen = f"{found['chosen']} on {found['runtime']}"
    parts = [
        f"### {found['model']}",
        f"{conditions(found)}. {OURS} chose {chosen}.",
        peer_table(found),
        operator_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def conditions(found: Mapping[str, Any]) -> str:
    """Processor, threads, how quiet it was."""
    cpu, latency = found["environment"]["cpu"], found["latency"]
    others = latency["foreign_cores"]
    quiet = "unknown" if others is None else f"{others:.2f} cores"
    return (
        f"{cpu['model']}, {found['threads']} threads, batch 1; other processes took {quiet}; "
        f"{latency['settled']:.0%} of the blocks began with idle threads"
    )


def peer_table(found: Mapping[str, Any]) -> str:
    """One line a candidate, fastest first: p50; time of the baseline, then of ours, over its own, round by round."""
    rounds = found["latency"]["rounds"]
    lines = [
        "| candidate | p50 ms | speed, ONNX Runtime default = 1 (95 % interval) | speed, Vitesse = 1 |",
        "|---|---|---|---|",
    ]
    p50 = {name: latency_of([ms for block in blocks for ms in block]).p50 for name, blocks in rounds.items()}
    for name in sorted(p50, key=p50.__getitem__):
        gain, beside_ours = against(rounds, BASELINE, name), against(rounds, OURS, name)
        interval = f"{gain.interval[0]:.2f} to {gain.interval[1]:.2f}"
        shown = f"**{name}**" if name == OURS else name
        lines.append(
            f"| {shown} | {p50[name]:.1f} | {gain.value:.2f} ({interval}) | {beside_ours.value:.2f} |"
        )
    lines += [f"| {name} | failed | {in_cell(reason)} | |" for name, reason in found["failed"].items()]
    return "\n".join(lines)


def against(rounds: Mapping[str, Any], baseline: str, candidate: str) -> Any:
    """Return time of `baseline` over time of `candidate`."""
    pairs = zip(rounds[baseline], rounds[candidate], strict=True)
    return ratio_of([statistics.median(a) / statistics.median(b) for a, b in pairs])


def operator_table(found: Mapping[str, Any]) -> str:
    """Milliseconds per call by operator, the largest of either first; a sentence where there is no profile."""
    profiles = found["operators"]
    silent = {name: said for name, said in profiles.items() if isinstance(said, str)}
    if silent:
        return "\n".join(f"No operator times of {name}: {said}." for name, said in silent.items())
    ms = {
        name: {row["operator"]: row["ms"] for row in profiles[name]["operators"]} for name in (BASELINE, OURS)
    }
    every = sorted(
        set(ms[BASELINE]) | set(ms[OURS]), key=lambda op: (-max(one.get(op, 0) for one in ms.values()), op)
    )
    lines = [f"| operator | {BASELINE}, ms | {OURS}, ms |", "|---|---|---|"]
    for operator in every[:_OPERATORS]:
        lines.append("| " + " | ".join([operator, *(shown(ms[name].get(operator)) for name in ms)]) + " |")
    rest = [sum(one.get(operator, 0) for operator in every[_OPERATORS:]) for one in ms.values()]
    if every[_OPERATORS:]:
        lines.append(f"| {len(every) - _OPERATORS} others | {rest[0]:.1f} | {rest[1]:.1f} |")
    totals = [profiles[name]["operators_ms"] for name in ms]
    return "\n".join([*lines, f"| all | {totals[0]:.1f} | {totals[1]:.1f} |"])


def shown(ms: float | None) -> str:
    """A cell; a dash for an operator that is not there."""
    return "–" if ms is None else f"{ms:.1f}"
