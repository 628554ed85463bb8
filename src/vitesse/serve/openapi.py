"""The interface as an OpenAPI 3.1 document, made from the table of routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitesse._version import __version__
from vitesse.serve.endpoint import Endpoint, Guard
from vitesse.serve.protocol.tensors import datatype_of
from vitesse.serve.service import Service

Schema = dict[str, Any]

_CODES = (
    "bad_request", "bad_image", "too_large", "unsupported", "not_found", "unauthorized", "not_ready", "queue_full",
    "deadline", "cancelled", "backend", "internal",
)  # fmt: skip
_WHAT: Mapping[int, str] = {
    400: "The request is wrong; the text says what was expected",
    401: "A key is needed, or this one is unknown",
    404: "Nothing of that name",
    405: "Another method is taken here",
    408: "The body did not come in time",
    409: "Not possible in this state",
    413: "Larger than the server takes",
    415: "An encoding or a format that is not taken",
    431: "The header block is too large",
    499: "The client hung up",
    500: "The model or the server failed",
    503: "Not ready, or the queue is full; Retry-After says when to ask again",
    504: "No answer in time; the work was not executed, or is dropped",
}
_TEXT: Schema = {"type": "string"}
_ANY: Schema = {"type": "object"}
_NUMBER: Schema = {"type": "number"}


def document(service: Service, table: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the document for a service's routes; the model's name, version and inputs stand in it as they are."""
    paths: dict[str, Any] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, service)
    schemes = {"key": {"type": "http", "scheme": "bearer"}, "admin": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Vitesse: {service.signature.name}", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas(service), "securitySchemes": schemes},
    }


def _operation(endpoint: Endpoint, service: Service) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{endpoint.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": endpoint.summary,
        "parameters": [*_in_path(endpoint, service), *_in_query(endpoint)],
        "responses": _responses(endpoint, service),
    }
    if endpoint.takes:
        required = "index" not in endpoint.path
        made["requestBody"] = {
            "required": required,
            "content": {kind: {"schema": _body(endpoint, kind)} for kind in endpoint.takes},
        }
    needs = {Guard.OPEN: False, Guard.KEY: service.keys is not None, Guard.ADMIN: True}[endpoint.guard]
    made["security"] = [{endpoint.guard.value: []}] if needs else []
    return made


def _in_path(endpoint: Endpoint, service: Service) -> list[dict[str, Any]]:
    known = {"model": service.signature.name, "version": service.signature.version}
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "examples": [value]}}
        for name, value in known.items()
        if f"{{{name}}}" in endpoint.path
    ]


_QUERY: Mapping[str, tuple[str, Schema]] = {
    "threshold": ("Least score of a box", {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}),
    "top": ("How many classes", {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}),
    "draw": ("1: answer the picture as PNG, with what was found drawn on it", {"type": "string", "enum": ["0", "1"]}),
}  # fmt: skip


def _in_query(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "description": _QUERY[name][0], "schema": _QUERY[name][1]}
        for name in endpoint.query
    ]  # fmt: skip


def _body(endpoint: Endpoint, kind: str) -> Schema:
    if kind != "application/json":
        return {"type": "string", "format": "binary"}
    return {"$ref": "#/components/schemas/InferRequest"} if "infer" in endpoint.path else _ANY


def _responses(endpoint: Endpoint, service: Service) -> dict[str, Any]:
    statuses = {*endpoint.refusals, 431, 500}
    if endpoint.guard is Guard.ADMIN or (endpoint.guard is Guard.KEY and service.keys is not None):
        statuses.add(401)
    if "{model}" in endpoint.path or endpoint.query:
        statuses.add(400)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    content = {
        kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for kind, name in endpoint.gives.items()
    }
    return {
        "200": {"description": endpoint.summary, "content": content},
        **{str(status): {"description": _WHAT[status], "content": error} for status in sorted(statuses)},
        "405": {"description": _WHAT[405], "content": error},
    }


def schemas(service: Service) -> dict[str, Schema]:
    """Return the documents that are answered and taken."""
    signature = service.signature
    tensor = _object({"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"})})
    result = _object({"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"}), "data": _list({})},
                     optional=("data",))  # fmt: skip
    scored = {"label": _TEXT, "class": {"type": "integer"}, "score": _NUMBER}
    service_part = {"served_by": _TEXT, "timings_ms": {"type": "object", "additionalProperties": _NUMBER}}
    image = {"image": _object({"width": {"type": "integer"}, "height": {"type": "integer"}})}
    box = {**_list(_NUMBER), "minItems": 4, "maxItems": 4}
    return {
        "Error": _object({"error": _TEXT, "code": {"type": "string", "enum": list(_CODES)}}),
        "Live": _object({"live": {"const": True}}),
        "Ready": _object({"ready": {"const": True}}),
        "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
        "Model": _object({"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT, "inputs": _list(tensor),
                          "outputs": _list(tensor)}),
        "Infer": _object({"model_name": _TEXT, "model_version": _TEXT, "outputs": _list(result), "id": _TEXT},
                         optional=("id",)),
        "InferRequest": _object(
            {"id": _TEXT, "inputs": _list(_any_input(service), len(signature.inputs)), "outputs": _list(_ANY),
             "parameters": _ANY},
            optional=("id", "outputs", "parameters"),
        ),
        "Detections": _object({"detections": _list(_object({**scored, "box_xyxy": box})), **image,
                               "threshold": _NUMBER, **service_part}),
        "Classes": _object({"classes": _list(_object(scored)), **image, **service_part}),
        "Index": _list(_object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT})),
        "Binary": {"type": "string", "format": "binary"},
        "Text": _TEXT,
        **dict.fromkeys(("Config", "Stats", "Status", "Release", "Document"), _ANY),
    }  # fmt: skip


def _any_input(service: Service) -> Schema:
    """One input of the model: its names and types are fixed, its shape is said where it is."""
    made = []
    for info in service.signature.inputs:
        sizes = [
            {"const": size} if isinstance(size, int) else {"type": "integer", "minimum": 1}
            for size in info.shape
        ]
        shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}
        made.append(
            _object({"name": {"const": info.name}, "datatype": {"const": datatype_of(info.dtype)}, "shape": shape,
                     "data": _list({})})
        )  # fmt: skip
    return made[0] if len(made) == 1 else {"anyOf": made}


def _object(properties: Mapping[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}
