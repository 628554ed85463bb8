"""The environment is described from files that a test can lay out, without names of hosts, users or paths."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vitesse.environment import describe, stable, usable_cores


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "600000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/box\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_usable_cores_obey_the_quota(
    tmp_path: Path, sixteen: None, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(lay(tmp_path, files)) == cores


def test_usable_cores_obey_the_affinity_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"}
    assert usable_cores(lay(tmp_path, files)) == 2


def test_processor_memory_and_clock_are_read(tmp_path: Path) -> None:
    cpuinfo = "model name\t: Some CPU 9000\nflags\t\t: fpu avx avx2 avx512f avx512_vnni amx_int8 hypervisor\n"
    clock = "sys/devices/system/cpu/cpu0/cpufreq"
    root = lay(
        tmp_path,
        {
            "proc/cpuinfo": cpuinfo * 2,
            "proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n",
            f"{clock}/scaling_governor": "powersave\n",
            f"{clock}/scaling_max_freq": "3600000\n",
            ".dockerenv": "",
        },
    )
    found = describe(root)
    assert found["cpu"]["model"] == "Some CPU 9000"
    assert found["cpu"]["flags"] == ["avx", "avx2", "avx512f", "avx512_vnni", "amx_int8"]
    assert found["cpu"]["virtual"] is True
    assert (found["cpu"]["governor"], found["cpu"]["max_mhz"]) == ("powersave", 3600.0)
    assert (found["memory_mb"], found["container"]) == (16384, "docker")


def test_what_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    found = describe(tmp_path)
    assert (found["memory_mb"], found["container"], found["cpu"]["governor"]) == (None, None, None)
    assert found["cpu"]["flags"] == []


def test_gpus_are_recorded_as_nvml_names_them_and_without_it_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = pytest.importorskip("vitesse.benchmark.nvml", reason="nvidia-ml-py is not installed")
    seen = [{"name": "NVIDIA H100 80GB HBM3", "memory_mb": 85520, "driver": "580.159.04"}]
    monkeypatch.setattr(nvml, "described_gpus", lambda: seen)
    assert describe()["gpus"] == seen
    assert stable(describe())["gpus"] == seen
    monkeypatch.setitem(sys.modules, "vitesse.benchmark.nvml", None)
    assert describe()["gpus"] == []


def test_versions_and_thread_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    found = describe()
    assert found["packages"]["onnxruntime"][0].isdigit()
    assert found["variables"]["OMP_NUM_THREADS"] == "3"
    assert "secret" not in json.dumps(found)


def test_nothing_names_the_host_the_user_or_a_path() -> None:
    text = json.dumps(describe())
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    user = getpass.getuser()
    assert f'"{user}"' not in text


def test_describing_loads_no_runtime() -> None:
    code = "import sys, vitesse.environment as e; e.describe(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnx", "onnxruntime", "openvino"} & set(done.stdout.split())
