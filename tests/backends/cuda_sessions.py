"""A small graph on the CUDA provider, real or faked, and what it must compute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusing import graph
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact
from vitesse.backends.protocol import LoadOptions

provider = pytest.importorskip("vitesse.backends.onnxruntime_cuda", exc_type=ImportError)
FEATURES = 4


def affine(folder: Path, body: str = "d = Mul (x, two) y = Add (d, one)", outputs: str = "") -> Artifact:
    """y = 2 x + 1 for x float32 (N, 4), unless told otherwise."""
    path = folder / "affine.onnx"
    model = graph(body, f"float[N,{FEATURES}] x", outputs or f"float[N,{FEATURES}] y", two=2.0, one=1.0)
    path.write_bytes(model.SerializeToString())
    return as_artifact(path)


def opened(folder: Path, **options: Any) -> Any:
    return provider.OnnxRuntimeCudaBackend().load(affine(folder), LoadOptions(**options))


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def check(session: Any, count: int, seed: int = 0) -> None:
    x = rows(count, seed)
    np.testing.assert_allclose(session.run({"x": x}).outputs["y"], 2 * x + 1, rtol=1e-6, err_msg=f"{count}")


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at once; what one raises is raised here, without the frames that hold a session."""
    failed: list[str] = []

    def watched(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=watched, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "waits for ever"
    assert not failed, failed
