"""How a refusal quotes what a client sent."""

from __future__ import annotations

import reprlib

from vitesse.serve.refusals import Refusal

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = 12
_SHORT.maxdict = 6
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """Return a client's value as short plain ASCII: a log line or an HTTP header may carry it."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode("ascii")


def dims(shape: tuple[int | str, ...] | list[int]) -> str:
    """Return a shape as v2 writes it, such as `[-1,3,224,224]`; a free dimension is -1."""
    return f"[{','.join(str(size) if isinstance(size, int) else '-1' for size in shape)}]"


def bad_request(text: str) -> Refusal:
    """Return the refusal of a request that contradicts the protocol or the model."""
    return Refusal(400, "bad_request", text)
