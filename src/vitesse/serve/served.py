"""A finished run, opened for serving: engines, pools, the way between them, and the warm-up before it is ready.

Run ──▶ variants: live, original, standing by ──▶ engine ──▶ pool ──▶ Router ──▶ Service ──▶ app
                                         warm-up on every worker, golden images ──▶ ready, or the reason why not
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from vitesse.backends import GPUS
from vitesse.backends.closing import Closing
from vitesse.environment import usable_cores
from vitesse.errors import RunFolderError, StorageError, UsageError
from vitesse.run import Run
from vitesse.serve.admission import Places
from vitesse.serve.allocator import bound_memory
from vitesse.serve.execution import Threads
from vitesse.serve.logs import NAME
from vitesse.serve.metrics import Metrics
from vitesse.serve.pool import Pool
from vitesse.serve.protocol import Signature
from vitesse.serve.refusals import Refusal
from vitesse.serve.release_watch import ReleaseWatch
from vitesse.serve.releases.breaker import Breaker
from vitesse.serve.releases.fitting import misfit
from vitesse.serve.releases.of_run import brought_up_to_date, initial_state
from vitesse.serve.releases.router import Router
from vitesse.serve.releases.sampler import DecodedSampler
from vitesse.serve.releases.state import REFERENCE, ReleaseState, StateFile
from vitesse.serve.sampling import Sampler
from vitesse.serve.service import Service
from vitesse.serve.settings import PoolSettings
from vitesse.serve.status import Status, model_facts
from vitesse.serve.tally import Tally
from vitesse.serve.variants import (
    ServeOptions,
    Variant,
    close_variants,
    load_of,
    open_variants,
    pool_settings,
)
from vitesse.serve.windows import Windows

VERSION = "1"
_LOG = logging.getLogger(NAME)


class Served(Closing):
    """An opened run. `start` warms it up on a thread of its own; `close` finishes what was accepted.

    Args:
        service: what the routes ask.
        variants: release → what runs it; those that the router does not know yet stand by.
        sampler: reads the machine's sensors.
    """

    def __init__(
        self, run: Run, service: Service, variants: Mapping[str, Variant], router: Router, sampler: Sampler
    ) -> None:
        self.service = service
        self._run, self._variants, self._router, self._sampler = run, variants, router, sampler
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
        close_variants(self._variants, drain_s)

    def _warm_up(self) -> None:
        """What has to answer comes first; ready is said when that is warm, and what stands by follows."""
        readiness, began = self.service.readiness, self.service.clock()
        readiness.become("warming", "the model is being warmed up")
        waiting = [name for name in self._variants if not self._router.knows(name)]
        for name in self._variants:
            if name in waiting:
                continue
            if wrong := self._warmed_up(name):
                readiness.become("failed", wrong)
                return
        self.service.metrics.warmed_up(self.service.clock() - began)
        readiness.become("ready")
        for name in waiting:
            if not self._warmed_up(name):
                self._router.add(name, self._variants[name].pool)

    def _warmed_up(self, name: str) -> str:
        """Warm one variant up; return, and log, why it must not answer here."""
        try:
            wrong = self._variants[name].warm_up(self._run)
        except Exception as error:  # whatever a runtime raises: the server stays up and says it
            _LOG.exception("warm-up of %s failed", name)
            return f"the warm-up of {name} failed: {error}"
        if not wrong:
            return ""
        _LOG.error("%s is not right on this machine: %s", name, wrong)
        return f"{name} is not right on this machine: {wrong}"


class _Operator:
    """The router's manual moves; what it cannot do now is a 409, a state that cannot be written a 503."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def promote(
        self, release: str = "", *, share: float | None = None, shadow: bool = False
    ) -> Mapping[str, Any]:
        return _moved(lambda: self._router.promote(release, share=share, shadow=shadow))

    def rollback(self, why: str) -> Mapping[str, Any]:
        return _moved(lambda: self._router.rollback(why))


