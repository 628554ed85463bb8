"""Run a command on one core that no other such command has: `python tests/one_core.py LOCKS COMMAND [ARGUMENT …]`.

So do tests run side by side (see the Makefile): what they start counts one usable core and starts no more threads, and
none takes another's time. Where all cores are held, it waits for the first. A platform that binds no process to a core
runs the command as it is.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def take(cores: Sequence[int], locks: Path) -> tuple[int, int]:
    """Take a core that nobody holds; wait for the first where all are held.

    Args:
        locks: a folder for one file a core, made where it is missing.

    Returns:
        The core, and an open file: as long as it is open, here or in a program that inherits it, the core is held.
    """
    locks.mkdir(parents=True, exist_ok=True)
    for core in cores:
        file = os.open(locks / str(core), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return core, file
        except BlockingIOError:
            os.close(file)
    file = os.open(locks / str(cores[0]), os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    return cores[0], file


def main(locks: str, *command: str) -> None:
    """Become the command, on a core of its own; `locks`: see `take`."""
    if hasattr(os, "sched_setaffinity"):
        core, file = take(sorted(os.sched_getaffinity(0)), Path(locks))
        os.set_inheritable(file, True)
        os.sched_setaffinity(0, {core})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
