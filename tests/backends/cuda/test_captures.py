"""Captures exclude each other and every other use; uses do not exclude each other, and none waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from vitesse.backends.cuda.captures import Turns


class Scene:
    """Threads that take turns and write down who is inside together with whom."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.inside: list[str] = []
        self.seen: list[tuple[str, ...]] = []
        self._lock = threading.Lock()

    def stay(self, name: str, turn: AbstractContextManager[None], leave: threading.Event) -> None:
        with turn:
            with self._lock:
                self.inside.append(name)
                self.seen.append(tuple(sorted(self.inside)))
            assert leave.wait(10)
            with self._lock:
                self.inside.remove(name)

    def start(
        self, name: str, turn: Callable[[], AbstractContextManager[None]]
    ) -> tuple[threading.Thread, threading.Event]:
        leave = threading.Event()
        thread = threading.Thread(target=self.stay, args=(name, turn(), leave), daemon=True)
        thread.start()
        return thread, leave

    def until(self, *names: str) -> None:
        wanted = tuple(sorted(names))
        for _ in range(1000):
            if wanted in self.seen:
                return
            threading.Event().wait(0.005)
        raise AssertionError(f"never together: {names}; seen {self.seen}")

    def settled(self) -> tuple[str, ...]:
        threading.Event().wait(0.05)
        return tuple(sorted(self.inside))


def test_two_use_the_gpu_at_once() -> None:
    scene = Scene()
    first, second = scene.start("a", scene.turns.using), scene.start("b", scene.turns.using)
    scene.until("a", "b")
    for thread, leave in (first, second):
        leave.set()
        thread.join(10)


def test_a_capture_waits_for_uses_and_holds_up_those_that_come_after() -> None:
    scene = Scene()
    user, user_leaves = scene.start("user", scene.turns.using)
    scene.until("user")
    capture, capture_ends = scene.start("capture", scene.turns.capturing)
    assert scene.settled() == ("user",)
    late, late_leaves = scene.start("late", scene.turns.using)
    assert scene.settled() == ("user",)
    user_leaves.set()
    scene.until("capture")
    assert scene.settled() == ("capture",)
    capture_ends.set()
    scene.until("late")
    late_leaves.set()
    for thread in (user, capture, late):
        thread.join(10)
        assert not thread.is_alive()
    assert all(names == ("capture",) for names in scene.seen if "capture" in names)


def test_captures_follow_one_another() -> None:
    scene = Scene()
    first, first_ends = scene.start("first", scene.turns.capturing)
    scene.until("first")
    second, second_ends = scene.start("second", scene.turns.capturing)
    assert scene.settled() == ("first",)
    first_ends.set()
    scene.until("second")
    second_ends.set()
    for thread in (first, second):
        thread.join(10)


def test_an_error_inside_gives_the_turn_back() -> None:
    turns = Turns()
    for turn in (turns.capturing, turns.using, turns.capturing):
        try:
            with turn():
                raise ValueError
        except ValueError:
            pass
