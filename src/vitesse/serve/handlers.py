"""What each route of inference does, from the request to the answer; the table of routes is `routes`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitesse._version import __version__
from vitesse.backends import GPUS
from vitesse.serve.execution import Fed, Routed, Threads, execute
from vitesse.serve.http_limits import header_of
from vitesse.serve.protocol import (
    HEADER_LENGTH,
    InferRequest,
    in_one_piece,
    inflate,
    model_config,
    model_metadata,
    parse_infer,
    parse_json,
    repository_index,
    safe_name,
    server_metadata,
    statistics,
    write_answer,
)
from vitesse.serve.refusals import Refusal
from vitesse.serve.sent_image import SentImage
from vitesse.serve.service import Service
from vitesse.serve.work import Arrays

# Below these, work takes less than a millisecond and is not worth a thread, whose two switches cost 0.1 ms: bytes of a
# body in JSON, and of one with binary tensors; values of outputs to write in JSON, and to read as boxes or classes.
_QUICK_JSON, _QUICK_BINARY = 16 * 1024, 2 * 2**20
_QUICK_WRITTEN, _QUICK_READ = 2048, 4096
_HEADER_LENGTH, _ENCODING = HEADER_LENGTH.lower().encode(), b"content-encoding"
_TRUE, _FALSE = {"1", "true", "yes"}, {"", "0", "false", "no"}


async def server(service: Service, request: Request) -> Response:
    """GET v2."""
    return JSONResponse(server_metadata(__version__))


async def live(service: Service, request: Request) -> Response:
    """Say whether the process works; 503 asks for a restart."""
    why = service.why_dead()
    if why:
        raise Refusal(503, "backend", f"not live: {why}; restart the server")
    return JSONResponse({"live": True})


async def ready(service: Service, request: Request) -> Response:
    """Say whether requests are taken; 503 with the reason where they are not."""
    why = service.unready()
    if why:
        raise Refusal(503, "not_ready", f"not ready: {why}", {"Retry-After": "5"})
    return JSONResponse({"ready": True})


async def model(service: Service, request: Request) -> Response:
    """GET v2/models/{model}."""
    _check_model(service, request)
    return JSONResponse(model_metadata(service.signature))


async def model_ready(service: Service, request: Request) -> Response:
    """GET v2/models/{model}/ready."""
    _check_model(service, request)
    return await ready(service, request)


async def config(service: Service, request: Request) -> Response:
    """GET v2/models/{model}/config."""
    _check_model(service, request)
    gpu = service.signature.platform.partition("_")[0] in GPUS
    return JSONResponse(
        model_config(service.signature, max_wait_s=service.max_wait_s, workers=service.workers, gpu=gpu)
    )


async def stats(service: Service, request: Request) -> Response:
    """GET v2/models/{model}/stats."""
    _check_model(service, request)
    return await all_stats(service, request)


async def all_stats(service: Service, request: Request) -> Response:
    """GET v2/models/stats."""
    return JSONResponse(statistics(service.signature, service.tally.counters(), service.release()))


async def index(service: Service, request: Request) -> Response:
    """POST v2/repository/index; the body may be empty, or say `{"ready": true}`."""
    body = await _body(request)
    wanted = parse_json(body, service.limits) if body.strip() else {}
    if not isinstance(wanted, dict) or not isinstance(wanted.get("ready", False), bool):
        raise Refusal(400, "bad_request", 'the body is not empty and not {"ready": true} or {"ready": false}')
    why = service.unready()
    found = repository_index(
        service.signature, ready=not why, reason=why, only_ready=wanted.get("ready", False)
    )
    return JSONResponse(found)


async def infer(service: Service, request: Request) -> Response:
    """POST v2/models/{model}/infer: tensors in, tensors out."""
    arrived = service.clock()
    _check_model(service, request)
    service.check_ready()
    header = header_of(request.scope, _HEADER_LENGTH)
    encoding = header_of(request.scope, _ENCODING)
    # Nothing else keeps the parts: a request that waits would take twice its size.
    body = in_one_piece(await _parts(request), header) if encoding is None else await _body(request)
    with service.places.taken():
        before = service.clock()
        quick = _QUICK_JSON if header is None else _QUICK_BINARY
        read = (body, header, encoding, service)
        if len(body) > quick or encoding is not None:
            asked = await service.threads.run(_read_tensors, *read)
        else:
            asked = _read_tensors(*read)
        _stage(service, "input", service.clock() - before)
        routed = await _run(service, request, lambda: (asked.inputs, None), arrived, asked.timeout_s)
        before = service.clock()
        write = partial(
            write_answer, asked, routed.executed.outputs, service.signature.name, service.signature.version
        )
        if _in_json(asked, routed.executed.outputs) > _QUICK_WRITTEN:
            content, headers = await service.threads.run(write)
        else:
            content, headers = write()
    _stage(service, "output", service.clock() - before)
    return Response(content, headers={**headers, "X-Served-By": routed.served_by})


async def detect(service: Service, request: Request) -> Response:
    """POST /v1/detect: the bytes of an image in, boxes out."""
    threshold = _number(request, "threshold", 0.5, 0.0, 1.0)
    return await _image(service, request, {"threshold": threshold})


async def classify(service: Service, request: Request) -> Response:
    """POST /v1/classify: the bytes of an image in, classes out."""
    top = _number(request, "top", 5, 1, 100)
    if top != int(top):
        raise Refusal(400, "bad_request", f"top is {top:g}; expected a whole number from 1 to 100")
    return await _image(service, request, {"top": int(top)})


async def promote(service: Service, request: Request) -> Response:
    """POST /api/release/promote, with `{"release": name, "share": 0.1, "shadow": true}`, each optional."""
    asked = await _asked(service, request)
    release, share, shadow = asked.get("release", ""), asked.get("share"), asked.get("shadow", False)
    right = isinstance(release, str) and len(release) <= 200 and isinstance(shadow, bool)
    if not right or not (share is None or (_is_number(share) and 0 < share <= 1)):
        raise Refusal(
            400,
            "bad_request",
            'expected an empty body or {"release": a name, "share": above 0, at most 1, "shadow": true or false}',
        )
    return JSONResponse(service.operator().promote(release, share=share, shadow=shadow))


async def rollback(service: Service, request: Request) -> Response:
    """POST /api/release/rollback, with `{"why": "…"}` or nothing."""
    why = (await _asked(service, request)).get("why", "by hand")
    if not isinstance(why, str) or len(why) > 500:
        raise Refusal(400, "bad_request", 'expected an empty body or {"why": "…"} of at most 500 characters')
    return JSONResponse(service.operator().rollback(why))


async def _asked(service: Service, request: Request) -> Mapping[str, Any]:
    """The JSON object of a body; {} for an empty one."""
    body = await _body(request)
    asked = parse_json(body, service.limits) if body.strip() else {}
    if not isinstance(asked, dict):
        raise Refusal(400, "bad_request", "expected an empty body or a JSON object")
    return asked


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


async def _image(service: Service, request: Request, options: Mapping[str, Any]) -> Response:
    arrived = service.clock()
    drawn = _flag(request, "draw")
    service.check_ready()
    if header_of(request.scope, _ENCODING) not in (None, "identity"):
        raise Refusal(
            415, "unsupported", "Content-Encoding of an image; send the image file as it is, it is compressed"
        )
    sent = SentImage(service, await _body(request), options, drawn)

    def ended(routed: Routed) -> None:
        values = sum(array.size for array in routed.executed.outputs.values())
        if not drawn and values <= _QUICK_READ:
            sent.answer(routed)

    with service.places.taken():
        threads = None if service.decode_in_worker else service.threads
        routed = await _run(service, request, sent.feeds, arrived, threads=threads, ended=ended)
        _stage(service, "decode", sent.decode_s)
        answered = sent.answered
        content, kind = await service.threads.run(sent.answer, routed) if answered is None else answered
    _stage(service, "output", sent.answer_s)
    return Response(content, media_type=kind, headers={"X-Served-By": routed.served_by})


def _in_json(asked: InferRequest, outputs: Arrays) -> int:
    """Count the values that the answer holds in JSON."""
    if asked.outputs is None:
        return 0 if asked.binary_by_default else sum(array.size for array in outputs.values())
    wanted = [output.name for output in asked.outputs if not output.binary]
    return sum(outputs[name].size for name in wanted if name in outputs)


def _read_tensors(
    body: bytes | memoryview, header: str | None, encoding: str | None, service: Service
) -> Any:
    if encoding is not None:
        body = inflate(bytes(body), encoding, service.limits)
    return parse_infer(
        body, header, service.signature, service.limits, allow_nonfinite=service.allow_nonfinite
    )


async def _run(
    service: Service,
    request: Request,
    prepare: Callable[[], Fed],
    arrived: float,
    timeout_s: float | None = None,
    threads: Threads | None = None,
    ended: Callable[[Routed], object] | None = None,
) -> Routed:
    routed = await execute(
        request,
        service.router,
        prepare,
        service.limits,
        arrived=arrived,
        clock=service.clock,
        timeout_s=timeout_s,
        request_id=request.scope["state"].get("request_id", ""),
        threads=threads,
        ended=ended,
    )
    request.scope["state"].update(served_by=routed.served_by, batch=routed.executed.batch)
    return routed


async def _parts(request: Request) -> list[bytes]:
    """Return the whole body in the parts in which it came."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Refusal(499, "cancelled", "the client hung up before its request had come")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return parts


