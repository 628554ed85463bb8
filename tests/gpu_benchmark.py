"""The modules of benchmarks/gpu, and made-up records of its runs."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from benchmark_scripts import FOLDER


def gpu_module(name: str) -> ModuleType:
    """Import `benchmarks.gpu.NAME` as if it were run from the root of the repository."""
    sys.path.insert(0, str(FOLDER.parent))
    try:
        return importlib.import_module(f"benchmarks.gpu.{name}")
    finally:
        sys.path.remove(str(FOLDER.parent))


def candidate(ms: float, **more: Any) -> dict[str, Any]:
    """Figures of a candidate whose calls all took the same time."""
    figures = {"ms": ms, "low_ms": ms, "high_ms": ms, "single_ms": 2 * ms, "open_s": 1.5, "memory_mb": 1234.5}
    return {**figures, "parity": [{"max_abs": 0.1, "max_rel": 0.002, "norm_rel": 0.001}], **more}


def group(candidates: dict[str, Any], precisions: tuple[str, ...] = ("fp16",), **more: Any) -> dict[str, Any]:
    """A group of a race in which nothing was refused and nothing disturbed."""
    return {
        "precisions": list(precisions),
        "candidates": candidates,
        "refused": {},
        "observed": {"verdict": "clean", "why": ""},
        "samples": {label: {"calls": [[one["ms"]] * 3] * 12, "single": [[one["single_ms"]] * 2] * 12}
                    for label, one in candidates.items()},
        **more,
    }  # fmt: skip


def record(kind: str, date: str = "2026-11-22T12:00:00+00:00", **content: Any) -> dict[str, Any]:
    """What the program writes."""
    environment = {
        "date": date,
        "torch": "2.11.0",
        "cuda": "13.0",
        "gpu": "A GPU",
        "gpus": [{"driver": "580.1"}],
    }
    return {
        "kind": kind,
        "command": f"python -m benchmarks.gpu {kind}",
        "environment": environment,
        **content,
    }
