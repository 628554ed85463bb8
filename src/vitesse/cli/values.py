"""What is written on the command line, read into values with units."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", bound=float)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what parses a whole number from `least` on, up to `most`."""
    return within(int, "a whole number, ", least=least, most=most)


def number(
    *, least: float | None = None, above: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    """Return what parses a number from `least` on or above `above`, up to `most`; NaN and infinity are none."""
    return within(_finite, "a number, ", least=least, above=above, most=most)


def within(
    parse: Callable[[str], Number],
    kind: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Callable[[str], Number]:
    """Return `parse`, which refuses what is out of a range; argparse puts the option's name before what is said.

    Args:
        kind: what is expected where `parse` raises ValueError, as `a whole number, `; before the range.
        least, above: the lower end, one of the two. most: the upper end, None where there is none.
    """
    if most is None:
        expected = f"more than {above}" if least is None else f"{least} or more"
    else:
        expected = f"more than {above}, at most {most}" if least is None else f"{least} to {most}"

    def read(text: str) -> Number:
        try:
            value = parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: expected {kind}{expected}") from None
        enough = (least is None or value >= least) and (above is None or value > above)
        if not enough or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value

    return read


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def milliseconds(text: str) -> float:
    """Parse `16ms`, `0.016s` or `16` (milliseconds)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)?\s*", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 16ms or 0.016s")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def seconds(text: str) -> float:
    """Parse `30m`, `1.5h`, `90s` or `90` (seconds)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write 30m, 1.5h or 90s")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def bytes_of(text: str) -> int:
    """Parse `4GiB`, `512MiB`, `1.5GB` or `1048576` (bytes): powers of 1024 with an i, of 1000 without."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in memory; write 4GiB or 512MiB")
    power = "KMGT".find(found[2].upper()) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def batch_range(text: str) -> tuple[int, int, int]:
    """Parse `1..8` (smallest and largest batch, best at the largest), `1..4..8` (best at 4) or `8` (only that)."""
    parts = [part.strip() for part in text.split("..")]
    if not (1 <= len(parts) <= 3 and all(part.isdecimal() for part in parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of batch sizes; write 1..8 or 1..4..8")
    sizes = [int(part) for part in parts]
    least, best, most = sizes[0], sizes[min(1, len(sizes) - 1)], sizes[-1]
    if not 1 <= least <= best <= most:
        raise argparse.ArgumentTypeError(f"{text!r} does not rise from 1; write 1..8 or 1..4..8")
    return least, best, most


def height_width(text: str) -> list[int]:
    """Parse `800x1333`, height × width in pixels."""
    found = re.fullmatch(r"(0*[1-9]\d*)[x×](0*[1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write HEIGHTxWIDTH, as 800x1333")
    return [int(found[1]), int(found[2])]


def axes(text: str) -> list[str]:
    """Parse `batch,height,width`; `none` leaves nothing open."""
    return [] if text.strip() == "none" else names(text)


def gridsample(text: str) -> list[str]:
    """Turn `gather`, the one other form GridSample has, into the name of its rewrite."""
    if text != "gather":
        raise argparse.ArgumentTypeError(f"{text!r} is no form of GridSample; write gather")
    return ["grid_sample"]


def setting(text: str) -> tuple[str, str]:
    """Parse `heads=8`."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a setting; write KEY=VALUE, as heads=8")
    return key, value


def names(text: str) -> list[str]:
    """Parse `a,b`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def present(**values: object) -> dict[str, object]:
    """Leave out what was not given."""
    return {key: value for key, value in values.items() if value is not None}
