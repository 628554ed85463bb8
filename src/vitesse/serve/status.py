"""What the dashboard polls: everything about the running server as one JSON document, `GET /api/status`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from vitesse.run import Run, spec_of
from vitesse.serve.alerts import Alert, Alerts, Seen
from vitesse.serve.limits import Limits
from vitesse.serve.logs import NAME
from vitesse.serve.metrics import Load, Metrics
from vitesse.serve.release_watch import ReleaseWatch
from vitesse.serve.sampling import Sample
from vitesse.serve.windows import Windows

SCHEMA = 1
_LOG = logging.getLogger(NAME)
# Sampled each second and drawn over the last minute.
_DRAWN = ("queue", "cpu_percent", "memory_mb", "gpu_percent", "gpu_memory_mb")
_EVENTS_SHOWN = 20
_ALERTS_KEPT = 20


class Status:
    """Gathers samples, counts and states; `sampled` comes from the sampler's thread, `document` from any.

    Args:
        facts: of the model, from `model_facts`. limits: shown as they are.
        load: queue and workers now. releases: `releases.router.Router.status`.
        ready: whether requests are taken, and why not.
        clock: seconds, monotonic, the same as the windows'; wall: seconds since 1970.
    """

    def __init__(
        self,
        *,
        facts: Mapping[str, Any],
        limits: Limits,
        metrics: Metrics,
        windows: Windows,
        watch: ReleaseWatch,
        load: Callable[[], Load],
        releases: Callable[[], Mapping[str, Any]],
        ready: Callable[[], tuple[bool, str]],
        alerts: Alerts | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._facts, self._limits = dict(facts), asdict(limits)
        self._metrics, self._windows, self._watch = metrics, windows, watch
        self._load, self._releases, self._ready = load, releases, ready
        self._alerts, self._clock, self._wall = alerts or Alerts(), clock, wall
        self._began, self._lock = clock(), threading.Lock()
        self._sample: Sample | None = None
        self._past: deque[Alert] = deque(maxlen=_ALERTS_KEPT)
        self._standing: tuple[Alert, ...] = ()

    def sampled(self, sample: Sample) -> None:
        """Take the sensors' figures of this second: into gauges and windows, and judge whether to alert."""
        load, figures = self._load(), self._windows.figures()
        self._metrics.sensed(sample.values)
        variant, why = answering(self._releases())
        self._metrics.active_variant(variant)
        self._windows.sampled({**sample.values, "queue": float(load.queue_depth)})
        seen = Seen(
            at=sample.at,
            answered=self._windows.answered,
            memory_mb=sample.values.get("memory_mb"),
            throttling=sample.throttling,
            queue_depth=load.queue_depth,
            queue_capacity=load.queue_capacity,
            requests=figures.requests,
            failed=figures.failed,
            refused=figures.refused,
            breaker=why,
        )
        changed = self._alerts.update(seen)
        with self._lock:
            self._sample, self._standing = sample, self._alerts.standing
            self._past.extend(one for one in changed if one.until is not None)
        for one in changed:
            if one.until is None:
                _LOG.warning("alert %s: %s %s", one.name, one.text, one.next_step)
            else:
                _LOG.info("alert %s is over", one.name)

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON: schema 1, times in seconds since 1970, other units end the names.

        A figure that is not known is null, never 0.
        """
        now, wall, load = self._clock(), self._wall(), self._load()
        ready, reason = self._ready()
        with self._lock:
            sample, standing, past = self._sample, self._standing, tuple(self._past)
        return {
            "schema": SCHEMA,
            "time": wall,
            "uptime_s": round(now - self._began, 1),
            "ready": ready,
            "reason": reason,
            "model": self._facts,
            "window_s": self._windows.seconds,
            "figures": _rounded(asdict(self._windows.figures())),
            "series": {
                name: [_short(one) for one in values] for name, values in self._windows.series(_DRAWN).items()
            },
            "load": asdict(load),
            "workers": {str(number): state for number, state in sorted(self._metrics.workers().items())},
            "machine": _machine(sample, now),
            "release": self._release(),
            "alerts": [_alert(one, wall - now) for one in standing],
            "past_alerts": [_alert(one, wall - now) for one in reversed(past)],
            "limits": self._limits,
        }

    def _release(self) -> dict[str, Any]:
        told = self._releases()
        variant, why = answering(told)
        breakers = told.get("breakers", {})
        return {
            "answering": variant,
            "serving": told["serving"],
            "why": why,
            "releases": [
                {**one, "breaker": breakers.get(one["name"], {}).get("state", "closed")}
                for one in told["releases"]
            ],
            "agreement": _short(self._watch.agreement),
            "events": list(reversed(told["events"][-_EVENTS_SHOWN:])),
        }


def answering(told: Mapping[str, Any]) -> tuple[str, str]:
    """Return "live" or "reference", whichever answers, and why a live release does not.

    Args:
        told: by `releases.router.Router.status`.
    """
    if told["serving"] != told["reference"]:
        return "live", ""
    live = told["live"]
    if live is None:
        return "reference", ""
    return "reference", told["breakers"].get(live, {}).get("why") or f"{live} is not loaded"


def model_facts(run: Run, name: str) -> dict[str, Any]:
    """Return what the dashboard says of the model: from the run's ledger, null where it was not measured.

    Raises:
        RunFolderError: the run has chosen nothing yet.
    """
    row, spec = run.ledger.chosen_row(), spec_of(run.folder)
    final: Mapping[str, Any] = run.ledger.final or {}
    accuracy, artifact = row.accuracy, row.artifact
    return {
        "name": name,
        "task": spec.task.value,
        "labels": len(spec.labels),
        "input_size": list(row.input_size or spec.preprocessing.size),
        "stage": row.stage,
        "verdict": row.verdict.value,
        "target": run.ledger.target,
        "backend": None if artifact is None else artifact.backend,
        "artifact": None if artifact is None else artifact.path,
        "sha256": None if artifact is None else artifact.sha256,
        "bytes": None if artifact is None else artifact.bytes,
        "gain": final.get("gain", row.gain),
        "accuracy": None if accuracy is None else asdict(accuracy),
    }


def _machine(sample: Sample | None, now: float) -> dict[str, Any]:
    if sample is None:
        return {"age_s": None, "values": {}, "throttling": [], "missing": {}}
    return {
        "age_s": round(now - sample.at, 1),
        "values": _rounded(sample.values),
        "throttling": list(sample.throttling),
        "missing": dict(sample.missing),
    }


def _alert(one: Alert, to_wall: float) -> dict[str, Any]:
    until = None if one.until is None else one.until + to_wall
    return {**asdict(one), "since": one.since + to_wall, "until": until}


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _short(value) for name, value in values.items()}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
