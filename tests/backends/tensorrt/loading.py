"""Engines loaded on a fake module and a fake driver, and what is fed to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from backends.tensorrt.fake_api import Network, World, fake_api
from backends.tensorrt.plans import RTX_4090, kept_plan
from vitesse.backends.cuda.arrays import DeviceArray
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.tensorrt.engine import TensorRtEngine
from vitesse.backends.tensorrt.fitness import examine

TWO_PROFILES = Network(
    shape=(-1, 3, -1, -1),
    profiles=(
        ((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4)),
        ((1, 3, 8, 8), (1, 3, 8, 8), (2, 3, 16, 16)),
    ),
)


def loaded(
    world: World, folder: Path, network: Network | None = None, kind: str = "new", **options: Any
) -> TensorRtEngine:
    rtx = kind == "rtx"
    if rtx:
        world.driver.device = RTX_4090
    name, version = ("tensorrt_rtx", "1.7.1") if rtx else ("tensorrt", "10.13.0")
    plan = kept_plan(folder, network, module=name, version=version, device=world.driver.device)
    api = fake_api(world, kind, name=name, version=version)
    judged, manifest, content = examine(plan.path, api=api, device=world.driver.device)
    assert judged.usable and manifest is not None
    return TensorRtEngine(api, content, manifest, LoadOptions(**options), plan=plan.path, driver=world.driver)


def images(batch: int, side: int = 4, start: float = 0.0) -> np.ndarray[Any, Any]:
    shape = (batch, 3, side, side)
    return (np.arange(np.prod(shape), dtype=np.float32) + start).reshape(shape)


def doubles(outcome: Any, fed: np.ndarray[Any, Any]) -> bool:
    return bool(np.array_equal(outcome.outputs["doubled"], 2 * fed))


def on_device(world: World, array: np.ndarray[Any, Any], stream: int) -> DeviceArray:
    address = world.driver.malloc(array.nbytes)
    content = array.tobytes()
    world.driver.kernel(stream, lambda: world.driver.poke(address, content))
    return DeviceArray(address, array.shape, array.dtype, stream, 0, None, world.driver)
