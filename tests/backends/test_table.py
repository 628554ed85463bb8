"""Naming a runtime loads it; a missing package becomes an error with the pip line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitesse.backends
from vitesse.backends import TABLE, Entry, available, backend, targets
from vitesse.errors import MissingExtra, UsageError


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        backend("tensorflow")
    assert caught.value.what == "unknown backend 'tensorflow'"
    assert caught.value.expected == "one of: onnxruntime, openvino, cuda, tensorrt, tensorrt-rtx, torch-cuda"


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Entry("vitesse.backends.openvino", "OpenVinoBackend", "no_such_package", TABLE["openvino"].pip)
    monkeypatch.setattr(vitesse.backends, "TABLE", {**TABLE, "openvino": absent})
    with pytest.raises(MissingExtra) as caught:
        backend("openvino")
    assert caught.value.fix == "pip install 'vitesse[openvino]'"
    assert caught.value.exit_code == 3


def test_available_says_why_not_and_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        **TABLE,
        "absent": Entry("vitesse.backends.absent", "Absent", "no_such_package", "pip install absent"),
        "broken": Entry("broken_runtime", "Broken", "json", "pip install broken"),
        "odd": Entry("vitesse.backends.feeds", "NoSuchClass", "json", "pip install odd"),
    }
    monkeypatch.setattr(vitesse.backends, "TABLE", table)
    rows = available()
    assert list(rows) == list(table)
    assert rows["onnxruntime"].available
    assert (rows["absent"].reason, rows["absent"].fix) == (
        "no_such_package is not installed",
        "pip install absent",
    )
    assert "installed but does not load: No module named 'broken_runtime'" in rows["broken"].reason
    assert rows["broken"].fix == "pip install --force-reinstall broken"
    assert rows["odd"].reason.startswith("AttributeError")
    assert not any(rows[name].available for name in ("absent", "broken", "odd"))


def test_targets_expand_to_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert targets("cpu")[0] == "onnxruntime"
    assert targets("openvino") == ("openvino",)
    absent = Entry("vitesse.backends.openvino", "OpenVinoBackend", "no_such_package", "pip install x")
    monkeypatch.setattr(vitesse.backends, "TABLE", {**TABLE, "openvino": absent})
    assert targets("cpu") == ("onnxruntime",)


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        targets("gpu")
    assert caught.value.what == "unknown target 'gpu'"
    assert (
        caught.value.expected
        == "one of: cpu, onnxruntime, openvino, cuda, tensorrt, tensorrt-rtx, torch-cuda"
    )


def test_every_target_names_backends_of_the_table() -> None:
    assert {name for names in vitesse.backends.TARGETS.values() for name in names} <= set(TABLE)


def imports_of(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.home()
    )
    return set(done.stdout.split())


def test_listing_backends_loads_no_runtime() -> None:
    loaded = imports_of("import vitesse.backends\nvitesse.backends.targets('cpu')")
    assert not loaded & {"onnxruntime", "openvino", "onnx", "numpy"}
    assert "onnxruntime" in imports_of("import vitesse.backends\nvitesse.backends.backend('onnxruntime')")


def test_deploying_on_onnxruntime_loads_no_optional_package() -> None:
    loaded = imports_of("import vitesse.backends\nvitesse.backends.backend('onnxruntime')")
    assert not loaded & {"onnx_ir", "onnxscript", "openvino", "rich", "jinja2", "psutil", "torch"}
