"""The watchdog goes on after an error, stops when told, and a worker that dies at once rests longer each time."""

from __future__ import annotations

import threading

import pytest

from serve.sessions import SOON_S
from vitesse.serve.watchdog import Watchdog, rest_s


def test_an_error_of_one_look_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    looks, enough = [0], threading.Event()

    def look() -> None:
        looks[0] += 1
        if looks[0] == 1:
            raise RuntimeError("a broken look")
        enough.set()

    watchdog = Watchdog(look, 0.001)
    assert enough.wait(SOON_S)
    watchdog.stop()
    assert "a broken look" in caplog.text


def test_after_stop_it_looks_no_more_and_stopping_twice_does_no_harm() -> None:
    looks, first = [0], threading.Event()

    def look() -> None:
        looks[0] += 1
        first.set()

    watchdog = Watchdog(look, 0.001)
    assert first.wait(SOON_S)
    watchdog.stop()
    seen = looks[0]
    watchdog.stop()
    assert not first.wait(0.02) or looks[0] == seen


def test_the_rest_doubles_and_is_bounded() -> None:
    assert [rest_s(deaths) for deaths in (0, 1, 2, 3, 4)] == [0.0, 0.0, 0.1, 0.2, 0.4]
    assert rest_s(11) == rest_s(100_000) == 30.0
