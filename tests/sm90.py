"""Triton kernels compiled for an H100 where there is no GPU, in a process that does not interpret them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_BYTES = 227 * 1024


def compiled(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compile each kernel and say what came out.

    Args:
        kernels: "kernel" (module:name), "signature" (argument → Triton's type, without constants), "constants",
            "options" (num_warps, …); integers named in "even" and all pointers are multiples of 16.

    Returns:
        for each: "wgmma" and "tma" (how many such instructions), "shared" (bytes), "registers", "spilled" (bytes).
    """
    pytest.importorskip("triton", reason="the kernels are in Triton")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    call = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(
        call,
        check=False,
        input=json.dumps(kernels),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _compile(one: dict[str, Any]) -> dict[str, Any]:
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place, _, name = one["kernel"].partition(":")
    kernel = getattr(import_module(place), name)
    signature = {
        arg: "constexpr" if arg in one["constants"] else one["signature"][arg] for arg in kernel.arg_names
    }
    even = {arg for arg, kind in signature.items() if kind.startswith("*")} | set(one.get("even", ()))
    attributes = {(at,): [["tt.divisibility", 16]] for at, arg in enumerate(kernel.arg_names) if arg in even}
    source = ASTSource(kernel, signature, one["constants"], attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=one["options"])
    registers, spilled = _resources(made.asm["cubin"])
    ptx = made.asm["ptx"]
    return {
        "wgmma": ptx.count("wgmma.mma_async"),
        "tma": ptx.count("cp.async.bulk.tensor"),
        "shared": made.metadata.shared,
        "registers": registers,
        "spilled": spilled,
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of its stack, which holds what was spilled."""
    import re
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    assert found, said.stdout
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    print(json.dumps([_compile(one) for one in json.load(sys.stdin)]))
