"""The JSON part of a body, read by rules that JSON leaves open: depth, repeated keys, literals it does not have."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vitesse.serve.limits import MIB, Limits
from vitesse.serve.protocol.wording import bad_request, shown
from vitesse.serve.refusals import Refusal

# A value of three bytes ("[],") becomes an object of about sixty: without a bound, a body inside its limit could take
# gigabytes. This one holds a batch of 26 images of 224 × 224 and costs about 130 MB at worst for numbers.
MOST_VALUES = 4_000_000
# The same for lists, objects and keys, which are larger than numbers.
MOST_CONTAINERS = 500_000

_OPENS, _CLOSES, _QUOTE = 1, 2, 3
_KINDS = np.zeros(256, np.uint8)
_KINDS[list(b"[{")] = _OPENS
_KINDS[list(b"]}")] = _CLOSES
_KINDS[list(b'"')] = _QUOTE


def parse_json(body: bytes, limits: Limits) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        Refusal: 400 for an empty body, wrong UTF-8 or JSON, a key twice in one object, NaN or Infinity (which JSON does
            not have), nesting deeper than `limits.json_depth`; 413 for more values than `MOST_VALUES`.
    """
    if not body.strip():
        raise bad_request("the request body is empty; expected a JSON object")
    _check_size(body)
    _check_depth(body, limits.json_depth)
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_not_json)
    except UnicodeDecodeError as error:
        raise bad_request(
            f"failed to parse the request JSON: byte {error.start} is not UTF-8; binary tensors behind a JSON header "
            "need the request header Inference-Header-Content-Length, the length of the JSON in bytes"
        ) from error
    except RecursionError as error:
        raise _too_deep(limits.json_depth) from error
    except ValueError as error:
        raise bad_request(f"failed to parse the request JSON: {shown(str(error))[1:-1]}") from error


def json_depth(text: bytes) -> int:
    """Return how deeply the lists and objects of a JSON text are nested at most; no recursion, 1 MiB at a time."""
    # An escaped quote does not end a string; pairs of backslashes go first, so that what is left of \\" is the quote.
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = depth = deepest = 0
    for start in range(0, len(text), MIB):
        kinds: NDArray[np.uint8] = _KINDS[np.frombuffer(text, np.uint8, min(MIB, len(text) - start), start)]
        kinds = kinds[kinds != 0]
        inside = np.cumsum(kinds == _QUOTE) + quotes
        quotes = int(inside[-1]) if inside.size else quotes
        outside = kinds[inside % 2 == 0]
        steps = np.where(outside == _OPENS, 1, np.where(outside == _CLOSES, -1, 0))
        depths = np.cumsum(steps) + depth
        if depths.size:
            deepest, depth = max(deepest, int(depths.max())), int(depths[-1])
    return deepest


def _check_size(body: bytes) -> None:
    containers = body.count(b"[") + body.count(b"{")
    if max(containers, body.count(b":")) > MOST_CONTAINERS or body.count(b",") > MOST_VALUES:
        raise Refusal(
            413,
            "too_large",
            f"the request JSON holds more than {MOST_VALUES} values or {MOST_CONTAINERS} lists or keys; "
            "send tensors of this size as binary data (binary_data_size)",
        )


def _check_depth(body: bytes, most: int) -> None:
    # A header of ordinary length has fewer brackets in all.
    if body.count(b"[") + body.count(b"{") > most and json_depth(body) > most:
        raise _too_deep(most)


def _too_deep(most: int) -> Refusal:
    return bad_request(f"JSON nesting depth exceeds maximum allowed limit ({most})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise bad_request(
            f"failed to parse the request JSON: the key {shown(twice)} stands twice in one object"
        )
    return values


def _not_json(literal: str) -> NoReturn:
    raise bad_request(
        f"failed to parse the request JSON: {literal} is not a JSON value; numbers must be finite "
        "(binary tensors can hold it, where the server allows it)"
    )
