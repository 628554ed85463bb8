"""A module of this package in a process of its own, which can be stopped when its time is over."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: |$)")
FOLDERS = re.compile(r"(?:/[^\s/:]+)+/(?=[^\s/:])")
CUT = 300
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
    return f"failed: {reason(said)}"


def reason(said: str) -> str:
    """The exception that a process ended with, without folders of this machine: its line, and those below it.

    Our errors have several lines: what came, what was expected, what to do.
    """
    lines = [line for line in said.splitlines() if line.strip()]
    begin = max((at for at, line in enumerate(lines) if EXCEPTION.match(line)), default=len(lines) - 1)
    text = " ".join(line.strip() for line in lines[max(begin, 0) :])
    return without_folders(text)[:CUT] or "no message"


def without_folders(text: str) -> str:
    """A text with only the last part of each absolute path."""
    return FOLDERS.sub("", text)
