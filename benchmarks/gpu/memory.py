"""What this process holds on the GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes that torch has allocated, and that the driver counts for this process: its libraries' own as well."""

    allocated: int
    used: int


def memory(device: torch.device) -> Memory | None:
    """None on the CPU. Where the driver does not tell processes apart, all that is in use on the GPU counts."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    own = _of_process(torch.cuda.get_device_properties(device).uuid)
    return Memory(torch.cuda.memory_allocated(device), total - free if own is None else own)


def _of_process(uuid: object) -> int | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except Exception:  # no package, no driver's library, or a GPU that does not tell
        return None
    return next((one.usedGpuMemory for one in running if one.pid == os.getpid()), None)
