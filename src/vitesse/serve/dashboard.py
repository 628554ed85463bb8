"""The dashboard's page and the headers it must be sent with; it is one file that asks nobody but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("dashboard.html")


@dataclass(frozen=True)
class Page:
    """What `GET /` answers."""

    body: bytes
    headers: Mapping[str, str]


@cache
def dashboard() -> Page:
    """Return the page. Its policy allows the one script and the one style sheet in it, by their hashes.

    Nothing else runs or loads, wherever a text on the page came from: no inline handler, no style attribute, no other
    host, no frame around it.
    """
    text = _FILE.read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("script", text),
        "style-src": _hash_of("style", text),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(
        text.encode(),
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def _hash_of(tag: str, text: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
