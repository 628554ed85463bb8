"""The CUDA provider's sessions on a fake of it: right answers from bound addresses, graphs and arrays in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from backends.cuda_sessions import FEATURES, affine, check, opened, provider, rows
from backends.fake_onnxruntime import REFUSES_GRAPHS, FakeOnnxRuntime, WatchedDriver
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact
from vitesse.backends.cuda.arrays import DeviceArray
from vitesse.backends.cuda.driver import CudaError
from vitesse.backends.cuda.stream import Stream
from vitesse.backends.onnxruntime_cuda_session import MOST_GRAPHS
from vitesse.backends.protocol import LoadOptions
from vitesse.errors import BackendError, DataError

MOST_BINDINGS = 64


# Answers, whatever the batch


def test_every_batch_is_answered_also_when_the_buffers_grow(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for seed, count in enumerate([1, 1, 1, 3, 2, 8, 1, 500, 1, 8, 3, 500, 1]):
            check(session, count, seed)
    assert fake_cuda.driver.captures >= 5, "graphs were on"


def test_a_graph_is_captured_once_and_replayed(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(10):
            check(session, 2, seed)
        # The first run learns the shapes of the outputs, where the runtime allocates them.
        assert fake_cuda.latest.ran == ["-1", *["1"] * 10]
        assert (session.graphs, fake_cuda.driver.captures) == (1, 1)


def test_after_growing_no_graph_with_an_old_address_is_replayed(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(3):
            check(session, 1, seed)
        check(session, 1000)
        before = fake_cuda.driver.captures
        for seed in range(3, 6):
            check(session, 1, seed)
        assert fake_cuda.driver.captures == before + 1, "captured anew where the tensors are now"


def test_device_time_is_that_of_the_kernels_and_part_of_the_whole(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for _ in range(3):
            outcome = session.run({"x": rows(2)})
        assert outcome.device_ms == 1.0, "one thing ran between the events: the graph, and no copy"
        assert outcome.host_ms > 0


def test_what_does_not_fit_the_graph_is_refused_before_anything_is_enqueued(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        with pytest.raises(DataError, match="dtype float64"):
            session.run({"x": rows(1).astype(np.float64)})
        assert fake_cuda.latest.ran == []
        check(session, 1)


# Bounds


def test_a_bounded_number_of_shapes_is_captured_and_the_rest_run_without(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    sizes = range(MOST_GRAPHS + 6, 0, -1)  # the largest first, so that nothing moves
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(2):
            for count in sizes:
                check(session, count, seed)
        assert session.graphs == fake_cuda.driver.captures == MOST_GRAPHS
        ran = fake_cuda.latest.ran
        assert set(ran) == {"-1", *(str(number) for number in range(1, MOST_GRAPHS + 1))}
        # In the second round nothing is learnt any more: six shapes ran without a graph.
        assert ran[-len(sizes) :].count("-1") == 6


def test_bindings_are_bounded_and_a_shape_forgotten_keeps_its_graph(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        check(session, 200)
        for count in range(150, 0, -1):
            check(session, count)
            assert len(fake_cuda.latest.bindings) <= MOST_BINDINGS + 1  # one more where shapes are learnt
        captured = fake_cuda.driver.captures
        check(session, 200, 1)
        assert fake_cuda.latest.ran[-1] == "1"
        assert fake_cuda.driver.captures == captured


# Graphs that are not captured


def test_it_is_said_why_nothing_is_captured(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        assert session.without_graph == ""
    with opened(tmp_path, cuda_graph=False) as engine, engine.session() as session:
        assert session.without_graph == "switched off"
        check(session, 2)
        assert fake_cuda.settings[-1]["enable_cuda_graph"] == "0"
    fake_cuda.cpu_nodes = True
    with opened(tmp_path) as engine, engine.session() as session:
        assert session.without_graph == "an operator of the graph has no CUDA kernel"
        assert [one["enable_cuda_graph"] for one in fake_cuda.settings[-2:]] == ["1", "0"]
        check(session, 2)
        assert session.graphs == 0
    assert fake_cuda.driver.captures == 0
    assert "cannot use the graph capture" in REFUSES_GRAPHS


@pytest.fixture
def searching(tmp_path: Path) -> Artifact:
    """Where x is above zero; how many places that is depends on values."""
    body = "zero = Sub (one, one) above = Greater (x, zero) y = NonZero (above)"
    return affine(tmp_path, body, "int64[2,M] y")


def test_outputs_as_long_as_the_values_say_are_copied_and_never_captured(
    fake_cuda: FakeOnnxRuntime, searching: Artifact
) -> None:
    with provider.OnnxRuntimeCudaBackend().load(searching) as engine, engine.session() as session:
        assert session.without_graph == "NonZero: how much it gives depends on values"
        for seed in range(5):
            x = rows(3, seed)
            outcome = session.run({"x": x})
            np.testing.assert_array_equal(outcome.outputs["y"], np.nonzero(x > 0))
            assert outcome.device_ms == 1.0
        assert set(fake_cuda.latest.ran) == {"-1"}
        at = DeviceArray(1 << 20, (1, FEATURES), np.dtype(np.float32), 1, 0, None, fake_cuda.driver)
        with pytest.raises(BackendError, match="have no size before they are there") as refused:
            session.run_on_device({"x": at})
        assert refused.value.cause == "the graph has a NonZero"
        assert "session.run(feeds)" in refused.value.fix


def test_such_an_operator_is_found_inside_a_function_of_the_model(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N,4] x) => (int64[2,M] y) { y = own.places (x) }
        <domain: "own", opset_import: ["": 17]> places (v) => (p) { p = NonZero (v) }"""
    path = tmp_path / "function.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with provider.OnnxRuntimeCudaBackend().load(as_artifact(path)) as engine, engine.session() as session:
        assert session.without_graph.startswith("NonZero")
        assert session.run({"x": np.eye(4, dtype=np.float32)}).outputs["y"].shape == (2, 4)


