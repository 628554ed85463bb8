"""The target's tests on the GPU at hand, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from .apart import CUT, ROOT, without_folders

TESTS = "tests/backends/torch_cuda"


class Kept:
    """Remembers the outcome of every test: `passed`, or `failed` or `skipped` and why."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what setting up, the test itself, or taking down said; the worst of them stays."""
        if report.when == "call" or report.outcome != "passed":
            said = "" if report.passed else f": {_why(report)}"
            self.outcomes[report.nodeid] = f"{report.outcome}{said}"


def run(paths: Sequence[str]) -> dict[str, str]:
    """Run the tests below some paths (all of the target's where there are none); node id → outcome."""
    kept = Kept()
    given = [str(ROOT / path) for path in paths or (TESTS,)]
    pytest.main(["--rootdir", str(ROOT), "-p", "no:cacheprovider", *given], plugins=[kept])
    return kept.outcomes


def _why(report: pytest.TestReport) -> str:
    """The reason of a skip, or the message of an error; without folders of this machine."""
    if isinstance(report.longrepr, tuple):
        said = str(report.longrepr[2])
    else:
        crash: Any = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash else str(report.longrepr)
    return without_folders(" ".join(said.split()))[:CUT]
