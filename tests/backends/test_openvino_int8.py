"""OpenVINO's own INT8, where NNCF is installed; without it, the error has the pip line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tiny_onnx import FEATURES, as_artifact, linear, linear_in_numpy
from vitesse.artifact import Store
from vitesse.backends import backend, quantizer
from vitesse.backends.protocol import LoadOptions, Tensors
from vitesse.errors import BackendError, DataError, MissingExtra, UsageError

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="needs nncf: vitesse[openvino-int8]")


class Stream:
    """Calibration inputs that are made anew in each pass; counts how many exist at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensors]:
        for seed in range(self.count):
            x = np.random.default_rng(seed).standard_normal((1, FEATURES)).astype(np.float32)
            yield {"x": x}


@pytest.mark.skipif(find_spec("nncf") is not None, reason="nncf is installed")
def test_without_nncf_the_error_has_the_pip_line() -> None:
    with pytest.raises(MissingExtra) as caught:
        quantizer("openvino")
    assert caught.value.what == "nncf is not installed"
    assert caught.value.fix == "pip install 'vitesse[openvino-int8]'"


def test_a_runtime_without_its_own_int8_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        quantizer("onnxruntime")
    assert caught.value.what == "the backend 'onnxruntime' has no quantiser of its own"


@needs_nncf
def test_the_quantised_model_is_close_but_not_equal_and_one_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "artifacts")
    built = quantizer("openvino")(linear(tmp_path), store, Stream(20), images=20)
    assert capfd.readouterr().out == ""
    assert os.environ["NNCF_CI"]
    assert built.changes["FakeQuantize"] > 0
    assert built.artifact.backend == "openvino"
    built.artifact.check()
    (first, *_) = Stream(1)
    expected = linear_in_numpy(first["x"])["logits"]
    with (
        backend("openvino").load(built.artifact, LoadOptions(threads=1)) as engine,
        engine.session() as session,
    ):
        assert [info.name for info in engine.outputs] == ["logits", "total"]
        logits = session.run(first).outputs["logits"]
        assert session.run({"x": np.repeat(first["x"], 3, axis=0)}).outputs["logits"].shape == (3, 3)
    np.testing.assert_allclose(logits, expected, atol=0.1)
    assert np.abs(logits - expected).max() > 1e-6


def test_packing_a_model_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from vitesse.backends.openvino_ir import pack_ir

    model = openvino.Core().read_model(linear(tmp_path).path)
    assert pack_ir(model) == pack_ir(model)


@needs_nncf
def test_ignored_nodes_stay_in_float(tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    free = quantizer("openvino")(linear(tmp_path), store, Stream(5))
    bound = quantizer("openvino")(linear(tmp_path), store, Stream(5), ignored=["/head/MatMul"])
    assert bound.changes["FakeQuantize"] < free.changes["FakeQuantize"]
    with pytest.raises(BackendError, match="/no/such/node") as caught:
        quantizer("openvino")(linear(tmp_path), store, Stream(5), ignored=["/no/such/node"])
    assert caught.value.cause == "a node to ignore that is not in the graph"


@needs_nncf
def test_a_generator_and_an_empty_stream_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    with pytest.raises(DataError, match="can be read only once"):
        quantizer("openvino")(linear(tmp_path), store, iter(Stream(5)))
    with pytest.raises(DataError, match="nothing to calibrate on"):
        quantizer("openvino")(linear(tmp_path), store, Stream(0))


def test_a_damaged_packed_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    for content in (b"", b"PK\x03\x04 cut off"):
        path = tmp_path / "int8.openvino"
        path.write_bytes(content)
        with pytest.raises(BackendError) as caught:
            backend("openvino").load(as_artifact(path))
        assert caught.value.cause == "the file is truncated or damaged, or is something else"
