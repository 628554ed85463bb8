"""A lever: a way to make the network itself smaller without training, in settings from mild to strong.

Every setting is assessed like any other step: what it costs is measured, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import Built, Tensors
from vitesse.errors import VitesseError
from vitesse.recipe import LEVERS, SourceOptions


class NotApplicable(VitesseError):
    """A lever finds nothing to move in this model; `what` says why, in words for the ledger."""


@dataclass(frozen=True)
class Situation:
    """What a lever may look at.

    artifact: the cleaned and fused graph.
    images: prepared calibration images, batch 1, readable again and again.
    store: where to put what is made.
    model: what the user named (a path or a name that can be exported again), or None for a file that is ONNX only.
    source: how it was exported.
    lower: rewrites (`lowering.REWRITES`) that a graph exported anew needs as well.
    """

    artifact: Artifact
    images: Iterable[Tensors]
    store: Store
    model: str | Path | None = None
    source: SourceOptions | None = None
    lower: Sequence[str] = ()


@dataclass(frozen=True)
class Variant:
    """One setting: `stage` is its row in the ledger, as `decoder:4`; `make` builds it (its spec may differ)."""

    stage: str
    make: Callable[[], Built]


Lever = Callable[[Situation], Sequence[Variant]]

_MODULES: Mapping[str, str] = {name: f"vitesse.compress.{name}" for name in LEVERS}


def lever(name: str) -> Lever:
    """Return the function `variants` of one lever: settings, mild ones first.

    It raises NotApplicable where the model has nothing it could move.
    """
    found: Lever = import_module(_MODULES[name]).variants
    return found
