"""Where the time of one row goes: kernels by name as the profiler sees them, and the steps of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vitesse.artifact import Artifact

from . import ours
from .models import MODELS
from .peers import Candidate
from .rows import Row

CALLS = 10
# Characters of a kernel's name that are kept: templates of libraries run to thousands.
CUT = 160


def profiled(artifact: Artifact, row: Row, device: str) -> dict[str, Any]:
    """Kernels and steps of a built artifact at a row's shape."""
    images = torch.randn(row.batch, 3, *MODELS[row.model].size, device=device)
    with ours.opened(artifact, images) as candidate:
        return of_candidate(candidate)


def of_candidate(candidate: Candidate) -> dict[str, Any]:
    """Kernels and steps of one that is open."""
    return {"kernels": kernels(candidate), "steps": candidate.steps()}


def kernels(candidate: Candidate) -> list[dict[str, Any]]:
    """Every kernel and copy of a call by name: microseconds and launches a call, share of all; longest first."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        candidate.call()
    on_gpu = candidate.stream is not None
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as watched:
        for _ in range(CALLS):
            candidate.call()
        if on_gpu:
            torch.cuda.synchronize()
    spans: dict[str, list[float]] = {}
    for event in watched.events():
        if on_gpu != (event.device_type == torch.autograd.DeviceType.CUDA):
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spans.setdefault(event.name[:CUT], []).append(spent)
    return summed(spans)


def summed(spans: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Name → microseconds of all launches of CALLS calls, as lines."""
    whole = sum(map(sum, spans.values())) or 1.0
    lines = [
        {
            "kernel": name,
            "us": round(sum(some) / CALLS, 2),
            "launches": round(len(some) / CALLS, 2),
            "share": round(sum(some) / whole, 4),
        }
        for name, some in spans.items()
    ]
    return sorted(lines, key=lambda line: -line["us"])
