"""The tables and the picture of docs/compress.md, made from the committed results of compress.py alone."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compress.md"
PICTURE = PAGE.parent / "images" / "compress_curve.svg"
TITLES = {"vit": "vit_fashion", "detr": "detr_fashion"}
SCORES = {"vit": "top-1", "detr": "AP"}
RACES = ("vit", "detr", "student")
METRICS = {"coco_ap": "AP", "top1": "top-1", "agreement": "agreement"}
NOT_RUN = "not run"
WIDE, HIGH, MARGIN = 420, 300, 50
LEGEND, LINE = 100, 16  # what stands below a panel, and the height of one of its lines

Results = Mapping[str, Any]


def write_page(results: Path) -> None:
    """Write tables and picture of the results in a folder."""
    PAGE.write_text(page_with_tables(PAGE.read_text(), results))
    PICTURE.write_text(picture(races(results, "cpu")))


def page_with_tables(page: str, results: Path) -> str:
    """Return the page with the tables between their marks; ValueError where it lacks them."""
    for name, table in tables(results).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in page or end not in page:
            raise ValueError(f"the page has no {begin} … {end}; put both where the table shall stand")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return page


def tables(results: Path) -> Mapping[str, str]:
    """Return every table by the name of its marks; "not run" where its results are not there."""
    made: dict[str, str] = {}
    for name in ("vit", "detr"):
        made[name] = of(read(results, name), case_table)
    made["students"] = student_table(read(results, "student"), read(results, "student_labels"))
    for device in ("cpu", "cuda"):
        made[f"latency_{device}"] = "\n\n".join(map(latency_table, races(results, device))) or NOT_RUN
    return made


def races(results: Path, device: str) -> list[Results]:
    """Return the races that were run on a device."""
    found = (read(results, f"latency_{device}_{name}") for name in RACES)
    return [one for one in found if one is not None]


def read(results: Path, name: str) -> Results | None:
    """Return the results of one command, None where it was not run."""
    path = results / f"compress_{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def of(found: Results | None, table: Callable[[Results], str]) -> str:
    """Return the table of what was found, or that it was not run."""
    return NOT_RUN if found is None else table(found)


def case_table(found: Results) -> str:
    """One training: its rows, and with which command on what."""
    return "\n\n".join(["\n".join(training_lines(found["rows"])), conditions(found)])


def student_table(taught: Results | None, alone: Results | None) -> str:
    """The student of three decoder layers: not trained, trained on labels alone, distilled."""
    missing = [name for name, one in (("student", taught), ("student_labels", alone)) if one is None]
    if taught is None or alone is None:
        return f"{NOT_RUN}: {', '.join(missing)}"
    rows = [*taught["rows"][:2], alone["rows"][2], taught["rows"][2]]
    return "\n\n".join(["\n".join(training_lines(rows)), conditions(taught)])


def training_lines(rows: Sequence[Results]) -> Iterator[str]:
    """A table with the loss against the first row."""
    first = rows[0]
    yield f"| | {METRICS[first['metric']]} | against the original | operations | parameters | steps | training |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        change = "" if row is first else f"{row['score'] - first['score']:+.2f}"
        share = f"{row['flops'] / 1e6:.0f} M, {row['flops'] / first['flops']:.0%}"
        length = f"{row['steps']} | {row['seconds']:.0f} s" if "steps" in row else "|"
        stopped = f" (stopped: {row['stopped']})" if row.get("stopped") else kept(row)
        parameters = f"{row['parameters'] / 1e6:.2f} M"
        yield f"| {row['name']}{stopped} | {row['score']:.2f} | {change} | {share} | {parameters} | {length} |"


def kept(row: Results) -> str:
    """Say where training made a network worse: the weights that it began with are kept, and their score is shown."""
    end = row["curve"][-1][2] if row.get("curve") else row["score"]
    return (
        f" (its end scored {end:.2f}; the weights it began with stay)" if end < row["score"] - 0.005 else ""
    )


def latency_table(found: Results) -> str:
    """Latency and accuracy of all networks of a kind."""
    lines = ["| | ms, p50 | times as fast | score | against the original |", "|---|---|---|---|---|"]
    rows = found["rows"]
    for row in rows:
        low, high = row["interval"]
        change = f"{row['score'] - rows[0]['score']:+.2f}"
        lines.append(
            f"| {TITLES[found['kind']]}, {row['name']} | {row['p50_ms']:.3f} | "
            f"{row['gain']:.2f} [{low:.2f}, {high:.2f}] | {row['score']:.2f} | {change} |"
        )
    return "\n\n".join(["\n".join(lines), conditions(found)])


def conditions(found: Results) -> str:
    """The command, where it ran, what ran beside it, how busy others kept the machine, and what is to be noted."""
    environment = found["environment"]
    gpus = [gpu.get("name") or "a GPU" for gpu in environment.get("gpus") or ()]
    where = ", ".join([environment["cpu"]["model"], *gpus])
    parts = [f"`{found['command']}` on {where}"]
    if found.get("together"):
        parts.append(found["together"] + " at the same time")
    if "threads" in found:
        parts.append(f"{found['runtime']}, {found['threads']} threads, batch 1, interleaved")
        others = found["samples"].get("foreign_cores")
        parts.append(
            "others' load is not known" if others is None else f"other processes took {others:.2f} cores"
        )
    return "; ".join([*parts, environment["date"][:10], *([found["note"]] if "note" in found else [])]) + "."


def picture(found: Sequence[Results]) -> str:
    """Return an SVG: latency against accuracy, one panel a model; with "not run" in it where there is nothing.

    Races of one model share a panel, because latency is told as a share of what the original took in the same run.
    """
    panels: dict[str, list[Results]] = {}
    for one in found:
        rows = panels.setdefault(one["kind"], [])
        rows += one["rows"][1:] if rows else one["rows"]
    width = WIDE * max(1, len(panels))
    space = 'xmlns="http://www.w3.org/2000/svg"'
    head = f'<svg {space} viewBox="0 0 {width} {HIGH + LEGEND}" font-family="sans-serif" font-size="11">'
    parts = [head, f'<rect width="{width}" height="{HIGH + LEGEND}" fill="white"/>']
    if not found:
        parts.append(f'<text x="{MARGIN}" y="{MARGIN}">{NOT_RUN}</text>')
    for number, (kind, rows) in enumerate(panels.items()):
        parts += panel(f"{TITLES[kind]}, {SCORES[kind]}", rows, WIDE * number)
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(title: str, rows: Sequence[Results], left: float) -> Iterator[str]:
    """One model: a numbered dot for each network, upwards better, leftwards faster, and the names below."""
    slowest = max(1.0, *(1 / row["gain"] for row in rows))
    scores = [row["score"] for row in rows]
    high = max(scores)
    span = max(high - min(scores), 1.0)
    inner, tall = WIDE - 3 * MARGIN, HIGH - 2 * MARGIN
    floor, edge = HIGH - MARGIN, left + MARGIN

    def right(share: float) -> float:
        return edge + inner * share / slowest

    def down(score: float) -> float:
        return MARGIN + tall * (high - score) / span

    yield f'<text x="{edge}" y="20" font-weight="bold">{html.escape(title)}</text>'
    yield f'<path d="M{edge} {MARGIN - 10}V{floor + 10}H{left + WIDE - 20}" fill="none" stroke="#888"/>'
    for score in (high, high - span / 2, high - span):
        yield tick(edge - 6, down(score) + 4, f"{score:.1f}", "end")
    for share in (0, 0.5, 1):
        yield tick(right(share), floor + 24, f"{share:g}", "middle")
    yield f'<path d="M{right(1):.1f} {MARGIN - 10}V{floor + 10}" stroke="#ccc" stroke-dasharray="3"/>'
    yield tick(left + WIDE - 20, floor + 38, "p50, as a share of the original's", "end")
    for number, row in enumerate(rows, 1):
        x, y = right(1 / row["gain"]), down(row["score"])
        name = html.escape(f"{number} · {row['name']}: {row['score']:.1f}, {row['gain']:.2f} times as fast")
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#3465a4"/>'
        yield f'<text x="{x + 6:.1f}" y="{y - 5:.1f}">{number}</text>'
        yield f'<text x="{edge}" y="{HIGH + LINE * number}">{name}</text>'


def tick(x: float, y: float, text: str, anchor: str) -> str:
    """Words of an axis."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#555">{text}</text>'
