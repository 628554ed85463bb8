"""Runtimes that keep engine files of their own are known by their entry in the table, and by no name in the code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from engine_runs import FP32, a_run
from vitesse import backends
from vitesse.artifact import Artifact, Store
from vitesse.backends import TABLE, own_engines
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.engines import build_engines, engine_for
from vitesse.errors import BackendError
from vitesse.run import Run

NAME = "torch-cuda"


@dataclass(frozen=True)
class Shapes:
    profiles: tuple[object, ...]
    batch: tuple[int, int, int]
    command: str


class Keeper:
    """A runtime that builds for shapes; what it was asked for is in `asked`."""

    asked: Shapes | None = None

    def build_for(self, artifact: Artifact, store: Store, options: Shapes) -> Built:
        Keeper.asked = options
        return Built(artifact, {"planned": 1})


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """Put a fake in the place of the runtime; its engines by the hash of their graph."""
    engines: dict[str, Artifact] = {}
    module = ModuleType("a_keeper")
    vars(module).update(
        Keeper=Keeper, BuildOptions=Shapes, newest_engine=lambda _, wanted="": engines.get(wanted)
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = replace(TABLE[NAME], module="a_keeper", name="Keeper", package="json", archive="a_keeper")
    table: Mapping[str, backends.Entry] = {**TABLE, NAME: entry}
    monkeypatch.setattr(backends, "TABLE", table)
    return engines


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return a_run(tmp_path / "run", {"source": FP32, "fuse": FP32})


def test_it_builds_for_the_shapes_that_were_asked_for(run: Run, kept: dict[str, Artifact]) -> None:
    (row,) = build_engines(run, NAME, BuildOptions(), batch=(1, 2, 4), command="vitesse build")
    assert row.refusal == "" and row.changes == {"planned": 1}
    assert Keeper.asked == Shapes((), (1, 2, 4), "vitesse build")


def test_its_newest_engine_is_taken_and_of_a_step_only_that_steps(
    run: Run, kept: dict[str, Artifact]
) -> None:
    with pytest.raises(BackendError, match=f"has no {NAME} engine of the step fuse") as caught:
        engine_for(run, NAME, "fuse")
    assert caught.value.fix == f"vitesse build {run.folder} --target {NAME} --stage fuse"
    engine = run.artifact
    kept[""] = engine
    assert engine_for(run, NAME) == engine


def test_only_an_entry_with_an_archive_keeps_engines_of_its_own() -> None:
    assert {name for name in TABLE if own_engines(name) is not None} == {NAME}
    assert own_engines("cpu") is None
