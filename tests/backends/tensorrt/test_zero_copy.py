"""Sessions run from any thread, and on tensors that are on the device already (fake module, fake driver)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backends.cuda.fake_driver import FREED
from backends.tensorrt.fake_api import World
from backends.tensorrt.loading import doubles, images, loaded, on_device
from vitesse.backends.cuda.arrays import DeviceArray
from vitesse.backends.cuda.driver import CudaError
from vitesse.errors import DataError


def test_any_thread_may_run_a_session_and_meets_the_right_gpu(world: World, tmp_path: Path) -> None:
    def on_a_thread(work: Callable[[], None]) -> None:
        with ThreadPoolExecutor(1) as pool:
            world.driver.threads.discard(pool.submit(threading.get_ident).result())  # numbers come again
            pool.submit(work).result()

    def ran(batch: int) -> None:
        fed = images(batch)
        assert doubles(session.run({"images": fed}), fed)

    with loaded(world, tmp_path) as engine, engine.session() as session:
        given = on_device(world, images(1), session._stream.handle)
        on_a_thread(lambda: ran(1))  # makes a context
        on_a_thread(lambda: ran(1))  # captures
        on_a_thread(lambda: session.run_on_device({"images": given}))
        on_a_thread(lambda: engine.session().close())
        session.synchronize()
        world.driver.free(given.address)


def test_tensors_on_the_device_are_run_in_place_after_their_own_stream(world: World, tmp_path: Path) -> None:
    theirs = world.driver.create_stream()
    with loaded(world, tmp_path) as engine, engine.session() as session:
        fed = images(3)
        given = on_device(world, fed, theirs)  # not written yet: its stream has not been waited for
        before = world.driver.allocations
        out = session.run_on_device({"images": given})["doubled"]
        assert world.driver.allocations == before
        assert (out.shape, out.dtype, out.device) == ((3, 3, 4, 4), np.dtype(np.float32), 0)
        assert session.synchronize() >= 1  # milliseconds on the device
        assert np.array_equal(
            np.frombuffer(world.driver.peek(out.address, fed.nbytes), np.float32), 2 * fed.ravel()
        )
        # Captured shapes have contexts of their own, and their graphs are still right.
        for _ in range(3):
            session.run_on_device({"images": given})
            assert doubles(session.run({"images": fed}), fed)
        world.driver.free(given.address)
    world.driver.destroy_stream(theirs)


def test_arrays_of_other_types_shapes_and_gpus_are_refused_on_the_device_too(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path) as engine, engine.session() as session:
        wrong = DeviceArray(0x1000, (1, 3, 4, 4), np.dtype(np.float16), 1, 0, None)
        with pytest.raises(DataError, match="dtype float16"):
            session.run_on_device({"images": wrong})
        with pytest.raises(DataError, match="exactly"):
            session.run_on_device({})
        elsewhere = DeviceArray(0x1000, (1, 3, 4, 4), np.dtype(np.float32), 1, 1, None)
        with pytest.raises(CudaError, match="on GPU 1"):
            session.run_on_device({"images": elsewhere})
        with pytest.raises(CudaError, match="is no array on a device"):
            session.run_on_device({"images": [1.0]})


def test_closing_waits_for_work_on_the_device(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine:
        session = engine.session()
        given = on_device(world, images(1), session._stream.handle)
        session.run_on_device({"images": given})
        session.close()
        assert not world.driver.misuses
        world.driver.free(given.address)
    assert world.driver._memory[given.address].view()[0] == FREED
