"""What a GPU says is read figure by figure: what it does not have is left out, a lost GPU is an error."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py: pip install 'vitesse[gpu]'")

from vitesse.benchmark import nvml  # noqa: E402
from vitesse.benchmark.watch import THROTTLED, Watch  # noqa: E402
from vitesse.errors import MissingExtra  # noqa: E402


class FakeDriver:
    """The calls of nvidia-ml-py that are used, by dictionary; an exception as a value is raised."""

    def __init__(self, **changes: Any) -> None:
        self.calls: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3_000_000_000, free=7_000_000_000),
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 651_300,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrentClocksEventReasons": 0,
            **changes,
        }
        self.asked: list[tuple[Any, ...]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.calls:
            patch.setattr(pynvml, name, lambda *given, name=name: self._answer(name, given))

    def _answer(self, name: str, given: tuple[Any, ...]) -> Any:
        self.asked.append((name, *given))
        if isinstance(self.calls[name], Exception):
            raise self.calls[name]
        return self.calls[name]


def sensor(patch: pytest.MonkeyPatch, **changes: Any) -> tuple[nvml.GpuSensor, FakeDriver]:
    driver = FakeDriver(**changes)
    driver.install(patch)
    return nvml.GpuSensor(0), driver


def test_figures_have_the_units_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, _ = sensor(monkeypatch)
    assert gpu.read().values == {
        "gpu_percent": 97.0,
        "gpu_memory_mb": 3000.0,
        "sm_mhz": 1980.0,
        "memory_mhz": 1980.0,
        "power_w": 651.3,
        "temperature_c": 61.0,
    }
    assert gpu.free_mb() == 7000.0


@pytest.mark.parametrize(
    ("mask", "reasons", "throttling"),
    [
        (0x000, (), ()),
        (0x001, ("idle",), ()),
        (0x002, ("application clocks",), ()),
        (0x004, ("software power cap",), ("software power cap",)),
        (
            0x048,
            ("hardware slowdown", "hardware thermal slowdown"),
            ("hardware slowdown", "hardware thermal slowdown"),
        ),
        (0x021, ("idle", "software thermal slowdown"), ("software thermal slowdown",)),
        (0x080, ("hardware power brake",), ("hardware power brake",)),
        (0x800, ("unknown reason 0x800",), ("unknown reason 0x800",)),
    ],
)
def test_only_harmless_reasons_are_no_throttling(
    monkeypatch: pytest.MonkeyPatch, mask: int, reasons: tuple[str, ...], throttling: tuple[str, ...]
) -> None:
    gpu, _ = sensor(monkeypatch, nvmlDeviceGetCurrentClocksEventReasons=mask)
    reading = gpu.read()
    assert (reading.reasons, reading.throttling, reading.tells_throttling) == (reasons, throttling, True)


def test_the_bits_are_those_of_the_library() -> None:
    prefix = "nvmlClocksEventReason"
    library = {
        name.removeprefix(prefix): getattr(pynvml, name) for name in dir(pynvml) if name.startswith(prefix)
    }
    expected = {
        "GpuIdle": "idle",
        "ApplicationsClocksSetting": "application clocks",
        "SwPowerCap": "software power cap",
        "HwSlowdown": "hardware slowdown",
        "SyncBoost": "sync boost",
        "SwThermalSlowdown": "software thermal slowdown",
        "HwThermalSlowdown": "hardware thermal slowdown",
        "HwPowerBrakeSlowdown": "hardware power brake",
        "DisplayClockSetting": "display clock setting",
    }
    assert {library[name]: text for name, text in expected.items()} == nvml.REASONS


def test_a_figure_the_gpu_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    gpu, _ = sensor(
        monkeypatch, nvmlDeviceGetUtilizationRates=missing, nvmlDeviceGetCurrentClocksEventReasons=missing
    )
    reading = gpu.read()
    assert "gpu_percent" not in reading.values and "power_w" in reading.values
    assert not reading.tells_throttling


def test_a_lost_gpu_is_an_error_and_not_a_missing_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, _ = sensor(monkeypatch, nvmlDeviceGetPowerUsage=pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST))
    with pytest.raises(pynvml.NVMLError):
        gpu.read()


def test_own_memory_is_this_processes_where_the_driver_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    others = SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=9_000_000_000)
    own = SimpleNamespace(pid=os.getpid(), usedGpuMemory=1_250_000_000)
    gpu, _ = sensor(monkeypatch, nvmlDeviceGetComputeRunningProcesses=[others, own])
    assert gpu.own_mb() == 1250.0


def test_where_processes_are_hidden_own_memory_is_what_was_added_since_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, driver = sensor(monkeypatch)
    assert gpu.own_mb() == 0.0
    driver.calls["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(used=3_400_000_000, free=6_600_000_000)
    assert gpu.own_mb() == 400.0


@pytest.mark.parametrize(
    ("device", "visible", "asked"),
    [
        (1, None, ("nvmlDeviceGetHandleByIndex", 1)),
        (0, "3,1", ("nvmlDeviceGetHandleByIndex", 3)),
        (1, "3,1", ("nvmlDeviceGetHandleByIndex", 1)),
        (0, "GPU-5a1b", ("nvmlDeviceGetHandleByUUID", "GPU-5a1b")),
    ],
)
def test_cuda_counts_among_the_visible_devices(
    monkeypatch: pytest.MonkeyPatch, device: int, visible: str | None, asked: tuple[str, object]
) -> None:
    driver = FakeDriver(nvmlDeviceGetHandleByUUID="by uuid")
    driver.install(monkeypatch)
    nvml.handle_of(device, visible)
    assert driver.asked == [asked]


def test_no_driver_is_a_missing_device_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtra, match="nvidia-smi must work"):
        sensor(monkeypatch, nvmlInit=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))


def test_a_gpu_that_is_not_there_is_named_and_the_library_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(nvmlDeviceGetHandleByIndex=pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT))
    driver.install(monkeypatch)
    with pytest.raises(MissingExtra, match="has no GPU 0"):
        nvml.GpuSensor(0)
    assert driver.asked[-1] == ("nvmlShutdown",)


def test_a_throttled_gpu_marks_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, _ = sensor(monkeypatch, nvmlDeviceGetCurrentClocksEventReasons=0x4)
    with Watch(interval_s=0.01, sensors=lambda: (gpu,)) as watch:
        watch._done.wait(0.1)
    assert (watch.observed().verdict, watch.observed().why) == (THROTTLED, "software power cap")


def test_a_real_gpu_answers() -> None:
    try:
        gpu = nvml.GpuSensor(0)
    except MissingExtra as error:
        pytest.skip(f"no NVIDIA GPU: {error.what}")
    with gpu:
        reading = gpu.read()
        assert reading.values["temperature_c"] > 0
        assert gpu.free_mb() > 0 and gpu.own_mb() >= 0
