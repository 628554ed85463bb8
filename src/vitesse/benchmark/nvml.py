"""What the NVIDIA driver says about a GPU: load, memory, clocks, power, temperature, and why clocks are low.

Read with nvidia-ml-py; this is the one module that imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

from vitesse.backends.closing import Closing
from vitesse.benchmark.sensor import Reading
from vitesse.errors import MissingExtra

# Bits of NVML's "clocks event reasons"; the names are those of `nvidia-smi -q -d PERFORMANCE`.
REASONS: Mapping[int, str] = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
}
# Somebody chose these clocks, or nothing ran: the figures are what this GPU is set to give.
HARMLESS = frozenset({"idle", "application clocks", "display clock setting"})

_UNSUPPORTED = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound)


class GpuSensor(Closing):
    """Reads one GPU. A figure that this GPU or driver does not give is left out; any other failure raises."""

    def __init__(self, device: int) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise MissingExtra(
                f"the NVIDIA driver cannot be asked about GPU {device}: {error}",
                expected="a driver with its management library (libnvidia-ml.so.1)",
                cause="no NVIDIA driver here, or a container without the utility capability",
                fix="nvidia-smi must work; in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            ) from error
        self._open, self._before = True, 0.0
        try:
            self._handle = handle_of(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
            self._before = self._used_mb()
        except pynvml.NVMLError as error:
            self.close()
            raise MissingExtra(
                f"the NVIDIA driver has no GPU {device}: {error}",
                expected="a number that nvidia-smi -L lists, after CUDA_VISIBLE_DEVICES",
                fix="--device N",
            ) from error

    def read(self) -> Reading:
        """Return one sample: percent, MB (1e6 bytes), MHz, watts, °C."""
        figures: dict[str, Callable[[], float]] = {
            "gpu_percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu,
            "gpu_memory_mb": self._used_mb,
            "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_MEM),
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3,
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(
                self._handle, pynvml.NVML_TEMPERATURE_GPU
            ),
        }
        read = {name: _unless_unsupported(figure) for name, figure in figures.items()}
        mask = _unless_unsupported(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        reasons = None if mask is None else names_of(int(mask))
        slowed = () if reasons is None else tuple(name for name in reasons if name not in HARMLESS)
        values = {name: float(value) for name, value in read.items() if value is not None}
        return Reading(
            values, slowed, () if reasons is None else reasons, tells_throttling=reasons is not None
        )

    def own_mb(self) -> float:
        """Return what this process uses, or, where the driver does not say (containers), what the use has grown by.

        The growth counts from the opening of this sensor: open it before the runtime.
        """
        processes = _unless_unsupported(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle))
        own = [one.usedGpuMemory for one in processes or () if one.pid == os.getpid()]
        if own and own[0] is not None:
            return float(own[0]) / 1e6
        return max(0.0, self._used_mb() - self._before)

    def free_mb(self) -> float:
        """Return what is free on the whole GPU."""
        return float(pynvml.nvmlDeviceGetMemoryInfo(self._handle).free) / 1e6

    def close(self) -> None:
        """Let go of the management library."""
        if self._open:
            self._open = False
            pynvml.nvmlShutdown()

    def _used_mb(self) -> float:
        return float(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used) / 1e6


def described_gpus() -> list[dict[str, Any]]:
    """Return name, memory (MB of 1e6 bytes) and driver of each GPU, for the record; never raises."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "memory_mb": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 1e6),
                "driver": driver,
            }
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def names_of(mask: int) -> tuple[str, ...]:
    """Return the reasons in a mask; a bit that is not known here is named by its number, never dropped."""
    known = tuple(name for bit, name in REASONS.items() if mask & bit)
    unknown = mask & ~sum(REASONS)
    return (*known, f"unknown reason {unknown:#x}") if unknown else known


def handle_of(device: int, visible: str | None) -> Any:
    """Return NVML's handle of a CUDA device number.

    CUDA counts among CUDA_VISIBLE_DEVICES, whose entries are numbers or UUIDs; NVML always counts all, in the order of
    the PCI bus. On a machine with unlike GPUs both orders agree only with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    entries = [entry.strip() for entry in (visible or "").split(",") if entry.strip()]
    if device >= len(entries):
        return pynvml.nvmlDeviceGetHandleByIndex(device)
    entry = entries[device]
    if entry.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(entry))
    return pynvml.nvmlDeviceGetHandleByUUID(entry)


def _unless_unsupported(figure: Callable[[], Any]) -> Any:
    try:
        return figure()
    except _UNSUPPORTED:
        return None
