"""Options of the test run, and what tests in several folders ask for."""

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-models-table",
        action="store_true",
        help="write benchmarks/results/models.json and docs/models.md from the rows that run (test_models.py)",
    )


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
