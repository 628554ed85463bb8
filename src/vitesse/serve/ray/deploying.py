"""Puts the app on a Ray cluster, and stays with it where the cluster was started for it."""

from __future__ import annotations

import logging
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path

from ray import serve

from vitesse.backends import GPUS
from vitesse.errors import BackendError
from vitesse.ray_cluster import MIB, joined
from vitesse.run import Run, open_run
from vitesse.serve.limits import Limits
from vitesse.serve.logs import NAME
from vitesse.serve.ray.replica import Replica
from vitesse.serve.ray.scale import Load, Scale, load_of
from vitesse.serve.served import model_name
from vitesse.serve.server import leave_now, listen
from vitesse.serve.shutdown import Phase, Shutdown
from vitesse.serve.variants import ServeOptions, pool_settings

APPLICATION = "vitesse"
_STORE = 100 * MIB
# A replica that fails to start does so for the same reason on the next try, except where a disk was away.
_TRIES = 3
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 10.0
# More than the app's own limit, which answers 504: this one is for a process that is stopped.
_LATER_S = 5.0
_LOOK_S = 0.5  # how often a leaving replica asks itself whether it has answered everything
_TICK_S = 0.1
_LOG = logging.getLogger(NAME)


def serve_on_ray(folder: Path, options: ServeOptions, scale: Scale, host: str, port: int) -> int:
    """Serve a run on Ray; returns the exit code.

    On a cluster that runs already the app is put in place of the one that was there, replica by replica, and stays when
    this returns 0. Where there is no cluster, one is started on this machine, and the app serves until a signal comes:
    0 after an end that dropped nothing; a forced end does not return.

    Args:
        host, port: of the proxies; not used where Ray Serve runs already.

    Raises:
        RunFolderError: no finished run. BackendError: the replicas cannot start, with the reason.
        MissingExtra: $RAY_ADDRESS names a cluster that does not answer.
    """
    run = open_run(folder)
    options = options_of_replica(run, options)
    load = load_of(pool_settings(run, options), scale, run.ledger.target)
    name = options.name or model_name(run.ledger.source)
    # One more than the most: a new replica has to start beside an old one.
    with joined((scale.most + 1) * load.cpus, _STORE) as cluster:
        if cluster.own:
            listen(host, port).close()  # Ray would say in its log only that the port is taken
        deploy(run, options, scale, load, host, port)
        if not cluster.own:
            print(f"{name}: on the Ray cluster at {cluster.address}, {_replicas(scale)}", flush=True)
            return 0
        print(
            f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}/, {_replicas(scale)}", flush=True
        )
        stay(options.limits)
    return 0


def options_of_replica(run: Run, options: ServeOptions) -> ServeOptions:
    """Return options with the sessions of one replica: on a CPU one, because replicas are what is multiplied."""
    if options.workers is None and run.ledger.target not in GPUS:
        return replace(options, workers=1)
    return options


def deploy(run: Run, options: ServeOptions, scale: Scale, load: Load, host: str, port: int) -> None:
    """Start the replicas, or replace those of an earlier deployment; returns when all of the new ones answer.

    Needs a connection to a cluster. Old replicas answer until the new ones have warmed up, which takes room for one
    replica more than the scale says.

    Raises:
        BackendError: the replicas cannot start; the text has the reason of the first.
    """
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": host,
            "port": port,
            "request_timeout_s": options.limits.request_s + _LATER_S,
            "keep_alive_timeout_s": max(1, round(options.limits.keep_alive_s)),
        },
    )
    deployment = _deployment(options.limits, scale, load)
    try:
        serve.run(deployment.bind(str(run.folder.resolve()), options), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise BackendError(
            f"the replicas do not start: {_reason() or error}",
            expected="every replica opens the run and answers its golden images",
            cause="the run folder is not at this place on every machine, or the runtime is missing there",
            fix="`vitesse serve` without --ray on that machine says the same; replicas of before serve on",
        ) from error


def _deployment(limits: Limits, scale: Scale, load: Load) -> serve.Deployment:
    number: dict[str, object] = {"num_replicas": scale.most}
    if scale.least != scale.most:
        scaling = {
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": load.target,
        }
        number = {"autoscaling_config": scaling}
    found: serve.Deployment = serve.deployment(
        serve.ingress()(Replica),
        name=APPLICATION,
        max_ongoing_requests=load.ongoing,
        max_queued_requests=load.queued,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        ray_actor_options={"num_cpus": load.cpus, "num_gpus": load.gpus},
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=limits.stop_s,
        graceful_shutdown_wait_loop_s=_LOOK_S,
        max_constructor_retry_count=_TRIES,
        max_surge_percent=1,  # rounded up: one replica more, until the new ones answer
        # Ray's access log has raw paths, which come from clients; the app's own log has none.
        logging_config={"enable_access_log": False},
        **number,
    )
    return found


def _reason() -> str:
    """Return what the newest replica said when it failed: the exception at the end of Ray's traceback."""
    found = serve.status().applications.get(APPLICATION)
    said = found.deployments[APPLICATION].message if found and APPLICATION in found.deployments else ""
    errors = re.findall(r"^(?:\w+\.)+(\w+(?:Error|Extra)): (.*)", said, re.MULTILINE)
    return errors[-1][1] if errors else said.strip()


def stay(limits: Limits) -> None:
    """Wait for SIGTERM or SIGINT, then take the app away: what was accepted is answered within `limits.stop_s`.

    A second signal, or the end of that time, ends the process at once.
    """
    # The proxies look elsewhere by themselves: nothing has to be waited for before the replicas leave.
    shutdown = Shutdown(0.0, limits.stop_s + _LATER_S)
    before = {
        sig: signal.signal(sig, lambda *_: shutdown.signal()) for sig in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        pause = threading.Event()
        while shutdown.phase is Phase.SERVING:
            pause.wait(_TICK_S)
        _LOG.info("shutting down: accepted requests are finished")
        leaving = threading.Thread(target=_leave, name="vitesse-leave", daemon=True)
        leaving.start()
        while leaving.is_alive():
            if shutdown.phase is Phase.FORCED:
                _LOG.error("the end was forced: requests that were accepted may have been dropped")
                leave_now(1)
            leaving.join(_TICK_S)
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _leave() -> None:
    serve.delete(APPLICATION)
    serve.shutdown()


def _replicas(scale: Scale) -> str:
    if scale.least != scale.most:
        return f"{scale.least} to {scale.most} replicas"
    return "1 replica" if scale.most == 1 else f"{scale.most} replicas"
