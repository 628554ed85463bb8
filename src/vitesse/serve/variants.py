"""The artifacts of a run that a server has loaded: engines, pools, warm-up and the look at golden images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import Engine, LoadOptions
from vitesse.data.preprocess import feeds
from vitesse.errors import VitesseError
from vitesse.ledger import Row
from vitesse.run import Run, artifact_of, spec_of
from vitesse.serve.auth import Access
from vitesse.serve.limits import Limits
from vitesse.serve.logs import NAME
from vitesse.serve.metrics import Load, Metrics
from vitesse.serve.pool import Pool
from vitesse.serve.pool_metrics import PoolMetrics
from vitesse.serve.releases.golden import check, golden_of, tolerances_of
from vitesse.serve.releases.of_run import artifact_for, name_of
from vitesse.serve.releases.state import REFERENCE, Phase, ReleaseState
from vitesse.serve.settings import PoolSettings, settings_for
from vitesse.serve.tally import Tally
from vitesse.serve.work import Arrays
from vitesse.spec import ModelSpec

# Releases that may come to answer, beside the live one.
STANDING_BY = (Phase.CANARY, Phase.CANDIDATE, Phase.PREVIOUS)
_LOG = logging.getLogger(NAME)


@dataclass(frozen=True)
class ServeOptions:
    """What `vitesse serve` may be told.

    Args:
        workers, batch, wait_ms: of the pool; None leaves them to `settings_for`.
        capacity: items that may wait; 0 = 8 × batch × workers.
        reference: whether the original model is loaded too, and stands by.
        name: in the addresses of v2; "" = that of the model's file.
        device: number of the GPU. hang_s: a run that takes longer is given up.
    """

    workers: int | None = None
    batch: int | None = None
    wait_ms: float | None = None
    capacity: int = 0
    reference: bool = True
    name: str = ""
    device: int = 0
    hang_s: float = 10.0
    fast_decode: bool = False
    allow_nonfinite: bool = False
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)


@dataclass(frozen=True)
class Variant:
    """One loaded artifact of a run, and the row of the ledger that it comes from."""

    row: Row
    artifact: Artifact
    engine: Engine
    pool: Pool

    def warm_up(self, run: Run) -> str:
        """Run every shape on every worker, then the golden images; return why it must not answer here, "" if it may."""
        shapes = warm_up_feeds(self.artifact.spec, self.pool.health().max_items)
        seconds = self.pool.warm_up(shapes)
        with self.engine.session() as session:
            found = check(session, self.artifact.spec, golden_of(run), tolerances_of(self.row, run.ledger))
        _LOG.info("%s is warm after %.2f s, %d shapes", self.row.stage, seconds, len(shapes))
        return "; ".join(found)


def open_variants(
    run: Run,
    state: ReleaseState,
    options: ServeOptions,
    metrics: Metrics,
    tally: Tally,
    clock: Callable[[], float],
) -> dict[str, Variant]:
    """Load what is live, the original unless it is not wanted, and what stands by; by release, nothing warm yet.

    What only stands by and cannot be loaded is left out, and the log says why.

    Raises:
        RunFolderError: an artifact that has to answer is not the file that was verified.
        MissingExtra, BackendError: its runtime is not here, or refuses it.
        UsageError: a queue without room for one batch.
    """
    settings = pool_settings(run, options)
    found: dict[str, Variant] = {}

    def add(release: str, row: Row, artifact: Artifact) -> None:
        beside = metrics.beside(release, artifact.backend, in_windows=True) if found else metrics
        found[release] = _open(row, artifact, settings, options, _Counted(beside, tally), clock)

    try:
        if state.live is not None:
            add(state.live.name, *artifact_for(run, state.live))
        else:  # the reference answers; what the run has chosen waits beside it
            add(name_of(run.ledger.chosen_row()), run.ledger.chosen_row(), run.artifact)
        if options.reference:
            original = run.ledger.rows[0]
            add(REFERENCE, original, artifact_of(run.folder, original, spec_of(run.folder)))
        for release in state.releases:
            if release.phase in STANDING_BY and release.name not in found:
                try:
                    add(release.name, *artifact_for(run, release))
                except VitesseError as error:
                    _LOG.warning("%s stands by and is not loaded: %s", release.name, error)
    except BaseException:
        close_variants(found)
        raise
    return found


def warm_up_feeds(spec: ModelSpec, max_items: int) -> list[Arrays]:
    """Return feeds of every shape that images can take: the largest bucket first, full batches before single items.

    The pictures are noise, which costs a detector as much as a picture full of things.
    """
    sizes = sorted(
        spec.preprocessing.buckets or (spec.preprocessing.size,), key=lambda size: -size[0] * size[1]
    )
    noise = np.random.default_rng(0)
    found: list[Arrays] = []
    for height, width in sizes:
        picture = noise.integers(0, 256, (height, width, 3), np.uint8)
        # With one bucket alone, or the rules might lay the picture into another one.
        rules = replace(spec.preprocessing, buckets=((height, width),) if spec.preprocessing.buckets else ())
        alone = replace(spec, preprocessing=rules)
        found += [feeds([picture] * items, alone) for items in sorted({max_items, 1}, reverse=True)]
    return found


class _Counted:
    """Observes a pool for the metrics and for v2's statistics."""

    def __init__(self, metrics: PoolMetrics, tally: Tally) -> None:
        self._metrics, self._tally = metrics, tally
        self.refused, self.worker_changed = metrics.refused, metrics.worker_changed
        self.memory_halved = metrics.memory_halved

    def batch_executed(
        self, items: int, works: int, queue_s: Sequence[float], infer_s: float, device_ms: float | None
    ) -> None:
        self._metrics.batch_executed(items, works, queue_s, infer_s, device_ms)
        self._tally.batch(items, queue_s, infer_s)


