import threading

import pytest

from vitesse.serve.held_lock import HeldLock


@pytest.fixture
def lock() -> threading.RLock:
    return threading.RLock()


def is_free(lock: threading.RLock) -> bool:
    found: list[bool] = []

    def look() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    other = threading.Thread(target=look)
    other.start()
    other.join()
    return found[0]


def test_calls_are_made_in_order_when_the_lock_is_free(lock: threading.RLock) -> None:
    seen: list[object] = []
    held = HeldLock(lock, lambda: seen.append(("before", is_free(lock))))
    with held:
        held.later(lambda name: seen.append((name, is_free(lock))), "first")
        held.later(lambda: seen.append("second"))
        assert held.waiting and not seen
    assert seen == [("before", False), ("first", True), "second"]
    assert not held.waiting


def test_a_block_that_raises_frees_the_lock_and_makes_its_calls(lock: threading.RLock) -> None:
    seen: list[str] = []
    held = HeldLock(lock, lambda: seen.append("before"))
    with pytest.raises(KeyError), held:
        held.later(seen.append, "call")
        raise KeyError
    assert seen == ["call"] and is_free(lock)


def test_a_call_that_raises_is_logged_and_the_next_is_made(
    lock: threading.RLock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    held = HeldLock(lock, lambda: None)
    with held:
        held.later(lambda: 1 / 0)
        held.later(seen.append, "next")
    assert seen == ["next"] and "ZeroDivisionError" in caplog.text


def test_a_call_may_hold_the_lock_again(lock: threading.RLock) -> None:
    seen: list[str] = []
    held = HeldLock(lock, lambda: None)

    def again() -> None:
        with held:
            held.later(seen.append, "inner")
        seen.append("outer")

    with held:
        held.later(again)
    assert seen == ["inner", "outer"]


def test_each_thread_makes_its_own_calls(lock: threading.RLock) -> None:
    names: list[str] = []
    held = HeldLock(lock, lambda: None)

    def other() -> None:
        with held:
            assert not held.waiting
            held.later(lambda: names.append(threading.current_thread().name))

    held.later(lambda: names.append(threading.current_thread().name))
    thread = threading.Thread(target=other, name="other")
    thread.start()
    thread.join()
    assert names == ["other"]
    with held:
        pass
    assert names == ["other", threading.current_thread().name]
