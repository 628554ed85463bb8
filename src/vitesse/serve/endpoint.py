"""One address of the server: what it is called, who may call it, what it takes and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from starlette.requests import Request
from starlette.responses import Response

from vitesse.serve.service import Service

Handler = Callable[[Service, Request], Awaitable[Response]]


class Guard(StrEnum):
    """Who may call a route."""

    OPEN = "open"  # anyone: health
    KEY = "key"  # holders of a key, where the server has keys
    ADMIN = "admin"  # holders of an admin key; without any the route is not there


@dataclass(frozen=True)
class Endpoint:
    """One route.

    Args:
        takes: media types of the request's body. gives: media type → schema name in `openapi`, of a 200.
        refusals: statuses besides 200 that belong to it; 401, 431 and 500 are added where they apply.
        query: parameter → what it does. counted: whether it counts as a request for inference.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    gives: Mapping[str, str]
    guard: Guard = Guard.KEY
    takes: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    query: tuple[str, ...] = ()
    counted: bool = False

    @property
    def name(self) -> str:
        """The handler's name; the route's operation in the OpenAPI document."""
        return f"{self.handler.__name__}{'_version' if '{version}' in self.path else ''}"
