"""Options of the test run, and what tests in several folders ask for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vitesse.artifact import Artifact
    from vitesse.benchmark.fresh_process import FreshProcess

_YOUNG_OBJECTS = 20_000
_WARM_UP_CALLS = 6
_PROFILED_RUNS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-models-table",
        action="store_true",
        help="write benchmarks/results/models.json and docs/models.md from the rows that run (test_models.py)",
    )


def pytest_collection_finish() -> None:
    """Leave what was imported out of every garbage collection, and collect less often: a tenth of an export's time.

    What tests leave behind is collected as ever: nothing of theirs is there yet.
    """
    _leave_alone_what_is_there()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


@pytest.fixture(scope="module", autouse=True)
def left_alone() -> None:
    """The same for what was imported meanwhile: benchmarks collect all garbage before every reading of memory."""
    _leave_alone_what_is_there()


def _leave_alone_what_is_there() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def operators_listed_once() -> Iterator[None]:
    """Keep the table of operators that torch's exporter makes from their sources for every export, 0.4 s each time."""
    if find_spec("torch") is None:
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="module")
def short_races() -> Iterator[None]:
    """For whole runs whose figures are not what is tested: some calls a round, no wait until the machine is quiet.

    Rounds, their order and what is made of them stay; most of a run of a small model is spent in these blocks. What a
    fresh process pays is measured once for each runtime.
    """
    from vitesse import measure
    from vitesse.benchmark import latency, load

    paid: dict[str, FreshProcess] = {}

    def fresh_process(artifact: Artifact, *given: Any) -> FreshProcess:
        if artifact.backend not in paid:
            paid[artifact.backend] = measured(artifact, *given)
        return paid[artifact.backend]

    measured, warm_up = measure.fresh_process, partial(latency.warm_up, most_calls=_WARM_UP_CALLS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_BLOCK_MS", 4.0)
        for module in ("latency", "throughput"):
            patch.setattr(f"vitesse.benchmark.{module}.settle", lambda: True)
        for caller in (latency, load):
            patch.setattr(caller, "warm_up", warm_up)
        patch.setattr(measure, "fresh_process", fresh_process)
        patch.setattr("vitesse.report.gather.PROFILED_RUNS", _PROFILED_RUNS)
        yield
