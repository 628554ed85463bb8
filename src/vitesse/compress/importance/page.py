"""The importance of a network's units as one HTML page that opens offline: no script, no request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import vitesse.report
from vitesse.compress.importance.drawing import curve, strip
from vitesse.compress.importance.figures import (
    PLURAL,
    GroupRow,
    agreements,
    can_go,
    measured_on,
    points,
    rows,
)
from vitesse.compress.importance.record import Importance
from vitesse.compress.importance.units import Kind

_TITLES = {
    Kind.RESIDUAL: "Channels that a stage's blocks add into",
    Kind.CHANNELS: "Channels inside blocks",
    Kind.MLP: "Hidden units of the MLPs",
    Kind.HEADS: "Attention heads",
    Kind.LAYERS: "Layers",
    Kind.QUERIES: "Queries",
}


@dataclass(frozen=True)
class _Row:
    name: str
    size: int
    strip: Markup
    curve: Markup
    quarter: str
    half: str


@dataclass(frozen=True)
class _Section:
    title: str
    strip: str
    note: str
    deepest: str
    rows: tuple[_Row, ...]


def render_page(found: Importance) -> str:
    """Return the page; every text is escaped by the template engine."""
    listed = rows(found)
    measured = found.sensitivity is not None
    sentences = [] if found.sensitivity is None else [can_go(one) for one in found.sensitivity.together]
    if agreements(found):
        sentences.append(
            f"The scores rank units as masking them one by one does (Spearman, −1 to 1): {', '.join(agreements(found))}"
        )
    sections = [_section(found, kind, [row for row in listed if row.group.kind is kind]) for kind in _TITLES]
    return (
        _environment()
        .get_template("importance.html.j2")
        .render(
            found=found,
            title=_title(listed) if measured else "What the scores say",
            lead=measured_on(found).capitalize(),
            measured=measured,
            sentences=sentences,
            sections=[section for section in sections if section.rows],
        )
    )


def _title(listed: Sequence[GroupRow]) -> str:
    most, least = listed[0], listed[-1]
    return f"{most.group.name} loses most without a quarter, {least.group.name} least"


def _section(found: Importance, kind: Kind, listed: Sequence[GroupRow]) -> _Section:
    alone = {} if found.sensitivity is None else found.sensitivity.alone
    drops = [drop for row in listed if row.curve is not None for drop in row.curve.drops]
    deepest = max([*drops, 0.0])
    by_unit = any(row.group.name in alone for row in listed)
    made = tuple(
        _Row(
            row.group.name,
            row.group.size,
            # The drawings hold numbers only; nothing else is marked as safe.
            Markup(
                strip(alone[row.group.name], ordered=False)
                if row.group.name in alone
                else strip(found.scores[row.group.name], ordered=True)
            ),
            Markup("" if row.curve is None else curve(row.curve, deepest)),
            "" if row.quarter is None else points(row.quarter),
            "" if row.curve is None else points(row.curve.drop_at(0.5)),
        )
        for row in listed
    )
    title = "each unit left out alone" if by_unit else "scores, largest first"
    return _Section(_TITLES[kind], title, _note(kind, by_unit), f"{deepest:.1f}" if deepest else "", made)


def _note(kind: Kind, by_unit: bool) -> str:
    if by_unit:
        return (
            f"The {PLURAL[kind]} in their own order; the darker, the more the metric falls without this one, from 0 to "
            "the most that any of the group costs; amber: it rises."
        )
    return (
        f"The {PLURAL[kind]} of a group from the most to the least important; the darker, the nearer to the group's "
        "largest score."
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(vitesse.report.__path__[0])),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
