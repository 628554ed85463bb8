# mypy: allow-untyped-decorators, allow-untyped-calls
"""Programmatic dependent launch: a kernel is started while the one before it ends, and waits for it on the device.

From compute capability 9.0 on. It hides about a microsecond of launching between two kernels of a graph, which is what
a plan for one image mostly consists of. Every kernel says at its start that the next may come, and waits for everything
before it before it touches an activation or an output; constants may be read earlier. Since each waits for its
predecessor to end, a buffer is never written while an earlier kernel reads it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vitesse.backends.torch_cuda.kernels.epilogue import INTERPRETED

CAPABILITY = (9, 0)


def launched_early(device: torch.device) -> dict[str, Any]:
    """Return what a launch on `device` needs for it: DEPENDENT for the kernel, `launch_pdl` where it can be."""
    able = (
        not INTERPRETED and device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    )
    return {"DEPENDENT": True, "launch_pdl": True} if able else {"DEPENDENT": False}


@triton.jit
def let_next_begin(DEPENDENT: tl.constexpr) -> None:
    """Allow the next kernel to be started: it takes what multiprocessors have left, and waits."""
    if DEPENDENT:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(DEPENDENT: tl.constexpr) -> None:
    """Wait until all kernels before this one have ended and what they wrote can be read."""
    if DEPENDENT:
        gdc_wait()
