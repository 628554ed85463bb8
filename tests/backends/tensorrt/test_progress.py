"""The share of a build that is done, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

import fashion
from vitesse.backends.tensorrt.api import load_api
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.logger import Log
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.backends.tensorrt.profiles import parse_shapes
from vitesse.backends.tensorrt.progress import Share, interruptible, monitor


class Heard:
    """A listener that adds up, and can do something at the first advance."""

    def __init__(self, at_first_advance: object = None) -> None:
        self.stages: list[tuple[str, str, int]] = []
        self.advances: list[float] = []
        self._at_first = at_first_advance

    def stage(self, name: str, activity: str, total: int) -> None:
        self.stages.append((name, activity, total))

    def advance(self, steps: float = 1) -> None:
        if not self.advances and callable(self._at_first):
            self._at_first()
        self.advances.append(steps)

    def row(self, stage: str, verdict: str, reason: str) -> None: ...


def test_a_phase_is_a_part_of_the_step_it_began_in() -> None:
    share = Share()
    share.begin("build", None, 4)
    assert share.now() == 0
    share.step("build", 0)
    assert share.now() == 0.25
    share.begin("inner", "build", 2)
    share.step("inner", 0)
    assert share.now() == 0.375
    share.begin("innermost", "inner", 10)
    share.step("innermost", 4)
    assert share.now() == pytest.approx(0.25 + (1 + 0.5) / 2 / 4)


def test_the_share_never_goes_back_and_ends_at_one() -> None:
    share = Share()
    share.begin("build", None, 2)
    share.begin("inner", "build", 2)
    share.step("inner", 1)
    assert share.now() == 0.5
    share.end("inner")
    assert share.now() == 0.5  # though the step it belonged to is not told yet
    share.begin("again", "build", 2)
    share.step("again", 0)
    assert share.now() == 0.5
    share.end("again")
    share.end("build")
    assert share.now() == 1


def test_phases_side_by_side_and_without_steps_fill_no_more_than_their_step() -> None:
    share = Share()
    share.begin("build", None, 2)
    for name in ("one", "two", "three"):
        share.begin(name, "build", 0)
        share.step(name, 0)
    assert share.now() == 0.5
    share.step("never begun", 3)
    share.end("never begun")
    assert share.now() == 0.5


def test_the_listener_hears_hundredths_that_add_up_and_the_builder_hears_stop() -> None:
    heard, stop = Heard(), threading.Event()
    native = monitor(object, heard, stop)
    native.phase_start("build", None, 1)  # type: ignore[arg-type]
    native.phase_start("inner", "build", 10_000)
    assert all(native.step_complete("inner", step) for step in range(5_000))
    assert len(heard.advances) <= 51 and sum(heard.advances) == pytest.approx(50, abs=1)
    native.phase_finish("inner")
    native.phase_finish("build")
    assert sum(heard.advances) == pytest.approx(100)


def test_after_stop_the_builder_is_told_so_and_what_it_gives_up_is_not_done() -> None:
    heard, stop = Heard(), threading.Event()
    native = monitor(object, heard, stop)
    native.phase_start("build", None, 4)  # type: ignore[arg-type]
    assert native.step_complete("build", 0) is True
    stop.set()
    assert native.step_complete("build", 1) is False
    native.phase_finish("build")
    assert sum(heard.advances) == pytest.approx(50)


@pytest.fixture
def handler() -> Iterator[object]:
    before = signal.getsignal(signal.SIGINT)
    # A shell lets the jobs that it starts in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_told_to_the_work_and_raised_behind_it(handler: object) -> None:
    stop, seen = threading.Event(), []

    def work() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(stop.wait(10))
        return "a plan that nobody wants any more"

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, stop)
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_is_left_to_the_system(handler: object) -> None:
    stop, seen = threading.Event(), []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(10)
        while signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            pass  # the main thread sets it right after `stop`
        seen.append(True)

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, stop)
    assert seen == [True]


def test_the_result_and_the_error_of_the_work_come_through(handler: object) -> None:
    stop = threading.Event()
    assert interruptible(lambda: 7, stop) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, stop)
    assert signal.getsignal(signal.SIGINT) is handler and not stop.is_set()


def test_off_the_main_thread_and_where_ctrl_c_is_ignored_the_work_is_just_done(handler: object) -> None:
    threads: list[threading.Thread] = []
    worker = threading.Thread(
        target=lambda: interruptible(lambda: threads.append(threading.current_thread()), threading.Event())
    )
    worker.start()
    worker.join()
    assert threads == [worker]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert (
        interruptible(threading.current_thread, threading.Event()) is threading.main_thread()
    )  # not on a pool


def _options() -> BuildOptions:
    return BuildOptions(
        profiles=parse_shapes("images=1x3x256x256..8x3x256x256"), compute_capabilities=("sm86",)
    )


def test_a_real_build_tells_its_progress_to_the_end() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    heard = Heard()
    vit = BuildOptions(parse_shapes("images=1x3x56x56..8x3x56x56"), compute_capabilities=("sm86",))
    build_plan(load_api("tensorrt_rtx"), fashion.VIT, vit, heard)
    assert heard.stages == [("build", "fp32 engine for sm86", 100)]
    assert sum(heard.advances) == pytest.approx(100)
    assert min(heard.advances) > 0


def test_ctrl_c_stops_a_real_build_of_seconds_before_it_compiles(handler: object) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    heard = Heard(lambda: threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start())
    with pytest.raises(KeyboardInterrupt):
        build_plan(load_api("tensorrt_rtx"), fashion.DETR, _options(), heard)
    # The compiler's phase lies behind two thirds; the build was abandoned in an earlier one.
    assert sum(heard.advances) < 66
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_within_a_callback_of_the_library_is_not_lost(
    handler: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    heard, sent = Heard(), []

    def once(log: Log, severity: str, text: str) -> None:
        if not sent:
            sent.append(text)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Log, "add", once)  # the first message comes while the graph is parsed
    with pytest.raises(KeyboardInterrupt):
        build_plan(load_api("tensorrt_rtx"), fashion.DETR, _options(), heard)
    assert sent and sum(heard.advances) < 66