def test_such_an_output_bound_to_a_fixed_buffer_is_refused_as_on_a_gpu(
    fake_cuda: FakeOnnxRuntime, searching: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "_VALUES_DECIDE", frozenset())
    with (
        provider.OnnxRuntimeCudaBackend().load(searching, LoadOptions(cuda_graph=False)) as engine,
        engine.session() as session,
    ):
        session.run({"x": np.ones((3, FEATURES), np.float32)})
        with pytest.raises(BackendError, match=r"y is \(2, 0\); a buffer of \(2, 12\) is bound"):
            session.run({"x": np.zeros((3, FEATURES), np.float32)})


# Zero copy


class OnDevice:
    """An input in memory of its own, written on a stream of its own."""

    def __init__(self, driver: WatchedDriver, count: int) -> None:
        self.driver, self.count = driver, count
        self.address = driver.malloc(count * FEATURES * 4)
        self.stream = Stream(driver)

    def array(self, seed: int) -> DeviceArray:
        """The values of `rows`, enqueued and not waited for."""
        content = rows(self.count, seed).tobytes()
        self.driver.kernel(self.stream.handle, lambda: self.driver.poke(self.address, content))
        dtype = np.dtype(np.float32)
        return DeviceArray(
            self.address, (self.count, FEATURES), dtype, self.stream.handle, 0, self, self.driver
        )

    def close(self) -> None:
        self.stream.close()
        self.driver.free(self.address)


def read(driver: WatchedDriver, array: DeviceArray) -> np.ndarray[Any, Any]:
    return np.frombuffer(driver.peek(array.address, array.nbytes), array.dtype).reshape(array.shape)


def test_arrays_on_the_device_are_read_in_place_and_outputs_stay_there(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    given = OnDevice(fake_cuda.driver, 3)
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(4):
            copies = fake_cuda.driver.allocations
            y = session.run_on_device({"x": given.array(seed)})["y"]
            assert (y.shape, y.dtype, y.owner) == ((3, FEATURES), np.float32, session)
            if seed:
                assert fake_cuda.driver.allocations == copies, "nothing is copied anywhere"
            session.synchronize()
            np.testing.assert_allclose(read(fake_cuda.driver, y), 2 * rows(3, seed) + 1, rtol=1e-6)
        # One graph reads where the caller's array lies, and is replayed as long as it lies there.
        assert (session.graphs, fake_cuda.latest.ran) == (1, ["-1", "1", "1", "1", "1"])
        bound = [binding.inputs["x"].address for binding in fake_cuda.latest.bindings]
        assert set(bound) == {given.address}
        check(session, 3)
    given.close()


def test_a_session_closes_behind_work_that_nobody_waited_for(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    """Its graph still runs: destroying it then would be a misuse that the fake of CUDA writes down."""
    given = OnDevice(fake_cuda.driver, 2)
    with opened(tmp_path) as engine:
        session = engine.session()
        for seed in range(3):
            session.run_on_device({"x": given.array(seed)})
        session.close()
    given.close()


def test_arrays_of_another_gpu_or_of_the_host_are_refused(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        there = DeviceArray(1 << 20, (1, FEATURES), np.dtype(np.float32), 1, 3, None, fake_cuda.driver)
        with pytest.raises(CudaError, match="the array is on GPU 3"):
            session.run_on_device({"x": there})
        with pytest.raises(CudaError, match="the array is in host memory"):
            session.run_on_device({"x": rows(1)})
