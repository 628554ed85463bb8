"""A finished run, opened for serving: engines, pools, the way between them, and the warm-up before it is ready.

Run ──▶ chosen artifact ──▶ engine ──▶ pool ─┐
    └─▶ original model  ──▶ engine ──▶ pool ─┴─▶ Router ──▶ Service ──▶ app
                                         warm-up on every worker, golden images ──▶ ready, or the reason why not
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from vitesse.artifact import Artifact
from vitesse.backends import GPUS, backend
from vitesse.backends.closing import Closing
from vitesse.backends.protocol import Engine, LoadOptions
from vitesse.data.preprocess import feeds
from vitesse.environment import usable_cores
from vitesse.errors import UsageError
from vitesse.ledger import Row
from vitesse.run import Run, artifact_of, spec_of
from vitesse.serve.auth import Access
from vitesse.serve.execution import Threads
from vitesse.serve.limits import Limits
from vitesse.serve.logs import NAME
from vitesse.serve.metrics import Load, Metrics
from vitesse.serve.pool import Pool
from vitesse.serve.pool_metrics import PoolMetrics
from vitesse.serve.protocol import Signature
from vitesse.serve.refusals import Refusal
from vitesse.serve.release_watch import ReleaseWatch
from vitesse.serve.releases.breaker import Breaker
from vitesse.serve.releases.golden import check, golden_of, tolerances_of
from vitesse.serve.releases.of_run import initial_state, name_of
from vitesse.serve.releases.router import Router
from vitesse.serve.releases.sampler import DecodedSampler
from vitesse.serve.releases.state import REFERENCE, StateFile
from vitesse.serve.sampling import Sampler
from vitesse.serve.service import Service
from vitesse.serve.settings import PoolSettings, settings_for
from vitesse.serve.status import Status, model_facts
from vitesse.serve.tally import Tally
from vitesse.serve.windows import Windows
from vitesse.serve.work import Arrays
from vitesse.spec import ModelSpec

VERSION = "1"
_WAITING_FOR_A_THREAD = 16  # decodings in line for each thread
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
class _Variant:
    """One loaded artifact."""

    artifact: Artifact
    engine: Engine
    pool: Pool


class Served(Closing):
    """An opened run. `start` warms it up on a thread of its own; `close` finishes what was accepted.

    Args:
        service: what the routes ask.
        variants: release → what runs it. sampler: reads the machine's sensors.
        golden: looks whether a variant is right on this machine; returns the reason why not, "" when it is.
    """

    def __init__(
        self,
        service: Service,
        variants: Mapping[str, _Variant],
        sampler: Sampler,
        golden: Callable[[str], str] = lambda release: "",
    ) -> None:
        self.service = service
        self._variants, self._sampler, self._golden = variants, sampler, golden
        self._warming = threading.Thread(target=self._warm_up, name="vitesse-warm-up", daemon=True)

    def start(self) -> None:
        """Begin to sample and to warm up; `service.readiness` says when that is done or what went wrong."""
        self._sampler.start()
        self._warming.start()

    def wait(self, limit_s: float) -> bool:
        """Wait for the warm-up, at most so long; returns whether requests are taken then."""
        self._warming.join(limit_s)
        return self.service.readiness.ready

    def close(self, drain_s: float = 0.0) -> None:
        """Finish accepted work for `drain_s` seconds, then let go of everything; what hangs is left behind."""
        self._sampler.close()
        self.service.threads.close()
        _close(self._variants, drain_s)

    def _warm_up(self) -> None:
        readiness, began = self.service.readiness, self.service.clock()
        readiness.become("warming", "the model is being warmed up")
        for name, variant in self._variants.items():
            try:
                shapes = warm_up_feeds(variant.artifact.spec, variant.pool.health().max_items)
                seconds = variant.pool.warm_up(shapes)
                wrong = self._golden(name)
            except Exception as error:  # whatever a runtime raises: the server stays up and says it
                _LOG.exception("warm-up of %s failed", name)
                readiness.become("failed", f"the warm-up of {name} failed: {error}")
                return
            if wrong:
                _LOG.error("%s is not right on this machine: %s", name, wrong)
                readiness.become("failed", f"{name} is not right on this machine: {wrong}")
                return
            _LOG.info("%s is warm after %.2f s, %d shapes", name, seconds, len(shapes))
        self.service.metrics.warmed_up(self.service.clock() - began)
        readiness.become("ready")


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


class _Operator:
    """The router's manual moves; what it cannot do now is a 409."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def promote(self) -> Mapping[str, Any]:
        try:
            return self._router.promote()
        except UsageError as error:
            raise Refusal(409, "bad_request", str(error)) from error

    def rollback(self, why: str) -> Mapping[str, Any]:
        try:
            return self._router.rollback(why)
        except UsageError as error:
            raise Refusal(409, "bad_request", str(error)) from error


