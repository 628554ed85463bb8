"""benchmarks/results/models.json, and the table of docs/models.md that is made from it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sources.examining import Examined
from sources.model_rows import ModelRow
from vitesse.sources.source import AXES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
PACKAGES = ("torch", "transformers", "timm", "jax", "flax", "jax2onnx", "onnx", "onnxruntime", "numpy")
HEADER = "| model | typed as | dynamic axes | LayerNorm | attention | INT8 layers | largest difference |"
Record = dict[str, Any]


def expectation(row: ModelRow) -> Record:
    """What the row promises: the part of a record that a plain run compares."""
    return {
        "name": row.name,
        "how": row.how,
        "size": list(row.size),
        "parameters": row.parameters,
        "layer_norms": row.layer_norms,
        "attention_blocks": row.attention_blocks,
        "attention_fused": row.attention_fused,
        "dynamic": [axis for axis in AXES if axis in row.dynamic],
        "int8": row.int8,
        "tolerance": row.tolerance,
        "loader": row.loader,
        "note": row.note,
    }


def record(row: ModelRow, found: Examined) -> Record:
    """The row and what was measured, with the versions it was measured with."""
    measured = {
        "difference": float(f"{found.difference:.1e}"),
        "fused_difference": float(f"{found.fused_difference:.1e}"),
        "largest_output": float(f"{found.largest:.3g}"),
        "shapes": [list(shape) for shape in found.shapes],
        "int8_layers": found.int8_layers,
        "int8_cosine": round(found.int8_cosine, 4),
    }
    return {**expectation(row), "measured": measured, "environment": environment()}


def environment() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_records() -> list[Record]:
    """The committed records."""
    if not RESULTS.exists():
        return []
    rows: list[Record] = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    return rows


def write(rows: Sequence[ModelRow], found: Mapping[str, Examined]) -> None:
    """Write both files: rows that ran anew, the others as they were; rows that no longer exist go."""
    known = {entry["name"]: entry for entry in read_records()}
    known.update({row.name: record(row, found[row.name]) for row in rows if row.name in found})
    entries = [known[row.name] for row in rows if row.name in known]
    RESULTS.write_text(json.dumps({"rows": entries}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), entries), encoding="utf-8")


def with_table(page: str, entries: Sequence[Record]) -> str:
    """The page with the table of these records between its markers."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(entries)}\n{END}{tail}"


def table(entries: Sequence[Record]) -> str:
    """One line a row; notes are numbered below."""
    notes: list[str] = []
    lines = [HEADER, "|---|---|---|---|---|---|---|", *(line(entry, notes) for entry in entries)]
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]).rstrip()


def line(entry: Record, notes: list[str]) -> str:
    """One row of the table; a new note is added to `notes`."""
    mark = ""
    if entry["note"]:
        if entry["note"] not in notes:
            notes.append(entry["note"])
        mark = f" ({notes.index(entry['note']) + 1})"
    measured = entry["measured"]
    difference = max(measured["difference"], measured["fused_difference"])
    cells = (
        entry["name"],
        f"`{entry['how']}`",
        ", ".join(entry["dynamic"]) or "none",
        str(entry["layer_norms"]),
        f"{entry['attention_fused']} / {entry['attention_blocks']}{mark}",
        str(measured["int8_layers"]) if entry["int8"] else "no",
        f"{difference:.0e}",
    )
    return f"| {' | '.join(cells)} |"