def close_variants(variants: Mapping[str, Variant], drain_s: float = 0.0) -> None:
    """Finish accepted work for `drain_s` seconds, then release everything but what a hung run still uses."""
    for name, variant in variants.items():
        if variant.pool.close(drain_s):
            variant.engine.close()
        else:  # its thread may still be in a run, whose weights must stay
            _LOG.warning("%s was closed with a run that hangs; its memory is left to the system", name)


def pool_settings(run: Run, options: ServeOptions) -> PoolSettings:
    """Return what was asked for, and for the rest what suits the run's target and was tuned."""
    found = settings_for(run, run.ledger.target, device=options.device)
    given = {
        "workers": options.workers,
        "max_items": options.batch,
        "max_wait_s": None if options.wait_ms is None else options.wait_ms / 1e3,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    return replace(found, **changed) if changed else found  # type: ignore[arg-type]


def _open(
    row: Row,
    artifact: Artifact,
    settings: PoolSettings,
    options: ServeOptions,
    observer: _Counted,
    clock: Callable[[], float],
) -> Variant:
    engine = backend(artifact.backend).load(
        artifact,
        LoadOptions(
            threads=settings.threads,
            sessions=settings.workers,
            device=options.device,
            cuda_graph=settings.cuda_graph,
        ),
    )
    try:
        pool = Pool(
            engine,
            workers=settings.workers,
            max_items=settings.max_items,
            max_wait_s=settings.max_wait_s,
            capacity=options.capacity,
            hang_s=options.hang_s,
            clock=clock,
            observer=observer,
        )
    except BaseException:
        engine.close()
        raise
    return Variant(row, artifact, engine, pool)


def load_of(variants: Mapping[str, Variant]) -> Load:
    """Return the queue that is fullest, for that is the one which answers, and all workers."""
    found = [variant.pool.health() for variant in variants.values()]
    workers = [worker for one in found for worker in one.workers]
    fullest = max(found, key=lambda one: (one.depth / max(1, one.capacity), one.capacity))
    busy = sum(worker.state == "busy" for worker in workers)
    return Load(fullest.depth, fullest.capacity, busy, len(workers))
