"""One replica: a process with engines and sessions of its own, which serves the same app as `vitesse serve`."""

from __future__ import annotations

from pathlib import Path

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitesse.errors import BackendError
from vitesse.run import open_run
from vitesse.serve import logs
from vitesse.serve.app import build_app
from vitesse.serve.ray.published import Publisher
from vitesse.serve.served import open_served
from vitesse.serve.variants import ServeOptions
from vitesse.serve.watchdog import Watchdog

# Building nothing, but loading large engines from a shared disk: longer than any warm-up that is well.
_WARM_UP_S = 900.0
_PUBLISH_S = 5.0


class Replica:
    """Opens a run and is ready when its constructor returns; Ray sends no request before.

    Ray calls the methods: `__serve_build_asgi_app__` once, `check_health` at intervals, `__del__` when what was
    accepted is answered or the time for it is over.

    Args:
        folder: of the run, at the same place on every machine.
        options: as of a server in one process.

    Raises:
        VitesseError: the run cannot be opened, or a golden image is answered wrongly on this machine. Ray tries again
            and then gives the deployment up, while the replicas before it serve on.
    """

    def __init__(self, folder: str, options: ServeOptions) -> None:
        logs.configure()
        self._options = options
        self._served = open_served(open_run(Path(folder)), options)
        self._served.start()
        if not self._served.wait(_WARM_UP_S):
            why = self._served.service.unready()
            self._served.close()
            raise BackendError(f"the replica must not answer: {why}")
        publisher = Publisher(self._served.service.metrics.exposition, _name())
        self._publishing = Watchdog(publisher.publish, _PUBLISH_S, "vitesse-publish")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the app; Ray serves it."""
        return _without_request_id(build_app(self._served.service))

    def check_health(self) -> None:
        """Raise where the replica takes no requests; after several times in a row Ray replaces it."""
        why = self._served.service.unready()
        if why:
            raise BackendError(f"the replica is not ready: {why}")

    def __del__(self) -> None:
        if hasattr(self, "_publishing"):
            self._publishing.stop()
            self._served.service.leave()
            self._served.close(self._options.limits.stop_s)


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """Return the app without the header that names the request: Ray's proxy writes the same one."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await app(scope, receive, answer)

    return served


def _name() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)
