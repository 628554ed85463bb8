"""The CUDA provider's sessions on several threads, on a fake of it: nothing may be done beside a capture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.cuda_sessions import FEATURES, check, in_threads, opened, provider, rows
from backends.fake_onnxruntime import FakeOnnxRuntime
from vitesse.backends.cuda.arrays import DeviceArray
from vitesse.backends.cuda.captures import TURNS, Turns
from vitesse.backends.onnxruntime_cuda_session import MOST_GRAPHS
from vitesse.errors import BackendError


def test_two_sessions_on_two_threads_capture_alone(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine, engine.session() as first, engine.session() as second:

        def work(session: Any, sizes: tuple[int, ...]) -> None:
            for turn in range(200):
                check(session, sizes[turn * len(sizes) // 200], turn)

        in_threads(lambda: work(first, (1, 4, 2, 9, 3)), lambda: work(second, (2, 3, 50, 1)))
    assert fake_cuda.driver.captures == 9


def test_a_session_warmed_up_here_and_used_on_another_thread_captures_alone_there(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
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
        assert fake_cuda.driver.captures == 4, "one for each session on each thread"


def test_nothing_else_of_a_session_falls_into_a_capture(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
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
                    at = output_as_input(session, fake_cuda)
                    session.run_on_device({"x": at})

        in_threads(capture, come_and_go)
    assert fake_cuda.driver.captures == MOST_GRAPHS


def output_as_input(session: Any, fake_cuda: FakeOnnxRuntime) -> DeviceArray:
    """The session's own output as an input; making it asks for nothing of CUDA."""
    return DeviceArray(
        session._buffers.device("y"),
        (1, FEATURES),
        np.dtype(np.float32),
        session._stream.handle,
        0,
        session,
        fake_cuda.driver,
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
    fake_cuda: FakeOnnxRuntime, tmp_path: Path, use: Callable[[Any, Any], object], request: Any
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        check(session, 1)
        if request.node.callspec.id == "close the engine":
            session.close()  # so that its pools alone are left
        thread = threading.Thread(target=use, args=(engine, session), daemon=True)
        with TURNS.capturing(), fake_cuda.driver.alone():
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
            assert not fake_cuda.driver.overlaps
        thread.join(10)
        assert not thread.is_alive()


def test_a_page_locked_view_let_go_during_a_capture_is_freed_behind_it(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    with opened(tmp_path) as engine, engine.session() as session:
        view = session.run({"x": rows(1)}).outputs["y"]
        check(session, 1000)  # the output moves; `view` still shows the old memory
        held = fake_cuda.driver.held()["host memory"]
        with TURNS.capturing():
            del view
            assert fake_cuda.driver.held()["host memory"] == held
        assert fake_cuda.driver.held()["host memory"] == held - 1


def test_the_first_session_is_given_to_one_thread_only(fake_cuda: FakeOnnxRuntime, tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        given: list[Any] = []
        in_threads(*[lambda: given.append(engine.session())] * 4)
        assert len({id(session) for session in given}) == 4
        assert len(fake_cuda.made) == 4, "the one that was opened with the file is used"


# The fake itself: it must catch what it is there for


def test_the_fake_breaks_a_capture_beside_which_another_thread_allocates(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path
) -> None:
    stop = threading.Event()

    def allocate() -> None:
        while not stop.is_set():
            fake_cuda.driver.free(fake_cuda.driver.malloc(8))

    with opened(tmp_path) as engine, engine.session() as session:
        thread = threading.Thread(target=allocate, daemon=True)
        thread.start()
        try:
            with pytest.raises(BackendError, match="CUDA failure 901"):
                session.run({"x": rows(1)})
        finally:
            stop.set()
            thread.join(10)
        assert fake_cuda.driver.overlaps
        check(session, 1)  # a broken capture is tried again
    fake_cuda.driver.overlaps.clear()


def test_the_fake_replays_old_addresses_where_a_number_is_used_for_other_ones(
    fake_cuda: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider.OnnxRuntimeCudaSession, "_graph_of", lambda self, key: "1")
    with opened(tmp_path) as engine, engine.session() as session:
        check(session, 1)
        with pytest.raises(AssertionError, match="Mismatched elements"):
            check(session, 1000)


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
