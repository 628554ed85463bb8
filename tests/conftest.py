"""Options of the test run, and what tests in several folders ask for."""

import gc
from collections.abc import Iterator

import pytest

_YOUNG_OBJECTS = 20_000


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
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


@pytest.fixture(scope="module")
def short_races() -> Iterator[None]:
    """For whole runs whose figures are not what is tested: some calls a round, no wait until the machine is quiet.

    Rounds, their order and what is made of them stay; most of a run of a small model is spent in these blocks.
    """
    from vitesse.benchmark import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_BLOCK_MS", 4.0)
        patch.setattr(latency, "settle", lambda: True)
        yield
