"""Vitesse makes transformer vision models fast and proves that they are still right.

    run = vitesse.optimize("model.onnx", data="coco/", target="cpu", out="run/")
    model = vitesse.load(run)
    detections = model("photo.jpg")

The names below are the whole public interface, loaded on first use: importing vitesse loads no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitesse._version import __version__

if TYPE_CHECKING:
    from vitesse.data.results import Classification, Detections
    from vitesse.errors import VitesseError
    from vitesse.pipeline import optimize
    from vitesse.predict import load
    from vitesse.sources.jax.function import from_jax
    from vitesse.stages import build, clean, fuse, open_model, quantize

_WHERE = {
    "optimize": "vitesse.pipeline",
    "load": "vitesse.predict",
    "from_jax": "vitesse.sources.jax.function",
    "open_model": "vitesse.stages",
    "clean": "vitesse.stages",
    "fuse": "vitesse.stages",
    "quantize": "vitesse.stages",
    "build": "vitesse.stages",
    "Detections": "vitesse.data.results",
    "Classification": "vitesse.data.results",
    "VitesseError": "vitesse.errors",
}

__all__ = [
    "Classification",
    "Detections",
    "VitesseError",
    "__version__",
    "build",
    "clean",
    "from_jax",
    "fuse",
    "load",
    "open_model",
    "optimize",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vitesse' has no attribute {name!r}")
    try:
        return getattr(import_module(_WHERE[name]), name)
    except ImportError as error:
        from vitesse.errors import missing_extra

        raise missing_extra(error) from error


def __dir__() -> list[str]:
    return sorted(__all__)
