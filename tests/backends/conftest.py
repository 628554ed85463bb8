"""The CUDA provider faked, for tests of its sessions in several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.fake_onnxruntime import FakeOnnxRuntime, WatchedDriver


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOnnxRuntime]:
    """The fake in place of ONNX Runtime and of the GPU; at the end nothing may be left, or have broken a capture."""
    provider = pytest.importorskip("vitesse.backends.onnxruntime_cuda", exc_type=ImportError)
    driver = WatchedDriver()
    made = FakeOnnxRuntime(driver)
    monkeypatch.setattr(provider, "onnxruntime", made)
    monkeypatch.setattr(provider, "unavailable", lambda: "")
    monkeypatch.setattr(provider, "cuda_driver", lambda device=0: driver)
    yield made
    driver.check_clean()
