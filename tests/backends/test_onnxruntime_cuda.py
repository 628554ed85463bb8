"""The CUDA provider's sessions on a fake of it: bound addresses, graphs for each thread, nothing beside a capture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from backends.fake_onnxruntime import CUDA, REFUSES_GRAPHS, FakeOnnxRuntime, WatchedDriver
from fusing import graph
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact
from vitesse.backends.cuda.arrays import DeviceArray
from vitesse.backends.cuda.captures import TURNS, Turns
from vitesse.backends.cuda.driver import CudaError
from vitesse.backends.cuda.stream import Stream
from vitesse.backends.onnxruntime import OnnxRuntimeEngine
from vitesse.backends.onnxruntime_cuda_session import MOST_GRAPHS
from vitesse.backends.protocol import LoadOptions
from vitesse.errors import BackendError, DataError

provider = pytest.importorskip("vitesse.backends.onnxruntime_cuda", exc_type=ImportError)
FEATURES = 4
MOST_BINDINGS = 64


@pytest.fixture
def driver() -> Iterator[WatchedDriver]:
    made = WatchedDriver()
    yield made
    made.check_clean()


@pytest.fixture
def runtime(driver: WatchedDriver, monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    """The fake in place of ONNX Runtime and of the GPU."""
    made = FakeOnnxRuntime(driver)
    monkeypatch.setattr(provider, "onnxruntime", made)
    monkeypatch.setattr(provider, "unavailable", lambda: "")
    monkeypatch.setattr(provider, "cuda_driver", lambda device=0: driver)
    return made


def affine(folder: Path, body: str = "d = Mul (x, two) y = Add (d, one)", outputs: str = "") -> Artifact:
    """y = 2 x + 1 for x float32 (N, 4), unless told otherwise."""
    path = folder / "affine.onnx"
    model = graph(body, f"float[N,{FEATURES}] x", outputs or f"float[N,{FEATURES}] y", two=2.0, one=1.0)
    path.write_bytes(model.SerializeToString())
    return as_artifact(path)


def opened(folder: Path, **options: Any) -> Any:
    return provider.OnnxRuntimeCudaBackend().load(affine(folder), LoadOptions(**options))


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def check(session: Any, count: int, seed: int = 0) -> None:
    x = rows(count, seed)
    np.testing.assert_allclose(session.run({"x": x}).outputs["y"], 2 * x + 1, rtol=1e-6, err_msg=f"{count}")


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once; what one raises is raised here, without the frames that hold a session."""
    failed: list[str] = []

    def watched(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=watched, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "waits for ever"
    assert not failed, failed


# Answers, whatever the batch


def test_every_batch_is_answered_also_when_the_buffers_grow(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for seed, count in enumerate([1, 1, 1, 3, 2, 8, 1, 500, 1, 8, 3, 500, 1]):
            check(session, count, seed)
    assert runtime.driver.captures >= 5, "graphs were on"


def test_a_graph_is_captured_once_and_replayed(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(10):
            check(session, 2, seed)
        # The first run learns the shapes of the outputs, where the runtime allocates them.
        assert runtime.latest.ran == ["-1", *["1"] * 10]
        assert (session.graphs, runtime.driver.captures) == (1, 1)


def test_after_growing_no_graph_with_an_old_address_is_replayed(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(3):
            check(session, 1, seed)
        check(session, 1000)
        before = runtime.driver.captures
        for seed in range(3, 6):
            check(session, 1, seed)
        assert runtime.driver.captures == before + 1, "captured anew where the tensors are now"


def test_device_time_is_that_of_the_kernels_and_part_of_the_whole(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        for _ in range(3):
            outcome = session.run({"x": rows(2)})
        assert outcome.device_ms == 1.0, "one thing ran between the events: the graph, and no copy"
        assert outcome.host_ms > 0


def test_what_does_not_fit_the_graph_is_refused_before_anything_is_enqueued(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        with pytest.raises(DataError, match="dtype float64"):
            session.run({"x": rows(1).astype(np.float64)})
        assert runtime.latest.ran == []
        check(session, 1)


# Bounds


def test_a_bounded_number_of_shapes_is_captured_and_the_rest_run_without(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    sizes = range(MOST_GRAPHS + 6, 0, -1)  # the largest first, so that nothing moves
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(2):
            for count in sizes:
                check(session, count, seed)
        assert session.graphs == runtime.driver.captures == MOST_GRAPHS
        ran = runtime.latest.ran
        assert set(ran) == {"-1", *(str(number) for number in range(1, MOST_GRAPHS + 1))}
        # In the second round nothing is learnt any more: six shapes ran without a graph.
        assert ran[-len(sizes) :].count("-1") == 6


def test_bindings_are_bounded_and_a_shape_forgotten_keeps_its_graph(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        check(session, 200)
        for count in range(150, 0, -1):
            check(session, count)
            assert len(runtime.latest.bindings) <= MOST_BINDINGS + 1  # one more where shapes are learnt
        captured = runtime.driver.captures
        check(session, 200, 1)
        assert runtime.latest.ran[-1] == "1"
        assert runtime.driver.captures == captured


# Threads


def test_two_sessions_on_two_threads_capture_alone(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as first, engine.session() as second:

        def work(session: Any, sizes: tuple[int, ...]) -> None:
            for turn in range(200):
                check(session, sizes[turn * len(sizes) // 200], turn)

        in_threads(lambda: work(first, (1, 4, 2, 9, 3)), lambda: work(second, (2, 3, 50, 1)))
    assert runtime.driver.captures == 9


def test_a_session_warmed_up_here_and_used_on_another_thread_captures_alone_there(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as first, engine.session() as second:
        for session in (first, second):
            check(session, 1)
        both = threading.Barrier(2)

        def work(session: Any) -> None:
            both.wait()
            for turn in range(200):
                check(session, 1, turn)

        in_threads(lambda: work(first), lambda: work(second))
        assert runtime.driver.captures == 4, "one for each session on each thread"


def test_nothing_else_of_a_session_falls_into_a_capture(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    """While one session captures again and again, others are opened, grow, wait, close, and outputs are let go."""
    with opened(tmp_path) as busy, busy.session() as capturing:

        def capture() -> None:
            for count in range(MOST_GRAPHS, 0, -1):
                check(capturing, count)

        def come_and_go() -> None:
            for _ in range(12):
                with opened(tmp_path, cuda_graph=False) as engine, engine.session() as session:
                    kept = session.run({"x": rows(1)}).outputs["y"]
                    check(session, 300)
                    session.synchronize()
                    del kept  # the page-locked memory that it showed is freed here
                    at = runtime_array(session, runtime)
                    session.run_on_device({"x": at})

        in_threads(capture, come_and_go)
    assert runtime.driver.captures == MOST_GRAPHS


def runtime_array(session: Any, runtime: FakeOnnxRuntime) -> DeviceArray:
    """The session's own output as an input; making it asks for nothing of CUDA."""
    return DeviceArray(
        session._buffers.device("y"),
        (1, FEATURES),
        np.dtype(np.float32),
        session._stream.handle,
        0,
        session,
        runtime.driver,
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda engine, session: engine.session(),
        lambda engine, session: check(session, 1),
        lambda engine, session: check(session, 300),
        lambda engine, session: session.synchronize(),
        lambda engine, session: session.close(),
        lambda engine, session: engine.close(),
    ],
    ids=["open", "replay", "capture", "wait", "close", "close the engine"],
)
def test_whatever_a_session_does_waits_for_the_end_of_a_capture(
    runtime: FakeOnnxRuntime, tmp_path: Path, use: Callable[[Any, Any], object], request: Any
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        check(session, 1)
        if request.node.callspec.id == "close the engine":
            session.close()  # so that its pools alone are left
        thread = threading.Thread(target=use, args=(engine, session), daemon=True)
        with TURNS.capturing(), runtime.driver.alone():
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
            assert not runtime.driver.overlaps
        thread.join(10)
        assert not thread.is_alive()


def test_a_page_locked_view_let_go_during_a_capture_is_freed_behind_it(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        view = session.run({"x": rows(1)}).outputs["y"]
        check(session, 1000)  # the output moves; `view` still shows the old memory
        held = runtime.driver.held()["host memory"]
        with TURNS.capturing():
            del view
            assert runtime.driver.held()["host memory"] == held
        assert runtime.driver.held()["host memory"] == held - 1


def test_the_first_session_is_given_to_one_thread_only(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        given: list[Any] = []
        in_threads(*[lambda: given.append(engine.session())] * 4)
        assert len({id(session) for session in given}) == 4
        assert len(runtime.made) == 4, "the one that was opened with the file is used"


# The fake itself: it must catch what it is there for


def test_the_fake_breaks_a_capture_beside_which_another_thread_allocates(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    stop = threading.Event()

    def allocate() -> None:
        while not stop.is_set():
            runtime.driver.free(runtime.driver.malloc(8))

    with opened(tmp_path) as engine, engine.session() as session:
        thread = threading.Thread(target=allocate, daemon=True)
        thread.start()
        try:
            with pytest.raises(BackendError, match="CUDA failure 901"):
                session.run({"x": rows(1)})
        finally:
            stop.set()
            thread.join(10)
        assert runtime.driver.overlaps
        check(session, 1)  # a broken capture is tried again
    runtime.driver.overlaps.clear()


def test_the_fake_replays_old_addresses_where_a_number_is_used_for_other_ones(
    runtime: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider.OnnxRuntimeCudaSession, "_graph_of", lambda self, key: "1")
    with opened(tmp_path) as engine, engine.session() as session:
        check(session, 1)
        with pytest.raises(AssertionError, match="Mismatched elements"):
            check(session, 1000)


# Graphs that are not captured


def test_it_is_said_why_nothing_is_captured(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        assert session.without_graph == ""
    with opened(tmp_path, cuda_graph=False) as engine, engine.session() as session:
        assert session.without_graph == "switched off"
        check(session, 2)
        assert runtime.settings[-1]["enable_cuda_graph"] == "0"
    runtime.cpu_nodes = True
    with opened(tmp_path) as engine, engine.session() as session:
        assert session.without_graph == "an operator of the graph has no CUDA kernel"
        assert [one["enable_cuda_graph"] for one in runtime.settings[-2:]] == ["1", "0"]
        check(session, 2)
        assert session.graphs == 0
    assert runtime.driver.captures == 0
    assert "cannot use the graph capture" in REFUSES_GRAPHS


@pytest.fixture
def searching(tmp_path: Path) -> Artifact:
    """Where x is above zero; how many places that is depends on values."""
    body = "zero = Sub (one, one) above = Greater (x, zero) y = NonZero (above)"
    return affine(tmp_path, body, "int64[2,M] y")


def test_outputs_as_long_as_the_values_say_are_copied_and_never_captured(
    runtime: FakeOnnxRuntime, searching: Artifact
) -> None:
    with provider.OnnxRuntimeCudaBackend().load(searching) as engine, engine.session() as session:
        assert session.without_graph == "NonZero: how much it gives depends on values"
        for seed in range(5):
            x = rows(3, seed)
            outcome = session.run({"x": x})
            np.testing.assert_array_equal(outcome.outputs["y"], np.nonzero(x > 0))
            assert outcome.device_ms == 1.0
        assert set(runtime.latest.ran) == {"-1"}
        at = DeviceArray(1 << 20, (1, FEATURES), np.dtype(np.float32), 1, 0, None, runtime.driver)
        with pytest.raises(BackendError, match="have no size before they are there") as refused:
            session.run_on_device({"x": at})
        assert refused.value.cause == "the graph has a NonZero"
        assert "session.run(feeds)" in refused.value.fix


def test_such_an_operator_is_found_inside_a_function_of_the_model(
    runtime: FakeOnnxRuntime, tmp_path: Path
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
    runtime: FakeOnnxRuntime, searching: Artifact, monkeypatch: pytest.MonkeyPatch
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
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    given = OnDevice(runtime.driver, 3)
    with opened(tmp_path) as engine, engine.session() as session:
        for seed in range(4):
            copies = runtime.driver.allocations
            y = session.run_on_device({"x": given.array(seed)})["y"]
            assert (y.shape, y.dtype, y.owner) == ((3, FEATURES), np.float32, session)
            if seed:
                assert runtime.driver.allocations == copies, "nothing is copied anywhere"
            session.synchronize()
            np.testing.assert_allclose(read(runtime.driver, y), 2 * rows(3, seed) + 1, rtol=1e-6)
        # One graph reads where the caller's array lies, and is replayed as long as it lies there.
        assert (session.graphs, runtime.latest.ran) == (1, ["-1", "1", "1", "1", "1"])
        bound = [binding.inputs["x"].address for binding in runtime.latest.bindings]
        assert set(bound) == {given.address}
        check(session, 3)
    given.close()


def test_a_session_closes_behind_work_that_nobody_waited_for(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    """Its graph still runs: destroying it then would be a misuse that the fake of CUDA writes down."""
    given = OnDevice(runtime.driver, 2)
    with opened(tmp_path) as engine:
        session = engine.session()
        for seed in range(3):
            session.run_on_device({"x": given.array(seed)})
        session.close()
    given.close()


def test_arrays_of_another_gpu_or_of_the_host_are_refused(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        there = DeviceArray(1 << 20, (1, FEATURES), np.dtype(np.float32), 1, 3, None, runtime.driver)
        with pytest.raises(CudaError, match="the array is on GPU 3"):
            session.run_on_device({"x": there})
        with pytest.raises(CudaError, match="the array is in host memory"):
            session.run_on_device({"x": rows(1)})


# Opening and closing


def test_closed_sessions_and_engines_say_so(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    engine = opened(tmp_path)
    session, other = engine.session(), engine.session()
    session.close()
    session.close()
    for use in (session.run, session.run_on_device):
        with pytest.raises(BackendError, match="this session is closed"):
            use({"x": rows(1)})
    with pytest.raises(BackendError, match="this session is closed"):
        session.synchronize()
    check(other, 1)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="this engine is closed"):
        other.run({"x": rows(1)})
    with pytest.raises(BackendError, match="this engine is closed"):
        engine.session()


def test_an_engine_that_closes_before_its_sessions_leaves_nothing_behind(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    engine = opened(tmp_path)
    sessions = [engine.session() for _ in range(3)]
    for session in sessions:
        check(session, 2)
    kept = sessions[0].run({"x": rows(2)}).outputs["y"]
    engine.close()
    assert runtime.driver.held() == {"host memory": 1}, "what the view shows, and nothing else"
    np.testing.assert_allclose(kept, 2 * rows(2) + 1, rtol=1e-6)
    for session in sessions:
        session.close()


def test_an_engine_that_was_never_asked_for_a_session_leaves_nothing_behind(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    opened(tmp_path).close()
    assert len(runtime.made) == 1


def test_a_file_that_does_not_load_leaves_no_stream_behind(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match="while loading it") as refused:
        provider.OnnxRuntimeCudaBackend().load(as_artifact(tmp_path / "damaged.onnx"))
    assert "truncated or damaged" in refused.value.cause
    assert not runtime.driver.held()


def test_tensors_that_cannot_be_fed_are_refused_and_leave_nothing_behind(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    path = tmp_path / "words.onnx"
    path.write_bytes(graph("y = Identity (x)", "string[N] x", "string[N] y").SerializeToString())
    with pytest.raises(BackendError, match=r"'x' of .*words.onnx is a tensor\(string\)"):
        provider.OnnxRuntimeCudaBackend().load(as_artifact(path))
    assert not runtime.driver.held()


def test_a_provider_that_fell_back_to_the_cpu_is_refused(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    runtime.falls_back = True
    for options in ({}, {"plain": True}):
        with pytest.raises(BackendError, match=r"runs the graph by its CPUExecutionProvider") as refused:
            opened(tmp_path, **options)
        assert refused.value.expected == f"the {CUDA}"
        assert "libraries were not found" in refused.value.cause
        assert "onnxruntime-gpu[cuda,cudnn]" in refused.value.fix
        assert not runtime.driver.held()


# Options


def test_options_reach_the_provider(
    runtime: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.driver.device = replace(runtime.driver.device, number=2)
    asked: list[int] = []
    monkeypatch.setattr(provider, "cuda_driver", lambda device=0: asked.append(device) or runtime.driver)
    with opened(tmp_path, device=2, memory_bytes=4096, tf32=False) as engine, engine.session() as session:
        settings = runtime.settings[-1]
        assert settings == {
            "device_id": "2",
            "user_compute_stream": str(session._stream.handle),
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "enable_cuda_graph": "1",
            "gpu_mem_limit": "4096",
        }
        check(session, 1)
        with pytest.raises(BackendError, match=r"would pass the cap of 4,096 bytes"):
            session.run({"x": rows(200)})
        check(session, 1, 1)
    with opened(tmp_path, device=2, plain=True):
        assert runtime.settings[-1] == {"device_id": "2"}, "nothing but where it is"
    with opened(tmp_path):
        assert runtime.settings[-1]["use_tf32"] == "1"
        assert "gpu_mem_limit" not in runtime.settings[-1]
    assert asked == [2, 2, 0]


def test_the_plain_baseline_takes_and_gives_numpy_arrays(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path, plain=True) as engine, engine.session() as session:
        assert isinstance(engine, OnnxRuntimeEngine)
        check(session, 2)


def test_the_reference_is_computed_on_the_cpu(runtime: FakeOnnxRuntime, tmp_path: Path) -> None:
    for options in ({"reference": True}, {"emulate": True}):
        with opened(tmp_path, **options) as engine, engine.session() as session:
            check(session, 2)
    assert not runtime.made


# What is said where nothing can run


def test_a_build_without_the_provider_is_named_with_the_way_out(
    runtime: FakeOnnxRuntime, tmp_path: Path
) -> None:
    runtime.has_cuda = False
    found = provider.OnnxRuntimeCudaBackend().probe()
    assert not found.available
    assert found.reason == "this build of ONNX Runtime 9.9.9 has no CUDA provider"
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in found.fix
    with pytest.raises(BackendError, match="cannot run on CUDA: this build") as refused:
        opened(tmp_path)
    assert refused.value.fix == found.fix


def test_a_missing_gpu_is_named(
    runtime: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "unavailable", lambda: "CUDA says cudaErrorNoDevice on looking for GPUs")
    found = provider.OnnxRuntimeCudaBackend().probe()
    assert (found.available, found.reason) == (False, "CUDA says cudaErrorNoDevice on looking for GPUs")
    assert "nvidia-smi" in found.fix
    with pytest.raises(BackendError, match="cannot run on CUDA: CUDA says cudaErrorNoDevice"):
        opened(tmp_path)


def test_with_a_gpu_version_device_and_precisions_are_told(runtime: FakeOnnxRuntime) -> None:
    found = provider.OnnxRuntimeCudaBackend().probe()
    assert (found.available, found.version, found.reason) == (True, "9.9.9", "")
    assert found.devices == ("GPU: Fake H100",)
    assert found.precisions == ("fp32", "fp16", "bf16")


def test_this_machine_says_truly_whether_cuda_runs_here(tmp_path: Path) -> None:
    """Nothing is faked: ONNX Runtime and CUDA as they are installed."""
    found = provider.OnnxRuntimeCudaBackend().probe()
    if found.available:
        with opened(tmp_path, tf32=False) as engine, engine.session() as session:
            check(session, 2)
        return
    assert "has no CUDA provider" in found.reason or found.reason == provider.unavailable()
    assert found.fix
    with pytest.raises(BackendError) as refused, ExitStack() as stack:
        stack.enter_context(opened(tmp_path))
    assert found.reason in refused.value.what
    assert refused.value.fix == found.fix


def test_an_interrupt_while_a_capture_waits_for_others_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, waits = Turns(), iter([True, False])

    def interrupted(until: Callable[[], bool]) -> bool:
        if next(waits):
            return until()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(turns._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), turns.capturing():
            raise AssertionError("never reached")
    in_threads(lambda: ExitStack().enter_context(turns.using()) and None)
