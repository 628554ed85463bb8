"""The small drawings of the importance page, as SVG; colours come from the page's style sheet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitesse.compress.importance.figures import points
from vitesse.compress.importance.sensitivity import Curve

STRIP = (320, 18)  # pixels of the drawing, width × height
CURVE = (150, 36)
MOST_CELLS = 80


def strip(values: NDArray[np.float64], *, ordered: bool) -> str:
    """Return a row of cells as dark as their values, up to the largest of them.

    Args:
        values: (units,); below 0 is drawn in another colour.
        ordered: largest first; many units then share a cell, as their mean. Otherwise one cell a unit, in order.
    """
    shown = np.sort(values)[::-1] if ordered else values
    if ordered and len(shown) > MOST_CELLS:
        shown = np.array([part.mean() for part in np.array_split(shown, MOST_CELLS)])
    largest = max(float(np.abs(shown).max()), 1e-12)
    width, height = STRIP
    side = width / max(len(shown), 8)
    cells = []
    for index, value in enumerate(shown.tolist()):
        dark = abs(value) / largest
        told = f"{index}: {value:.3g}" if ordered else f"{index}: {points(value)} points"
        cells.append(
            f'<rect class="{"s-gain" if value < 0 else "s-cell"}" x="{index * side:.2f}" y="0" '
            f'width="{max(side - 0.6, 0.4):.2f}" height="{height}" fill-opacity="{dark:.3f}">'
            f"<title>{told}</title></rect>"
        )
    frame = (
        f'<rect class="s-frame" x="0.5" y="0.5" width="{len(shown) * side - 1:.2f}" height="{height - 1}"/>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_range(values)}">{"".join(cells)}{frame}</svg>'


def curve(found: Curve, deepest: float) -> str:
    """Return the points lost, downwards, against the share of units left out, 0 to 1.

    Args:
        deepest: points at the lower edge, so that curves of several groups can be compared; 0 or more.
    """
    width, height = CURVE
    scale = (height - 8) / max(deepest, 1e-9)
    line = [(4.0, 5.0)] + [
        (4 + share * (width - 8), min(max(5 + drop * scale, 2), height - 2))
        for share, drop in zip(found.shares, found.drops, strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    dots = "".join(
        f'<circle class="c-dot" cx="{x:.1f}" cy="{y:.1f}" r="2"><title>{share:.0%} left out: {points(drop)}</title>'
        "</circle>"
        for (x, y), share, drop in zip(line[1:], found.shares, found.drops, strict=True)
    )
    told = "; ".join(
        f"{share:.0%} {points(drop)}" for share, drop in zip(found.shares, found.drops, strict=True)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{told}">'
        f'<polygon class="c-area" points="{path} {line[-1][0]:.1f},5 4,5"/>'
        f'<line class="c-zero" x1="4" y1="5" x2="{width - 4}" y2="5"/><polyline class="c-line" points="{path}"/>{dots}'
        "</svg>"
    )


def _range(values: NDArray[np.float64]) -> str:
    return f"{len(values)} units, {values.min():.3g} to {values.max():.3g}"