async def _body(request: Request) -> bytes:
    return b"".join(await _parts(request))


def _check_model(service: Service, request: Request) -> None:
    asked, signature = request.path_params, service.signature
    if asked["model"] != signature.name and not safe_name(asked["model"]):
        text = "the model's name may have 1 to 128 letters, digits and _ . + -, and no path in it"
        raise Refusal(400, "bad_request", text)
    if asked["model"] != signature.name:
        raise Refusal(404, "not_found", f"unknown model; this server has {signature.name!r}")
    if asked.get("version", signature.version) != signature.version:
        raise Refusal(
            404, "not_found", f"unknown version of {signature.name!r}; this server has {signature.version!r}"
        )


def _stage(service: Service, name: str, seconds: float) -> None:
    service.metrics.stage(name, seconds)
    service.tally.stage("compute_output" if name == "output" else "compute_input", seconds)


def _asked_for(request: Request, name: str) -> str | None:
    """Return what the query says; most have none, and need not be parsed."""
    return request.query_params.get(name) if request.scope["query_string"] else None


def _number(request: Request, name: str, default: float, least: float, most: float) -> float:
    text = _asked_for(request, name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise Refusal(
            400, "bad_request", f"{name} is {text[:40]!r}; expected a number from {least:g} to {most:g}"
        )
    return value


def _flag(request: Request, name: str) -> bool:
    text = (_asked_for(request, name) or "").lower()
    if text not in _TRUE | _FALSE:
        raise Refusal(400, "bad_request", f"{name} is {text[:40]!r}; expected 1 or 0")
    return text in _TRUE
