"""Options of the test run."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-models-table",
        action="store_true",
        help="write benchmarks/results/models.json and docs/models.md from the rows that run (test_models.py)",
    )
