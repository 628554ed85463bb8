"""Small assignment problems, hundreds at a time; on several cores where there are many.

SciPy holds the interpreter's lock while it solves, so that threads would gain nothing: processes share the work.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from vitesse.environment import usable_cores

Costs = NDArray[np.float32]
Solved = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

# Numbers from which handing them to other processes takes less than solving them here: about 300 problems of 25 × 25.
_MANY = 200_000
_MOST_PROCESSES = 8
# Of the cores the rest is for what feeds the device.
_CORES_EACH = 2


def solve(costs: Costs, ends: Sequence[int]) -> Solved:
    """Solve each problem; the smaller of rows and columns is given away completely.

    Args:
        costs: (problems, rows, columns), finite where it counts.
        ends: of each problem, how many columns count.

    Returns:
        sizes (problems,): pairs of each problem; then the row and the column of every pair, problem by problem, rows
        ascending.
    """
    processes = min(_MOST_PROCESSES, usable_cores() // _CORES_EACH)
    if costs.size < _MANY or processes < 2 or sys.platform != "linux":
        return solve_here(costs, ends)
    return solve_on(processes, costs, ends)


def solve_here(costs: Costs, ends: Sequence[int]) -> Solved:
    """Solve them one after the other in this process; as `solve`."""
    found = [linear_sum_assignment(matrix[:, :end]) for matrix, end in zip(costs, ends, strict=True)]
    nothing = np.zeros(0, np.int64)
    rows, columns = ([pair[side] for pair in found] or [nothing] for side in (0, 1))
    sizes = np.array([len(one) for one, _ in found], np.int64)
    return sizes, np.concatenate(rows), np.concatenate(columns)


def solve_on(processes: int, costs: Costs, ends: Sequence[int]) -> Solved:
    """Solve them in so many processes, this one among them; as `solve`."""
    bounds = np.linspace(0, len(costs), processes + 1).astype(int)
    own, *others = [(costs[begin:end], ends[begin:end]) for begin, end in pairwise(bounds)]
    asked = [_helpers(processes - 1).submit(solve_here, *part) for part in others]
    parts = [solve_here(*own), *(one.result() for one in asked)]
    sizes, rows, columns = (np.concatenate(side) for side in zip(*parts, strict=True))
    return sizes, rows, columns


@cache
def _helpers(count: int) -> ProcessPoolExecutor:
    """Processes for as long as this one lives.

    Forked, as a DataLoader's are: another way would import the main module again, which need not bear it. They touch
    no device.
    """
    return ProcessPoolExecutor(count, get_context("fork"), _ignore_interrupt)


def _ignore_interrupt() -> None:
    # Ctrl-C reaches the whole group; the training ends its step first, and needs its helpers for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
