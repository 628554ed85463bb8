"""A row of the table: a model, a batch and a precision."""

from __future__ import annotations

from dataclasses import dataclass

from .graphs import PRECISIONS
from .models import MODELS
from .results import TARGETS


@dataclass(frozen=True, order=True)
class Row:
    """`precision` is that of our graph; peers compute in FP16 where it is FP8, for they have no FP8 of their own."""

    model: str
    batch: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.model}:{self.batch}:{self.precision}"


def rows_of(text: str) -> list[Row]:
    """Read `vit_b16:32:fp16,…`; an empty text is all rows.

    Raises:
        ValueError: an entry is no model, batch and precision.
    """
    return [_row(entry.strip()) for entry in text.split(",")] if text else [Row(*key) for key in TARGETS]


def _row(entry: str) -> Row:
    parts = entry.split(":")
    if (
        len(parts) == 3
        and parts[0] in MODELS
        and parts[1].isdigit()
        and int(parts[1])
        and parts[2] in PRECISIONS
    ):
        return Row(parts[0], int(parts[1]), parts[2])
    raise ValueError(
        f"no row {entry!r}: expected MODEL:BATCH:PRECISION, a model of {', '.join(MODELS)}; "
        f"a precision of {', '.join(PRECISIONS)}"
    )
