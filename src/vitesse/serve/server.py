"""The app on a socket: one process, one event loop, and an end that drops nothing that was accepted."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from vitesse.errors import UsageError
from vitesse.serve.app import build_app
from vitesse.serve.connection import connections_of
from vitesse.serve.limits import Limits
from vitesse.serve.served import Served
from vitesse.serve.shutdown import Phase, Shutdown

LOCAL = "127.0.0.1"
_BACKLOG = 1024
_TICK_S = 0.05
# Python looks for unreachable cycles after 700 new objects, which are one or two requests.
_YOUNG_OBJECTS = 5_000

log = logging.getLogger("vitesse.serve")


def listen(host: str, port: int) -> socket.socket:
    """Take a port before anything is loaded, so that a port in use costs no time.

    Raises:
        UsageError: it is in use, needs rights, or the host is none of this machine; one line.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"cannot listen on {host}:{port}: --port takes a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error}; --host takes an address of this machine"
        ) from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        # Listening makes a second server fail here and not later; connections wait until the loop runs.
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        raise UsageError(f"cannot listen on {host}:{port}: {_why(error)}") from error
    return taken


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; choose another port with --port, or end that program"
    if error.errno == errno.EACCES:
        return "ports below 1024 need rights; choose a higher one with --port"
    return f"{error.strerror or error}; --host takes an address of this machine, such as {LOCAL}"


class Server(uvicorn.Server):
    """uvicorn's server with this package's way out: the phases of `Shutdown`, told to the app as they begin.

    Args:
        on_leaving: called once, in the loop, when the first signal came: from now on the server is not ready.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, shutdown: Shutdown, on_leaving: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connections_of(limits),
                ws="none",
                lifespan="off",  # what was opened is closed by who opened it, also when the loop was forced to end
                access_log=False,
                proxy_headers=False,  # nothing here depends on the client's address
                log_config=None,
                server_header=False,
                timeout_keep_alive=_whole_seconds(limits.keep_alive_s),
                timeout_graceful_shutdown=_whole_seconds(limits.stop_s),
                backlog=_BACKLOG,
            )
        )
        self._shutdown, self._on_leaving = shutdown, on_leaving
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; what follows from it is done by the loop."""
        self._shutdown.signal()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGTERM and SIGINT while the loop runs; unlike uvicorn's, do not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():  # embedded: signals are the host's
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def on_tick(self, counter: int) -> bool:
        """Say whether to stop listening; called ten times a second."""
        phase = self._shutdown.phase
        if phase is not Phase.SERVING and not self._told:
            self._told = True
            log.info("shutting down: not ready from now on, accepted requests are finished")
            self._on_leaving()
        if phase in (Phase.STOPPING, Phase.FORCED):
            return True
        return await super().on_tick(counter)

    async def _wait_tasks_to_complete(self) -> None:
        while (self.server_state.connections or self.server_state.tasks) and not self.forced:
            await asyncio.sleep(_TICK_S)

    @property
    def forced(self) -> bool:
        """Whether the end was forced, by a second signal or by time."""
        return self._shutdown.phase is Phase.FORCED


def _whole_seconds(seconds: float) -> int:
    """uvicorn's settings are whole seconds; rounding up keeps what was promised."""
    return max(1, int(-(-seconds // 1)))


def _spare_what_stays() -> None:
    """Take modules and models out of the garbage collector's rounds.

    They stay until the end, and each full collection would walk through all of it: 55,000 objects, 30 ms of processor
    time in which no request goes on.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def leave_now(code: int) -> None:
    """End the process without waiting for threads: a run that hangs would hold it for ever."""
    logging.shutdown()
    os._exit(code)


def serve(served: Served, taken: socket.socket, limits: Limits) -> int:
    """Warm up and answer until a signal comes; returns 0 when nothing accepted was dropped.

    A forced end does not return: a thread that hangs in a run could never be joined.
    """
    shutdown = Shutdown(limits.drain_s, limits.stop_s)
    server = Server(build_app(served.service), limits, shutdown, served.service.leave)
    served.start()
    _spare_what_stays()
    server.run([taken])
    if server.forced:
        log.error("the end was forced: requests that were accepted may have been dropped")
        leave_now(1)
    served.close(shutdown.left_s)
    log.info("all that was accepted is answered")
    return 0
