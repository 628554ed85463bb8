"""The device that a plan runs on: what it is, which versions made its kernels, how exactly it multiplies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from threading import local

import torch

from vitesse._version import __version__
from vitesse.backends.torch_cuda.candidates import DeviceFacts

# Below, tensor cores and torch's own kernels are missing.
LEAST_CAPABILITY = (7, 0)
# cuBLASLt has no version that torch tells; the package that brings it has, under a name for each CUDA release.
_CUBLAS_PACKAGES = ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12")

_bound = local()


def device_of(kind: str, number: int = 0) -> torch.device:
    """Return the GPU of a number, or the CPU, where plans run the plain functions of steps: for tests alone."""
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", number)


def facts_of(device: torch.device) -> DeviceFacts:
    """Describe a device to the kernels; the CPU has capability (0, 0)."""
    if device.type != "cuda":
        return DeviceFacts((0, 0), 1, "CPU")
    found = torch.cuda.get_device_properties(device)
    return DeviceFacts((found.major, found.minor), found.multi_processor_count, found.name)


def versions(device: torch.device) -> dict[str, str]:
    """Return what measured tactics and compiled kernels depend on, by name; "" = not here.

    "gpu" is the device's name, "capability" such as "9.0", "driver" the CUDA version that it is for.
    """
    facts = facts_of(device)
    return {
        "vitesse": __version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda or "",
        "cublas": next(filter(None, map(_version, _CUBLAS_PACKAGES)), ""),
        "cudnn": str(torch.backends.cudnn.version() or "")  # type: ignore[no-untyped-call]
        if device.type == "cuda"
        else "",
        "cudnn_frontend": _version("nvidia-cudnn-frontend"),
        "nvmath": _version("nvmath-python"),
        "gpu": facts.name,
        "capability": ".".join(map(str, facts.capability)),
        "driver": _driver(device),
    }


def differences(made: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, ...]:
    """Say what differs between the machine of a build and this one, one sentence each: `torch 2.10.0, here 2.11.0`."""
    return tuple(
        f"{name} {made.get(name) or 'absent'}, here {here.get(name) or 'absent'}"
        for name in dict.fromkeys((*made, *here))
        if made.get(name, "") != here.get(name, "")
    )


@contextmanager
def working_on(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one of this thread, its context bound, with gradients off; on the CPU the last alone."""
    if device.type != "cuda":
        with torch.no_grad():
            yield
        return
    with torch.cuda.device(device), torch.no_grad():
        bind(device)
        yield


def bind(device: torch.device) -> None:
    """Bind the context of a GPU to this thread, once: driver calls, such as those for TMA descriptors, need one.

    A new thread has none until its first call of the CUDA runtime, and to make device 0 the current one, which it is
    already, is no such call.
    """
    known: set[torch.device] = _bound.__dict__.setdefault("devices", set())
    if device not in known:
        torch.cuda.current_stream(device).query()
        known.add(device)


@contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Let torch's float32 products and convolutions use TF32, or not; the switches belong to the whole process."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    matrices.allow_tf32 = convolutions.allow_tf32 = tf32
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def free_bytes(device: torch.device) -> int:
    """Return the memory of a GPU that is free, that which torch keeps for reuse counted in; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _driver(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    # Imported here because the CUDA packages are needed for this one line only.
    from vitesse.backends.tensorrt.fitness import current_device

    found, _ = current_device(device.index or 0)
    return ".".join(map(str, found.driver_version)) if found else ""
