"""Why a request is not answered as asked: a status, a code for programs and a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(eq=False)  # not frozen: context managers set an exception's traceback
class Refusal(Exception):
    """Raised anywhere on a request's way; the app answers `{"error": text, "code": code}` with the status.

    Args:
        status: of HTTP.
        code: one word, closed set: "bad_request", "bad_image", "too_large", "unsupported", "not_found", "unauthorized",
            "not_ready", "queue_full", "deadline", "cancelled", "backend", "internal".
        text: what came, what was expected, what to do.
        headers: more headers of the answer, such as Retry-After.
    """

    status: int
    code: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def document(self) -> dict[str, str]:
        """Return the body of the answer."""
        return {"error": self.text, "code": self.code}
