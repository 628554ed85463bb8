"""A few pictures for the small models."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diagnose import changes


@pytest.fixture(scope="session", name="pictures")
def _pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four of the example's pictures, of the size the small models take."""
    folder = tmp_path_factory.mktemp("pictures")
    for at, pixels in enumerate(changes.pictures()):
        Image.fromarray(pixels).save(folder / f"{at}.png")
    return folder
