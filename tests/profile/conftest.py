import pytest

from vitesse.backends import TARGETS, backend
from vitesse.errors import MissingExtra


@pytest.fixture(params=TARGETS["cpu"])
def runtime(request: pytest.FixtureRequest) -> str:
    """Every runtime that is installed; for the others the reason."""
    try:
        backend(request.param)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    return str(request.param)
