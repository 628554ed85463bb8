"""What the compiler makes of chained convolutions for an H100, at a real model's sizes: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

# A program may use 227 KB of shared memory, of which 1 KB is the system's.
SHARED_BYTES = 226 * 1024
PROGRAM = Path(__file__).with_name("chain_compiled_for_sm90.py")


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """Compile in a process of its own, because here Triton may have been imported as an interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_no_configuration_spills_and_all_fit(compiled: dict[str, dict[str, Any]]) -> None:
    assert len(compiled) > 25
    for name, facts in compiled.items():
        assert facts["stack_bytes"] == facts["local_bytes"] == 0, (name, facts)
        assert facts["shared_bytes"] <= SHARED_BYTES, (name, facts)


def test_both_products_use_the_tensor_cores_of_a_warpgroup(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert facts["wgmma"] > 0 and facts["mma"] == 0, (name, facts)


def test_launched_early_it_waits_for_what_it_reads(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert facts["waits"] == 1, (name, facts)
