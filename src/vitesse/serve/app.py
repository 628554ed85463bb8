"""The ASGI app: routes behind bounds, every error in one form, every request counted, logged and named."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitesse.serve.endpoint import Endpoint
from vitesse.serve.http_limits import BodyLimits, header_of, refusal_answer
from vitesse.serve.logs import NAME, log_request, request_id
from vitesse.serve.refusals import Refusal
from vitesse.serve.routes import BY_TASK, direct, starlette_routes
from vitesse.serve.service import Service

_LOG = logging.getLogger(NAME)
_UNKNOWN = "(no route)"


def build_app(service: Service) -> ASGIApp:
    """Return the app that serves one service."""
    app = Starlette(
        routes=starlette_routes(service),
        exception_handlers={Refusal: _refused, HTTPException: _by_starlette, Exception: _defect},
    )
    # An address with a slash too many is an error to be seen, not a redirect that loses the body.
    app.router.redirect_slashes = False
    return Observed(
        BodyLimits(_Direct(app, service), service.limits, lambda: service.readiness.leaving), service
    )


class _Direct:
    """ASGI app: calls what is asked most without a search; all else goes to Starlette. Errors end alike."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._found = app, direct(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        known = scope["type"] == "http" and not scope.get("root_path")
        found = self._found.get((scope["method"], scope["path"])) if known else None
        if found is None:
            await self._app(scope, receive, send)
            return
        handler, scope["path_params"] = found
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except Refusal as refusal:
            response = await _refused(request, refusal)
        except Exception as error:
            response = await _defect(request, error)
        await response(scope, receive, send)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    request.scope["state"]["refusal"] = error
    return refusal_answer(error)


async def _defect(request: Request, error: Exception) -> Response:
    """Answer what nobody foresaw; Starlette raises it again afterwards, and `Observed` lets it rest."""
    return await _refused(request, _unexpected(error, request.scope["state"]["request_id"]))


async def _by_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        text = f"{_other_task(request)}there is nothing at this address; GET /openapi.json describes what there is"
        refusal = Refusal(404, "not_found", text)
    elif error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        text = f"this address does not take {request.method}; it takes {allowed}"
        refusal = Refusal(405, "bad_request", text, dict(error.headers or {}))
    else:
        text = f"{HTTPStatus(error.status_code).phrase}: {error.detail}"
        refusal = Refusal(error.status_code, "bad_request", text)
    return await _refused(request, refusal)


def _other_task(request: Request) -> str:
    """For the address of another task's models: where this one answers; else ""."""
    path = request.url.path
    if path not in {endpoint.path for endpoint in BY_TASK.values()}:
        return ""
    own = ", ".join(endpoint.path for endpoint in BY_TASK.values() if endpoint.path != path)
    return f"the model of this server is for another task, POST {own}: "


class Observed:
    """ASGI middleware: names, counts and logs every request, and answers what nobody caught.

    The counters see requests for inference only, the log all but health checks and polling.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, arrived = self._service, self._service.clock()
        named = request_id(header_of(scope, b"x-request-id"))
        state = scope.setdefault("state", {})
        state["request_id"] = named
        status, size = 0, 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", named.encode())]
            await send(message)

        with service.metrics.in_flight():
            try:
                await self._app(scope, counted, answer)
            except Exception as error:
                if "refusal" not in state:  # from outside of Starlette
                    state["refusal"] = _unexpected(error, named)
                if not status:
                    await refusal_answer(state["refusal"])(scope, counted, answer)
            finally:
                self._observe(scope, status, service.clock() - arrived, size)

    def _observe(self, scope: Scope, status: int, seconds: float, size: int) -> None:
        state, endpoint = scope["state"], scope.get("endpoint_of")
        refusal: Refusal | None = state.get("refusal")
        if isinstance(endpoint, Endpoint) and endpoint.counted:
            metrics = self._service.metrics
            metrics.observe_request(status or 499, seconds, size)
            self._service.tally.request(200 <= status < 300, seconds)
            if refusal is not None:
                metrics.failure(refusal.code)
        elif status < 400:
            return
        log_request(
            state["request_id"],
            endpoint.path if isinstance(endpoint, Endpoint) else _UNKNOWN,
            status or 499,
            seconds,
            served_by=state.get("served_by"),
            batch=state.get("batch"),
            text="" if refusal is None else refusal.text,
        )


def _unexpected(error: Exception, named: str) -> Refusal:
    """Return the answer to a defect: the log has the traceback, the client a name to ask about."""
    if isinstance(error, Refusal):
        return error
    _LOG.error("unexpected %s", type(error).__name__, exc_info=error, extra={"request_id": named})
    return Refusal(
        500, "internal", f"an unexpected error; the server's log has it under the request id {named}"
    )
