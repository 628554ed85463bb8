"""Made-up records of gpu_runtime.py, and how a line of a table is found."""

from __future__ import annotations

import copy
from typing import Any

ENVIRONMENT = {
    "date": "2026-11-22T12:10:26+00:00",
    "cpu": {"model": "A CPU", "usable_cores": 16},
    "packages": {"onnxruntime": "1.31.1"},
    "gpus": [{"name": "A GPU", "memory_mb": 80000, "driver": "580.1"}],
    "gpu": "A GPU",
    "cuda_driver": "13.0",
    "onnxruntime": "1.31.1",
}


def record(found: dict[str, Any]) -> dict[str, Any]:
    return {"command": "python this", "environment": copy.deepcopy(ENVIRONMENT), "found": found}


def line_of(table: str, *starts: str) -> list[str]:
    """The cells after the first few of the one line that begins with them."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {' | '.join(starts)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][len(starts) :]
