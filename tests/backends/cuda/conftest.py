"""The same tests on the fake driver always, and on the real one where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.cuda.fake_driver import FakeDriver
from vitesse.backends.cuda.driver import Driver
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.cuda.stream import Stream


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    made = FakeDriver()
    yield made
    made.check_clean()


@pytest.fixture
def cuda() -> Driver:
    """The real driver of GPU 0."""
    bindings = pytest.importorskip("vitesse.backends.cuda.bindings", exc_type=ImportError)
    reason = bindings.unavailable()
    if reason:
        pytest.skip(reason)
    made: Driver = bindings.cuda_driver()
    return made


@pytest.fixture(params=["fake", "cuda"])
def driver(request: pytest.FixtureRequest) -> Driver:
    made: Driver = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def stream(driver: Driver) -> Iterator[Stream]:
    with Stream(driver) as made:
        yield made


@pytest.fixture
def device(driver: Driver) -> Iterator[Pool]:
    with Pool(driver) as made:
        yield made


@pytest.fixture
def host(driver: Driver) -> Iterator[Pool]:
    with Pool(driver, host=True) as made:
        yield made