def _moved(move: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return move()
    except UsageError as error:
        raise Refusal(409, "bad_request", str(error)) from error
    except StorageError as error:
        raise Refusal(503, "internal", str(error)) from error


def open_served(run: Run, options: ServeOptions, clock: Callable[[], float] = time.monotonic) -> Served:
    """Load what is live in a run, the original model beside it, and what stands by; nothing is warm yet.

    Raises:
        RunFolderError: the run is unfinished, or an artifact is not the file that was verified.
        UsageError: nothing is loaded that could answer.
        MissingExtra, BackendError: the runtime is not here, or refuses the artifact.
    """
    bound_memory()
    state = _state_of(run)
    name, windows, tally = options.name or model_name(run.ledger.source), Windows(clock), Tally()
    metrics = Metrics(CollectorRegistry(), name, VERSION, run.artifact.backend, windows=windows)
    variants = open_variants(run, state, options, metrics, tally, clock)
    try:
        watch = ReleaseWatch(metrics)
        router = _router(run, state, variants, watch, clock)
        service = _service(
            name, variants, router, metrics, tally, options, pool_settings(run, options), clock
        )
    except BaseException:
        close_variants(variants)
        raise
    status = Status(
        facts=model_facts(run, name),
        limits=options.limits,
        metrics=metrics,
        windows=windows,
        watch=watch,
        load=lambda: load_of(variants),
        releases=router.status,
        ready=lambda: (not service.unready(), service.unready()),
        clock=clock,
    )
    service.status, service.release = status.document, lambda: status.document()["release"]
    metrics.watch_load(lambda: load_of(variants))
    device = options.device if run.artifact.backend in GPUS else None
    return Served(run, service, variants, router, Sampler(status.sampled, device=device, clock=clock))


def _state_of(run: Run) -> ReleaseState:
    """Return the run's releases; a damaged file or one that cannot be written leaves the run's own choice."""
    try:
        return brought_up_to_date(run, StateFile(run.folder))
    except (RunFolderError, StorageError) as error:
        _LOG.warning("the releases of %s are not taken from its file: %s", run.folder, error)
        return initial_state(run, time.time())


def _router(
    run: Run,
    state: ReleaseState,
    variants: Mapping[str, Variant],
    watch: ReleaseWatch,
    clock: Callable[[], float],
) -> Router:
    """The way between what has to answer; `Served` adds what stands by once it is warm."""
    release, live = next(iter(variants.items()))
    specs = {key: variant.artifact.spec for key, variant in variants.items()}
    referenced = REFERENCE in variants
    router = Router(
        {key: variants[key].pool for key in (release, REFERENCE) if key in variants},
        REFERENCE,
        release,
        Breaker(clock),
        DecodedSampler(lambda key: specs.get(key, live.artifact.spec), np.random.default_rng().random,
                       share=0.02 if referenced else 0.0),
        clock,
        observer=watch,
        state=StateFile(run.folder),
        initial=state,
        fullness=_fullness,
        misfit=lambda key, feeds: misfit(variants[key].engine.inputs, feeds) if key in variants else "",
    )  # fmt: skip
    if not referenced and router.control.state.live is None:
        raise UsageError(
            "no release of this run is live, and --no-reference leaves nothing that could answer",
            cause="the run has chosen the original model, or its release was rolled back",
            fix="serve without --no-reference",
        )
    return router


def model_name(source: str) -> str:
    """Return a name for addresses, from the text the model was opened by: `models/detr r50.onnx` → `detr_r50`."""
    stem = re.sub(r"[^A-Za-z0-9_.+-]+", "_", Path(source).stem).strip("._")
    return stem[:64] or "model"


def _service(
    name: str,
    variants: Mapping[str, Variant],
    router: Router,
    metrics: Metrics,
    tally: Tally,
    options: ServeOptions,
    settings: PoolSettings,
    clock: Callable[[], float],
) -> Service:
    live = next(iter(variants.values()))
    engine, room = live.engine, live.pool.health()
    platform = f"{live.artifact.backend}_{'plan' if live.artifact.backend.startswith('tensorrt') else 'onnx'}"
    return Service(
        Signature(name, VERSION, platform, engine.inputs, engine.outputs, room.max_items),
        live.artifact.spec,
        router,
        metrics,
        Threads(usable_cores()),
        dict,
        tally,
        options.limits,
        Places(room.capacity + room.max_items * settings.workers),
        workers=settings.workers,
        max_wait_s=settings.max_wait_s,
        why_dead=lambda: next((why for one in variants.values() if (why := one.pool.broken)), ""),
        not_ready=lambda: _no_worker(variants),
        releases=_Operator(router) if REFERENCE in variants else None,
        keys=options.access.clients,
        admin_keys=options.access.admin,
        # A GPU must not wait for a decoder, and a batch for images of unknown shapes.
        decode_in_worker=room.max_items == 1 and live.artifact.backend not in GPUS,
        specs={key: variant.artifact.spec for key, variant in variants.items()},
        allow_nonfinite=options.allow_nonfinite,
        fast_decode=options.fast_decode,
        clock=clock,
    )


def _no_worker(variants: Mapping[str, Variant]) -> str:
    if any(variant.pool.serves() for variant in variants.values()):
        return ""
    return "no worker is left that can run the model; they are being replaced"


def _fullness(executor: object) -> float:
    assert isinstance(executor, Pool)
    found = executor.health()
    return found.depth / max(1, found.capacity)
