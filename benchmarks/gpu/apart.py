"""A module of this package in a process of its own, which can be stopped when its time is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LAST_LINES = 3
ROOT = Path(__file__).resolve().parents[2]


def run_apart(module: str, arguments: Sequence[str], limit_s: float) -> float | str:
    """Run it; seconds, or why not."""
    began = time.perf_counter()
    # With its workers in a session of their own: they end with it.
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return f"not finished in {limit_s:g} s"
    if process.returncode == 0:
        return round(time.perf_counter() - began, 1)
    # Our errors have several lines: what came, what was expected, what to do.
    last = [line.strip() for line in said.splitlines() if line.strip()][-LAST_LINES:]
    return f"failed: {' '.join(last)[-300:] or 'no message'}"
