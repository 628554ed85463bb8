"""What people and tools look at: metrics, the dashboard and its document."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitesse.serve.metrics import CONTENT_TYPE
from vitesse.serve.service import Service

_INLINE = {
    kind: re.compile(rb"<" + kind + rb"[^>]*>(.*?)</" + kind + rb">", re.S) for kind in (b"script", b"style")
}


async def metrics(service: Service, request: Request) -> Response:
    """GET /metrics, in Prometheus's text format."""
    content = await service.threads.run(service.metrics.exposition)
    return Response(content, headers={"Content-Type": CONTENT_TYPE})


async def status(service: Service, request: Request) -> Response:
    """GET /api/status: what the dashboard shows."""
    return JSONResponse(service.status(), headers={"Cache-Control": "no-store"})


async def dashboard(service: Service, request: Request) -> Response:
    """GET /: one page, whose scripts and styles are known by their hashes."""
    page = _page()
    headers = {
        "Content-Security-Policy": content_policy(page),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(page, media_type="text/html", headers=headers)


@cache
def _page() -> bytes:
    return resources.files("vitesse.serve").joinpath("dashboard.html").read_bytes()


@cache
def content_policy(page: bytes) -> str:
    """Return a Content-Security-Policy that lets a page run its own inline scripts and styles, and nothing else."""
    allowed = {kind: " ".join(_hashes(page, kind)) or "'none'" for kind in (b"script", b"style")}
    return (
        f"default-src 'none'; script-src {allowed[b'script']}; style-src {allowed[b'style']}; "
        "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(page: bytes, kind: bytes) -> list[str]:
    texts = _INLINE[kind].findall(page)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts]
