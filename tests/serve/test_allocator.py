"""A server bounds the memory that glibc keeps, unless its user has."""

import subprocess
import sys

import pytest

from vitesse.serve.allocator import bound_memory

MB = 2**20


class Mallopt:
    """Takes notes; refuses the option `refused`."""

    def __init__(self, refused: int = 0) -> None:
        self.told: dict[int, int] = {}
        self.refused = refused

    def __call__(self, option: int, value: int) -> int:
        """Take one option."""
        self.told[option] = value
        return int(option != self.refused)


def test_one_arena_and_bounds_that_do_not_grow() -> None:
    mallopt = Mallopt()
    assert bound_memory(mallopt, {})
    assert mallopt.told == {-8: 1, -3: 4 * MB, -1: 32 * MB}


@pytest.mark.parametrize("refused", [-8, -3, -1])
def test_a_refused_bound_is_told_and_the_others_are_set(refused: int) -> None:
    mallopt = Mallopt(refused)
    assert not bound_memory(mallopt, {})
    assert len(mallopt.told) == 3


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_said_wins(name: str) -> None:
    mallopt = Mallopt()
    assert not bound_memory(mallopt, {name: "2"})
    assert not mallopt.told


CHILD = """
import ctypes, sys, threading
from vitesse.serve.allocator import bound_memory
if "bound" in sys.argv: assert bound_memory(environment={})
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
here = libc.malloc(1000)
places = []
threads = [threading.Thread(target=lambda: places.append(libc.malloc(1000))) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(abs(place - here) > 2**32 for place in places))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has arenas")
@pytest.mark.parametrize("bound", [True, False])
def test_threads_share_one_arena(bound: bool) -> None:
    """A thread's own arena lies in a mapping far from the heap of the first one."""
    said = subprocess.run(
        [sys.executable, "-c", CHILD, "bound" if bound else ""], capture_output=True, text=True, check=True
    )
    assert (said.stdout.strip() == "0") == bound, said.stdout
