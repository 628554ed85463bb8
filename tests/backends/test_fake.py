"""Each fault of the fake is seen from outside, and only from the run it begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny_onnx import FEATURES, linear, linear_in_numpy
from vitesse.backends import backend
from vitesse.backends.fake import FakeBackend, Fault, scaled, shifted, with_nan
from vitesse.backends.protocol import LoadOptions, Tensors
from vitesse.errors import BackendError

X = np.linspace(-1, 1, FEATURES, dtype=np.float32)[None]


def runs(tmp_path: Path, fault: Fault, count: int = 1) -> list[Tensors]:
    fake = FakeBackend(backend("onnxruntime"), fault)
    with fake.load(linear(tmp_path), LoadOptions(threads=1)) as engine, engine.session() as session:
        return [
            {name: array.copy() for name, array in session.run({"x": X}).outputs.items()}
            for _ in range(count)
        ]


def test_scaling_and_shifting_change_the_outputs_by_as_much(tmp_path: Path) -> None:
    right = linear_in_numpy(X)["logits"]
    np.testing.assert_allclose(runs(tmp_path, Fault(scaled(1.5)))[0]["logits"], right * 1.5, rtol=1e-5)
    np.testing.assert_allclose(runs(tmp_path, Fault(shifted(0.25)))[0]["logits"], right + 0.25, rtol=1e-5)


def test_nan_is_put_into_float_outputs(tmp_path: Path) -> None:
    (outputs,) = runs(tmp_path, Fault(with_nan))
    assert np.isnan(outputs["logits"]).sum() == 1


def test_a_fault_begins_with_the_chosen_run(tmp_path: Path) -> None:
    found = runs(tmp_path, Fault(with_nan, after=2), count=4)
    assert [bool(np.isnan(outputs["logits"]).any()) for outputs in found] == [False, False, True, True]


def test_a_crash_is_a_backend_error_with_the_chosen_text(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="device lost"):
        runs(tmp_path, Fault(crash="device lost"))


def test_a_delay_is_in_the_measured_time(tmp_path: Path) -> None:
    fake = FakeBackend(backend("onnxruntime"), Fault(delay_ms=20))
    with fake.load(linear(tmp_path), LoadOptions(threads=1)) as engine, engine.session() as session:
        assert session.run({"x": X}).host_ms >= 20
