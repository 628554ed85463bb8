"""What a figure was measured on: processor, memory, versions, settings. Recorded beside each number.

No host name, no user name and no path, so that a report can be shown to anyone. Imports no runtime: versions come
from the installed packages' metadata.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

# Instruction sets that decide which kernels a runtime takes; names as in /proc/cpuinfo (x86 and ARM).
_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "bf16",
    "i8mm",
    "sve",
)
_PACKAGES = (
    "vitesse",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx-ir",
    "onnxscript",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "nvidia-ml-py",
    "psutil",
    "torch",
    "transformers",
    "timm",
    "jax",
    "flax",
    "jax2onnx",
    "pillow",
    "pycocotools",
)
# Variables that change threads or arithmetic of the libraries; any other may hold a path or a secret.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "ORT_DISABLE_CPU_AFFINITY",
    "MALLOC_ARENA_MAX",
    "PYTHONHASHSEED",
)


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores this process may keep busy, at least 1.

    The smaller of the affinity mask and the CPU quota of the process's cgroup (version 2 or 1), rounded down: one
    thread more than the quota is throttled. `root` is where /proc and /sys lie.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    quota = _quota(root)
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """Return the environment as plain values for JSON; what cannot be read is None. Never raises for that."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(root),
        "memory_mb": _memory_mb(root),
        "gpus": _gpus(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "container": _container(root),
        "python": platform.python_version(),
        "packages": _versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def stable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the environment decides a measurement's validity: the processors and the versions."""
    return {name: environment.get(name) for name in ("cpu", "gpus", "python", "packages")}


def _gpus() -> list[dict[str, Any]]:
    """Name, memory and driver of each NVIDIA GPU; nothing where there is none, or nvidia-ml-py is not installed."""
    try:
        from vitesse.benchmark.nvml import described_gpus
    except ImportError:
        return []
    return described_gpus()


def _cpu(root: Path) -> dict[str, Any]:
    info = _read(root / "proc/cpuinfo") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    frequency = root / "sys/devices/system/cpu/cpu0/cpufreq"
    return {
        "model": model.group(1).strip() if model else platform.processor() or None,
        "flags": [flag for flag in _FLAGS if flag in present],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(root),
        "virtual": "hypervisor" in present,
        "governor": _read(frequency / "scaling_governor"),
        "max_mhz": _megahertz(_read(frequency / "scaling_max_freq")),
    }


def _megahertz(kilohertz: str | None) -> float | None:
    return int(kilohertz) / 1e3 if kilohertz and kilohertz.isdigit() else None


def _memory_mb(root: Path) -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return round(int(found.group(1)) * 1024 / 1e6) if found else None


def _container(root: Path) -> str | None:
    for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / mark).exists():
            return name
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _quota(root: Path) -> float | None:
    """CPU quota in cores of the innermost cgroup that has one; None when there is no limit."""
    quotas = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _upwards(root / "sys/fs/cgroup", own)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(folder) for folder in _upwards(root / "sys/fs/cgroup" / controllers, own)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(mount: Path, own: str) -> list[Path]:
    """The cgroup's folder and its parents up to the mount; inside a container the mount is often the cgroup."""
    folder = mount / own.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _quota_v2(folder: Path) -> float | None:
    words = (_read(folder / "cpu.max") or "").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota and period and quota.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
