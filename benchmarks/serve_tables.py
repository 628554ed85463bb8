"""The tables of serve_cost.py and serve_soak.py in docs/serving.md, made from their raw results alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
TENSOR, JPEG, DECODE = "Vitesse, tensor", "Vitesse, JPEG", "decode"
# What is behind the name of a server that was asked with the small tensor.
OF_SMALL = ", small"
SMALL = f"Vitesse{OF_SMALL}"
# The same of a server that was asked with the JPEG.
OF_JPEG = ", JPEG"
BARE, BEHIND = "ViT-Ti, bare", "ViT-Ti, Vitesse"


def page_with_tables(page: str) -> str:
    """Return the page with the tables of the committed results between its marks; ValueError where it lacks them."""
    for name, table in (("serve_cost", cost_tables), ("serve_soak", soak_table)):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in page or end not in page:
            raise ValueError(f"the page has no {begin} … {end}; put both where the tables shall stand")
        before, _, rest = page.partition(begin)
        path = RESULTS / f"{name}.json"
        made = table(json.loads(path.read_text())) if path.exists() else "not run"
        page = f"{before}{begin}\n\n{made}\n\n{end}{rest.partition(end)[2]}"
    return page


def write_page() -> None:
    """Write the tables into the page."""
    PAGE.write_text(page_with_tables(PAGE.read_text()))


def cost_tables(found: Mapping[str, Any]) -> str:
    """Return what a request costs, who answers how many of them, and the share of the bare session."""
    samples = found["samples"]
    parts = [conditions(found, samples), cost_table(samples), server_table(samples, found["failed"])]
    if SMALL in samples:
        parts.append(server_table(samples, found["failed"], OF_SMALL))
    if any(name.endswith(OF_JPEG) and name != JPEG for name in samples):
        parts.append(server_table(samples, {}, OF_JPEG))  # not every server takes one
    return "\n\n".join([*parts, share_line(samples)])


def conditions(found: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Processor, clients, and how busy the machine was otherwise."""
    others = [
        one["other_cores"] for rows in samples.values() for one in rows if one.get("other_cores") is not None
    ]
    quiet = f"{statistics.median(others):.2f} cores" if others else "an unknown number of cores"
    return (
        f"{found['environment']['cpu']['model']}, {len(samples[TENSOR])} rounds, {found['connections']} connections, "
        f"the client on the same cores; other processes took {quiet} (median). Medians over the rounds, "
        "[least to most]."
    )


def cost_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Processor time of the server for one request of each kind; a JPEG's decoding is measured beside it."""
    tensor, jpeg, decode = (values(samples[name], "cpu_ms") for name in (TENSOR, JPEG, DECODE))
    beyond = [one - other for one, other in zip(jpeg, decode, strict=True)]
    small = [
        f"| 1×3×32×32 float32 in binary, 12 KB | {spread(values(samples[name], 'cpu_ms'), 2)} |"
        for name in (SMALL,)
        if name in samples
    ]
    return "\n".join(
        [
            "| a request | ms of processor time |",
            "|---|---|",
            f"| 1×3×224×224 float32 in binary, 602 KB | {spread(tensor, 2)} |",
            *small,
            f"| JPEG of 640×480, all of it | {spread(jpeg, 2)} |",
            f"| its decoding, resizing and normalising, without a server | {spread(decode, 2)} |",
            f"| JPEG, beyond that | {spread(beyond, 2)} |",
        ]
    )


