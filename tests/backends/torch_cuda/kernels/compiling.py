"""What the compiler makes of kernels for an H100, asked in a process of its own: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# A program may use 227 KB of shared memory, of which 1 KB is the system's.
SHARED_BYTES = 226 * 1024


def said_by(program: str, *arguments: str) -> dict[str, Any]:
    """Run a program of this folder that prints JSON; apart, because here Triton may be an interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(program)), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compiled_by(program: str) -> dict[str, dict[str, Any]]:
    """Return the facts about each kernel that a program of this folder compiles."""
    return said_by(program)
