"""The importance of a network's units as one HTML page that opens offline: no script, no request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import vitesse.report
from vitesse.compress.importance.drawing import curve, score_strip, unit_strip
from vitesse.compress.importance.figures import (
    PLURAL,
    GroupRow,
    can_go,
    measured_on,
    points,
    ranked_alike,
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
    if ranked_alike(found):
        sentences.append(_sentence(ranked_alike(found)))
    sections = [_section(found, kind, [row for row in listed if row.group.kind is kind]) for kind in _TITLES]
    return (
        _environment()
        .get_template("importance.html.j2")
        .render(
            found=found,
            lead=_sentence(measured_on(found)),
            measured=measured,
            sentences=sentences,
            sections=[section for section in sections if section.rows],
        )
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _section(found: Importance, kind: Kind, listed: Sequence[GroupRow]) -> _Section:
    alone = {} if found.sensitivity is None else found.sensitivity.alone
    drops = [drop for row in listed if row.curve is not None for drop in row.curve.drops]
    deepest = max([*drops, 0.0])
    costliest = max(
        [float(abs(alone[row.group.name]).max()) for row in listed if row.group.name in alone], default=0.0
    )
    by_unit = any(row.group.name in alone for row in listed)
    made = tuple(
        _Row(
            row.group.name,
            row.group.size,
            # The drawings hold numbers only; nothing else is marked as safe.
            Markup(
                unit_strip(alone[row.group.name], costliest)
                if row.group.name in alone
                else score_strip(found.scores[row.group.name])
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
            "the most that any of these costs; amber: it rises."
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
