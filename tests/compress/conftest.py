"""Detectors that the tests of several levers share; exporting one takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fashion import DETR, artifact_of
from vitesse import stages
from vitesse.artifact import Artifact, Store


@pytest.fixture(scope="session")
def fashion_detr(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The example's detector, cleaned and fused: 25 learned queries, six decoder layers."""
    store = Store(tmp_path_factory.mktemp("fashion"))
    return stages.fuse(stages.clean(artifact_of(DETR), store).artifact, store).artifact


@pytest.fixture(scope="session")
def tiny_detr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """A random DETR with five queries and three decoder layers, exported, cleaned and fused; and its checkpoint."""
    pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
    from compress.detr_levers import fused
    from sources.detr_models import random_detr, save

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = save(folder / "tiny.pth", random_detr())
    return fused(checkpoint, Store(folder)), checkpoint
