"""Scores images with Ray Data: a pool of actors, each with a session of its own; a bad image fails alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import ray
from ray.exceptions import RayError

from vitesse.backends import GPUS
from vitesse.environment import usable_cores
from vitesse.errors import BackendError, DataError
from vitesse.predict import Model, show
from vitesse.ray_cluster import MIB, joined
from vitesse.run import Run, load_options, open_run
from vitesse.scoring.lines import Lines
from vitesse.scoring.parquet import RowGroup, read_rows, row_groups
from vitesse.scoring.sources import Sources, find_sources

_STORE = 256 * MIB
# Images an actor takes at a time: few, so that little is done twice when an actor dies.
_AT_A_TIME = 16
_ROWS = pyarrow.schema([("name", pyarrow.string()), ("file", pyarrow.bool_()), ("image", pyarrow.binary())])


@dataclass(frozen=True)
class Scored:
    """How many images were answered, could not be read, and had their line already."""

    answered: int
    failed: int
    known: int


def score_on_ray(
    folder: Path, named: Sequence[str], out: Path | None, *, actors: int = 0, threshold: float = 0.5
) -> Scored:
    """Score images with a run's artifact and write one line of JSON for each, in the order in which they are ready.

    A line is that of `vitesse predict --json`, or `{"image": …, "error": …}` for an image that cannot be read.

    Args:
        folder: of the run; it and the images lie at the same place on every machine.
        named: image files, folders, Parquet files (`parquet`).
        out: None = standard output. An unfinished file of the same command is gone on with.
        actors: processes with a session each; 0 = one for each core, on a GPU for each GPU of the cluster.
        threshold: lowest score of a box that is shown.

    Raises:
        DataError: nothing to score, or a Parquet file without images.
        RunFolderError: no finished run. UsageError: `out` is not the beginning of this work.
        BackendError: the runtime failed, with its reason; what was written stays.
    """
    run, sources = open_run(folder), find_sources(named)
    groups = [group for file in sources.tables for group in row_groups(file)]
    made_by = {"artifact_sha256": run.artifact.sha256, "threshold": f"{threshold:g}"}
    with Lines(out, made_by) as lines:
        answered = failed = 0
        for batch in _answers(run, sources, groups, lines.known, actors, threshold):
            wrong = sum(batch.column("failed").to_pylist())
            answered, failed = answered + len(batch) - wrong, failed + wrong
            lines.add(batch.column("line").to_pylist())
        lines.finish()
        return Scored(answered, failed, len(lines.known))


def _answers(
    run: Run, sources: Sources, groups: list[RowGroup], known: frozenset[str], actors: int, threshold: float
) -> Iterator[pyarrow.Table]:
    """Yield tables of `line` and `failed`; nothing is started where nothing is left to do."""
    pictures = [str(path) for path in sources.pictures if str(path) not in known]
    if not pictures and not groups:
        return
    on_gpu = run.ledger.target in GPUS
    with joined(actors or usable_cores(), _STORE):
        ray.data.DataContext.get_current().enable_progress_bars = False
        share = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1)))
        actors = actors or share
        threads = max(1, usable_cores() // actors)
        rows = _rows(pictures, groups, known)
        answers = rows.map_batches(
            Scorer,
            fn_constructor_args=(str(run.folder.resolve()), threshold, 0 if on_gpu else threads),
            batch_size=_AT_A_TIME,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=1 if on_gpu else 0,
            num_cpus=1,
        )
        try:
            yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")
        except RayError as error:
            raise BackendError(
                f"scoring stopped: {_reason(error)}",
                cause="the runtime failed, or the run folder is not at this place on every machine",
                fix="repeat the command: what was written stays, and what is missing is done",
            ) from error


def _rows(pictures: list[str], groups: list[RowGroup], known: frozenset[str]) -> ray.data.Dataset:
    """Return rows of `_ROWS`: an image's name, and its bytes unless it is a `file` that the actor opens itself."""
    found = []
    if pictures:
        table = pyarrow.table(
            {"name": pictures, "file": [True] * len(pictures), "image": [b""] * len(pictures)}, _ROWS
        )
        cut = [table.slice(start, _AT_A_TIME) for start in range(0, len(table), _AT_A_TIME)]
        found.append(ray.data.from_arrow(cut))
    if groups:

        def read(batch: dict[str, Any]) -> Iterator[pyarrow.Table]:
            for file, group, first in zip(batch["file"], batch["group"], batch["first"], strict=True):
                for rows in read_rows(RowGroup(Path(file), int(group), int(first)), known):
                    names, images = [name for name, _ in rows], [image for _, image in rows]
                    yield pyarrow.table({"name": names, "file": [False] * len(rows), "image": images}, _ROWS)

        # Readers wait for the disk; were they to need cores, actors that hold all of them would wait for them for ever.
        items = [{"file": str(one.file), "group": one.group, "first": one.first} for one in groups]
        parts = ray.data.from_items(items, override_num_blocks=len(items))
        found.append(parts.map_batches(read, batch_size=1, num_cpus=0))
    return found[0] if len(found) == 1 else found[0].union(found[1])


class Scorer:
    """One actor: a loaded artifact, called with tables of `_ROWS`; not thread-safe.

    Args:
        threads: of its session; 0 = the runtime's default.
    """

    def __init__(self, folder: str, threshold: float, threads: int) -> None:
        run = open_run(Path(folder))
        options = replace(load_options(run.ledger.chosen_row()), threads=threads)
        self._model, self._threshold = Model(run.artifact, options), threshold

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Return `line` and `failed` for each row."""
        found = [self._one(row["name"], row["file"], row["image"]) for row in table.to_pylist()]
        return pyarrow.table(
            {"line": [line for line, _ in found], "failed": [failed for _, failed in found]},
            pyarrow.schema([("line", pyarrow.string()), ("failed", pyarrow.bool_())]),
        )

    def _one(self, name: str, is_file: bool, image: bytes) -> tuple[str, bool]:
        try:
            result = self._model(name if is_file else image)
        except DataError as error:
            return json.dumps({"image": name, "error": str(error)}), True
        return show(result, name, threshold=self._threshold, as_json=True), False


def _reason(error: RayError) -> str:
    """Return the last line of a remote traceback: the exception that was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
