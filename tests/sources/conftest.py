"""What the exports of all these tests share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def exporting(operators_listed_once: None) -> None:
    """Nearly every test here exports."""
