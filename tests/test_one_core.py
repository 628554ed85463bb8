"""Commands side by side get a core each; one more waits until a core is free."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

import pytest

import one_core


def test_each_gets_another_core_and_one_that_is_given_back_is_taken_again(tmp_path: Path) -> None:
    taken = [one_core.take([3, 5, 6], tmp_path / "locks") for _ in range(3)]
    assert [core for core, _ in taken] == [3, 5, 6]
    os.close(taken[1][1])
    assert one_core.take([3, 5, 6], tmp_path / "locks")[0] == 5


def test_where_all_are_held_it_waits(tmp_path: Path) -> None:
    _, file = one_core.take([3], tmp_path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one_core.take, [3], tmp_path)
        with pytest.raises(NotYet):
            waiting.result(timeout=0.2)
        os.close(file)
        assert waiting.result(timeout=60)[0] == 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this platform binds no process to a core")
def test_the_command_and_its_threads_have_one_core_and_its_exit_code_stays(tmp_path: Path) -> None:
    code = "import os, sys; from vitesse.environment import usable_cores as n; sys.exit(40 + n())"
    command = [sys.executable, one_core.__file__, str(tmp_path), sys.executable, "-c", code]
    done = subprocess.run(command, check=False)
    assert done.returncode == 41
