"""Class names of data and model, matched although they are spelled a little differently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_SHOWN = 3


def match_names(names: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """Return for each name the index of the label of the same letters and digits, None where there is none.

    Case, spaces and punctuation do not count: `T-shirt-top` is `T-shirt/top`. Of a label with synonyms
    (`tench, Tinca tinca`) the first counts too. A label that occurs twice (`N/A`) matches nothing.
    """
    keys = [_key(label) for label in labels]
    short = [_key(label.split(",")[0]) for label in labels]
    found = _unique(short) | _unique(keys)
    return [found.get(_key(name)) for name in names]


def first_of(values: Sequence[object]) -> str:
    """Return the first three values and how many follow, for a message."""
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _unique(keys: Sequence[str]) -> dict[str, int]:
    counts = Counter(keys)
    return {key: index for index, key in enumerate(keys) if key and counts[key] == 1}


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
