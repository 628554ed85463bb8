"""Every address of the server in one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vitesse.serve import handlers, pages
from vitesse.serve.endpoint import Endpoint, Guard
from vitesse.serve.openapi import document
from vitesse.serve.service import Service
from vitesse.spec import Task

Bound = Callable[[Request], Awaitable[Response]]


async def openapi(service: Service, request: Request) -> Response:
    """GET /openapi.json: this table, described."""
    return JSONResponse(document(service, endpoints(service)))


_INFER = (400, 404, 408, 413, 415, 499, 500, 503, 504)
_IMAGE = (400, 408, 413, 415, 499, 500, 503, 504)
_TENSORS = ("application/json", "application/octet-stream")
_PICTURES = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_JSON = "application/json"


def _model_routes(path: str) -> tuple[Endpoint, ...]:
    """Return the routes that a model has with and without its version in the address."""
    return (
        Endpoint("GET", path, handlers.model, "Inputs and outputs of the model", {_JSON: "Model"}, refusals=(404,)),
        Endpoint("GET", f"{path}/ready", handlers.model_ready, "Whether the model takes requests", {_JSON: "Ready"},
                 Guard.OPEN, refusals=(404, 503)),
        Endpoint("GET", f"{path}/config", handlers.config, "Batching and instances", {_JSON: "Config"},
                 refusals=(404,)),
        Endpoint("GET", f"{path}/stats", handlers.stats, "What was executed, and the time it took",
                 {_JSON: "Stats"}, refusals=(404,)),
        Endpoint("POST", f"{path}/infer", handlers.infer, "Run tensors (Open Inference Protocol v2)",
                 {_JSON: "Infer", "application/octet-stream": "Binary"}, takes=_TENSORS, refusals=_INFER,
                 counted=True),
    )  # fmt: skip


ALWAYS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/v2", handlers.server, "Name, version and extensions", {_JSON: "Server"}),
    Endpoint("GET", "/v2/health/live", handlers.live, "Whether the process works", {_JSON: "Live"}, Guard.OPEN,
             refusals=(503,)),
    Endpoint("GET", "/v2/health/ready", handlers.ready, "Whether requests are taken, and why not",
             {_JSON: "Ready"}, Guard.OPEN, refusals=(503,)),
    *_model_routes("/v2/models/{model}"),
    *_model_routes("/v2/models/{model}/versions/{version}"),
    Endpoint("GET", "/v2/models/stats", handlers.all_stats, "Statistics of all models", {_JSON: "Stats"}),
    Endpoint("POST", "/v2/repository/index", handlers.index, "The models that are here", {_JSON: "Index"},
             takes=(_JSON,), refusals=(400, 408, 413)),
    Endpoint("GET", "/healthz", handlers.live, "As /v2/health/live", {_JSON: "Live"}, Guard.OPEN, refusals=(503,)),
    Endpoint("GET", "/readyz", handlers.ready, "As /v2/health/ready", {_JSON: "Ready"}, Guard.OPEN,
             refusals=(503,)),
    Endpoint("GET", "/metrics", pages.metrics, "Metrics for Prometheus", {"text/plain": "Text"}),
    Endpoint("GET", "/api/status", pages.status, "What the dashboard shows", {_JSON: "Status"}),
    Endpoint("GET", "/", pages.dashboard, "The dashboard", {"text/html": "Text"}, Guard.OPEN),
    Endpoint("GET", "/openapi.json", openapi, "This document", {_JSON: "Document"}, Guard.OPEN),
)  # fmt: skip

BY_TASK: Mapping[Task, Endpoint] = {
    Task.DETECTION: Endpoint(
        "POST", "/v1/detect", handlers.detect, "Boxes, labels and scores in one image",
        {_JSON: "Detections", "image/png": "Binary"}, takes=_PICTURES, refusals=_IMAGE,
        query=("threshold", "draw"), counted=True,
    ),
    Task.CLASSIFICATION: Endpoint(
        "POST", "/v1/classify", handlers.classify, "The likeliest classes of one image",
        {_JSON: "Classes", "image/png": "Binary"}, takes=_PICTURES, refusals=_IMAGE,
        query=("top", "draw"), counted=True,
    ),
}  # fmt: skip

ADMIN: tuple[Endpoint, ...] = (
    Endpoint("POST", "/api/release/promote", handlers.promote, "Let the candidate answer all requests",
             {_JSON: "Release"}, Guard.ADMIN, refusals=(400, 409, 503)),
    Endpoint("POST", "/api/release/rollback", handlers.rollback, "Let the reference answer all requests",
             {_JSON: "Release"}, Guard.ADMIN, refusals=(400, 409, 503)),
)  # fmt: skip


def endpoints(service: Service) -> tuple[Endpoint, ...]:
    """Return the routes that this service has: those of its model's task, admin ones only with an admin key."""
    admin = ADMIN if service.admin_keys is not None and service.releases is not None else ()
    return (*ALWAYS, BY_TASK[service.spec.task], *admin)


def starlette_routes(service: Service) -> list[Route]:
    """Return the table as Starlette's routes: what it tries first wins, and is found soonest.

    So inference comes first, whose addresses are nobody else's, then addresses without parameters.
    """
    table = sorted(endpoints(service), key=lambda endpoint: (not endpoint.counted, "{" in endpoint.path))
    return [
        Route(endpoint.path, _bound(endpoint, service), methods=[endpoint.method], name=endpoint.name)
        for endpoint in table
    ]


def direct(service: Service) -> dict[tuple[str, str], tuple[Bound, dict[str, str]]]:
    """Return inference by method and whole address, which is known: handler and parameters of the path.

    Starlette compares an address with one pattern after another, inside five layers that a request for inference needs
    nothing of.
    """
    known = {"model": service.signature.name, "version": service.signature.version}
    return {
        (endpoint.method, endpoint.path.format_map(known)): (_bound(endpoint, service), known)
        for endpoint in endpoints(service)
        if endpoint.counted
    }


def _bound(endpoint: Endpoint, service: Service) -> Bound:
    async def call(request: Request) -> Response:
        request.scope["endpoint_of"] = endpoint
        _check_key(endpoint, service, request)
        return await endpoint.handler(service, request)

    return call


def _check_key(endpoint: Endpoint, service: Service, request: Request) -> None:
    keys = {Guard.OPEN: None, Guard.KEY: service.keys, Guard.ADMIN: service.admin_keys}[endpoint.guard]
    if keys is not None:
        keys.check(request.headers.get("authorization"))