def server_table(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], failed: Mapping[str, str], of: str = ""
) -> str:
    """One line a server with the null model, most requests first, and how many times as many Vitesse answers.

    Args:
        of: what was sent: "" the 602 KB, which show as much what copying costs; OF_SMALL the 12 KB, which show what a
            request costs; OF_JPEG the picture, which each server decodes, resizes and normalises.
    """
    names = [name for name in samples if name not in {DECODE, BARE, BEHIND} and _sent(name) == of]
    mine, size = {"": (TENSOR, "602 KB"), OF_SMALL: (SMALL, "12 KB"), OF_JPEG: (JPEG, "JPEG of 640×480")}[of]
    ours = values(samples[mine], "per_s")
    lines = [
        f"| null model, {size} | requests/s | p50 / p99 ms | ms of processor time | memory MB "
        "| Vitesse answers |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(names, key=lambda name: -statistics.median(values(samples[name], "per_s"))):
        rows = samples[name]
        ratios = [a / b for a, b in zip(ours, values(rows, "per_s"), strict=True)]
        p50, p99 = (statistics.median(values(rows, figure)) for figure in ("p50_ms", "p99_ms"))
        rss = statistics.median(values(rows, "rss_mb"))
        times = "" if name == mine else f"{spread(ratios, 1)} times as many"
        server = name.removesuffix(", tensor").removesuffix(of)
        lines.append(
            f"| {server} | {spread(values(rows, 'per_s'), 0)} | {p50:.1f} / {p99:.1f} | "
            f"{spread(values(rows, 'cpu_ms'), 2)} | {rss:.0f} | {times} |"
        )
    lines += [f"| {name} | not run: {why.replace('|', '/')} | | | | |" for name, why in failed.items()]
    return "\n".join(lines)


def _sent(name: str) -> str:
    return next((form for form in (OF_SMALL, OF_JPEG) if name.endswith(form)), "")


def share_line(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the server leaves of the bare session's throughput."""
    bare, behind = values(samples[BARE], "per_s"), values(samples[BEHIND], "per_s")
    shares = [a / b for a, b in zip(behind, bare, strict=True)]
    return (
        f"ViT-Ti/16 (5.7 million parameters) at 224×224, FP32: bare {spread(bare, 1)} images/s, behind the server "
        f"{spread(behind, 1)}: {100 * statistics.median(shares):.0f} % "
        f"[{100 * min(shares):.0f} to {100 * max(shares):.0f}], round by round."
    )


def soak_table(found: Mapping[str, Any]) -> str:
    """What came of a soak, in one table."""
    answers, memory = found["answers"], found["memory"]
    statuses = ", ".join(f"{count:,} × {status}" for status, count in sorted(answers["by_status"].items()))
    slope = memory["slope_mb_per_1000"]
    rows = {
        "duration, offered": f"{found['seconds'] / 60:.1f} min, {found['offered_per_s']:.0f} requests/s "
        f"({found['overload']:g} × the measured {found['capacity_per_s']:.0f})",
        "answers": f"{statuses}; {answers['broken']} broken connections, {answers['not_sent']} not sent by the client",
        "accepted": f"{answers['accepted_per_s']:.0f}/s, p50 {answers['p50_ms']:.0f} ms, p99 "
        f"{answers['p99_ms']:.0f} ms, slowest {answers['most_ms']:.0f} ms",
        "compared with the expected output": f"{answers['compared']:,}; wrong {answers['wrong']}, of them another "
        f"request's answer {answers['swapped']}",
        "largest difference": f"{answers['worst']:.1e} (tolerance {found['tolerance']:g})",
        "memory": f"{memory['after_warm_up_mb']:.0f} MB after the warm-up, {memory['end_mb']:.0f} MB at the end: "
        + ("too short for a slope" if slope is None else f"{slope:+.3f} MB per 1,000 requests"),
    }
    lines = [f"| {name} | {text} |" for name, text in rows.items()]
    machine = f"{found['environment']['cpu']['model']}, load average {found['load_average']:.1f} at the end."
    return "\n".join([machine, "", "| soak | |", "|---|---|", *lines])


def values(rows: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    """Return one figure of every round."""
    return [float(row[figure]) for row in rows]


def spread(found: Sequence[float], digits: int) -> str:
    """Median with the least and the most."""
    return f"{statistics.median(found):.{digits}f} [{min(found):.{digits}f} to {max(found):.{digits}f}]"
