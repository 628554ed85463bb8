import pytest

from vitesse.backends import TABLE, backend
from vitesse.errors import MissingExtra


@pytest.fixture(params=list(TABLE))
def runtime(request: pytest.FixtureRequest) -> str:
    """Every runtime that is installed; for the others the reason."""
    try:
        backend(request.param)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    return str(request.param)
