"""Where the larger data sets lie: beside the checkout, never in it."""

import os
from pathlib import Path

import pytest


def shared(name: str) -> Path:
    """Return the folder of a shared data set; skips the test, saying why, where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VITESSE_SHARED_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not part of the repository (set VITESSE_SHARED_DATA)")
    return folder
