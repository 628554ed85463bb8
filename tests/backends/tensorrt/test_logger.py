"""Messages of the library: kept in order, each once, and never printed."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

from tensorrt_surfaces import surface
from vitesse.backends.tensorrt.logger import Log


def say(log: Log, severity: str, text: str) -> None:
    log.native.log(SimpleNamespace(name=severity), text)  # type: ignore[arg-type]


def test_warnings_and_errors_are_kept_in_order_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(surface("10.13"))
    for severity, text in (
        ("WARNING", "slow"),
        ("ERROR", "wrong\n  here"),
        ("INFO", "hello"),
        ("WARNING", "slow"),
    ):
        say(log, severity, text)
    say(log, "INTERNAL_ERROR", "broken")
    assert log.lines == ("WARNING: slow", "ERROR: wrong here", "INTERNAL_ERROR: broken")
    assert log.errors == ("wrong here", "broken")
    assert capsys.readouterr() == ("", "")


def test_a_verbose_log_keeps_everything() -> None:
    log = Log(surface("10.13"), verbose=True)
    say(log, "VERBOSE", "tactic 1")
    say(log, "INFO", "hello")
    assert log.lines == ("VERBOSE: tactic 1", "INFO: hello")


def test_the_native_logger_outlives_the_log_because_the_library_keeps_a_pointer() -> None:
    log = Log(surface("10.13"))
    native = weakref.ref(log.native)
    log.clear()
    del log
    gc.collect()
    assert native() is not None