def open_served(run: Run, options: ServeOptions, clock: Callable[[], float] = time.monotonic) -> Served:
    """Load a run's chosen artifact and, beside it, the original model; nothing is warm yet.

    Raises:
        RunFolderError: the run is unfinished, or an artifact is not the file that was verified.
        MissingExtra, BackendError: the runtime is not here, or refuses the artifact.
    """
    chosen = run.ledger.chosen_row()
    live, original = run.artifact, artifact_of(run.folder, run.ledger.rows[0], spec_of(run.folder))
    name, release = options.name or model_name(run.ledger.source), name_of(chosen)
    settings = _settings(run, options)
    windows, tally = Windows(clock), Tally()
    metrics = Metrics(CollectorRegistry(), name, VERSION, live.backend, windows=windows)
    variants = {release: _open(live, settings, options, _Counted(metrics, tally), clock)}
    if options.reference:
        beside = metrics.beside(REFERENCE, original.backend, in_windows=True)
        variants[REFERENCE] = _open(original, settings, options, _Counted(beside, tally), clock)
    watch = ReleaseWatch(metrics)
    specs = {key: variant.artifact.spec for key, variant in variants.items()}
    router = Router(
        {key: variant.pool for key, variant in variants.items()},
        REFERENCE,
        release,
        Breaker(clock),
        DecodedSampler(lambda key: specs.get(key, live.spec), np.random.default_rng().random,
                       share=0.02 if options.reference else 0.0),
        clock,
        observer=watch,
        state=StateFile(run.folder),
        initial=initial_state(run, time.time()),
        fullness=_fullness,
    )  # fmt: skip
    if not options.reference and router.control.state.live is None:
        _close(variants)
        raise UsageError(
            "no release of this run is live, and --no-reference leaves nothing that could answer",
            cause="the run has chosen the original model, or its release was rolled back",
            fix="serve without --no-reference",
        )
    service = _service(name, variants, release, router, metrics, tally, options, settings, clock)
    status = Status(
        facts=model_facts(run, name),
        limits=options.limits,
        metrics=metrics,
        windows=windows,
        watch=watch,
        load=lambda: _load(variants),
        releases=router.status,
        ready=lambda: (not service.unready(), service.unready()),
        clock=clock,
    )
    service.status, service.release = status.document, lambda: status.document()["release"]
    metrics.watch_load(lambda: _load(variants))
    device = options.device if live.backend in GPUS else None
    rows = {release: chosen, REFERENCE: run.ledger.rows[0]}
    return Served(
        service,
        variants,
        Sampler(status.sampled, device=device, clock=clock),
        lambda key: _wrong(run, rows[key], variants[key]),
    )


def model_name(source: str) -> str:
    """Return a name for addresses, from the text the model was opened by: `models/detr r50.onnx` → `detr_r50`."""
    stem = re.sub(r"[^A-Za-z0-9_.+-]+", "_", Path(source).stem).strip("._")
    return stem[:64] or "model"


def _wrong(run: Run, row: Row, variant: _Variant) -> str:
    """Return how a variant's outputs differ from the golden ones on this machine; "" where they don't."""
    with variant.engine.session() as session:
        found = check(session, variant.artifact.spec, golden_of(run), tolerances_of(row, run.ledger))
    return "; ".join(found)


def _close(variants: Mapping[str, _Variant], drain_s: float = 0.0) -> None:
    for name, variant in variants.items():
        if variant.pool.close(drain_s):
            variant.engine.close()
        else:  # its thread may still be in a run, whose weights must stay
            _LOG.warning("%s was closed with a run that hangs; its memory is left to the system", name)


def _settings(run: Run, options: ServeOptions) -> PoolSettings:
    found = settings_for(run, run.ledger.target, device=options.device)
    given = {
        "workers": options.workers,
        "max_items": options.batch,
        "max_wait_s": None if options.wait_ms is None else options.wait_ms / 1e3,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    return replace(found, **changed) if changed else found  # type: ignore[arg-type]


def _open(
    artifact: Artifact,
    settings: PoolSettings,
    options: ServeOptions,
    observer: _Counted,
    clock: Callable[[], float],
) -> _Variant:
    engine = backend(artifact.backend).load(
        artifact,
        LoadOptions(
            threads=settings.threads,
            sessions=settings.workers,
            device=options.device,
            cuda_graph=settings.cuda_graph,
        ),
    )
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
    return _Variant(artifact, engine, pool)


def _service(
    name: str,
    variants: Mapping[str, _Variant],
    release: str,
    router: Router,
    metrics: Metrics,
    tally: Tally,
    options: ServeOptions,
    settings: PoolSettings,
    clock: Callable[[], float],
) -> Service:
    live = variants[release]
    engine, most = live.engine, live.pool.health().max_items
    platform = f"{live.artifact.backend}_{'plan' if live.artifact.backend.startswith('tensorrt') else 'onnx'}"
    cores = usable_cores()
    return Service(
        Signature(name, VERSION, platform, engine.inputs, engine.outputs, most),
        live.artifact.spec,
        router,
        metrics,
        Threads(cores, cores * _WAITING_FOR_A_THREAD),
        dict,
        tally,
        options.limits,
        workers=settings.workers,
        max_wait_s=settings.max_wait_s,
        why_dead=lambda: next((why for one in variants.values() if (why := one.pool.health().broken)), ""),
        not_ready=lambda: _no_worker(variants),
        releases=_Operator(router) if options.reference else None,
        keys=options.access.clients,
        admin_keys=options.access.admin,
        specs={key: variant.artifact.spec for key, variant in variants.items()},
        allow_nonfinite=options.allow_nonfinite,
        fast_decode=options.fast_decode,
        clock=clock,
    )


def _no_worker(variants: Mapping[str, _Variant]) -> str:
    if any(variant.pool.health().ready for variant in variants.values()):
        return ""
    return "no worker is left that can run the model; they are being replaced"


def _load(variants: Mapping[str, _Variant]) -> Load:
    found = [variant.pool.health() for variant in variants.values()]
    workers = [worker for one in found for worker in one.workers]
    return Load(
        sum(one.depth for one in found),
        sum(one.capacity for one in found),
        sum(worker.state == "busy" for worker in workers),
        len(workers),
    )


def _fullness(executor: object) -> float:
    assert isinstance(executor, Pool)
    found = executor.health()
    return found.depth / max(1, found.capacity)
