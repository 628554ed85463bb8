"""Write the tables of distances to the originals into docs/models.md, from benchmarks/results/originals.

    python benchmarks/originals_table.py

The figures come from original_detr.py and original_vit.py, which need the originals' repositories.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "originals"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- originals: begin -->", "<!-- originals: end -->"


def tables() -> str:
    """One table an original; every figure is a largest absolute difference."""
    detr, vit = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("detr", "vit"))
    return "\n".join((*detr_lines(detr), "", *vit_lines(vit)))


def origin(found: dict[str, Any]) -> str:
    original = found["original"]
    commit = f"commit {original['commit'][:7]} of {original['repository']}"
    return f"`{found['command']}` at {commit}: random weights"


def detr_lines(found: dict[str, Any]) -> list[str]:
    height, width = found["batch"]["padded_to"]
    sizes = ", ".join(f"{rows}×{columns}" for rows, columns in found["batch"]["sizes"])
    lines = [
        f"{origin(found)}, one batch of {sizes} (height × width), padded to {height}×{width}; all six decoder layers.",
        "",
        "| DETR | parameters | logits | boxes | exported graph with open sizes: logits, boxes |",
        "|---|---|---|---|---|",
    ]
    for name, case in found["cases"].items():
        exported = "–"
        if "max_abs_logits_exported" in case:
            exported = f"{case['max_abs_logits_exported']:.1e}, {case['max_abs_boxes_exported']:.1e}"
        own = f"{case['max_abs_logits']:.1e} | {case['max_abs_boxes']:.1e}"
        lines.append(f"| {name} | {case['parameters']:,} | {own} | {exported} |")
    return lines


def vit_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{origin(found)}, written and read by the original's own functions.",
        "",
        "| ViT | parameters | input | logits |",
        "|---|---|---|---|",
    ]
    for name, case in found["cases"].items():
        batch, height, width, _ = case["input"]
        lines.append(
            f"| {name} | {case['parameters']:,} | {batch}×{height}×{width} | {case['max_abs']:.1e} |"
        )
    return lines


def page_with_tables(page: str) -> str:
    """The page with the tables of the committed results between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text()))
