"""The small drawings of the importance page, as SVG; colours come from the page's style sheet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitesse.compress.importance.figures import points
from vitesse.compress.importance.sensitivity import Curve

STRIP = (320, 18)  # pixels of the drawing, width × height
CURVE = (150, 36)
MOST_CELLS = 80


def score_strip(scores: NDArray[np.float64]) -> str:
    """Return the scores of a group (units,), largest first, as dark as they are large; many units share a cell."""
    shown = np.sort(scores)[::-1]
    parts = np.array_split(shown, min(len(shown), MOST_CELLS))
    means = [float(part.mean()) for part in parts]
    told = [f"{part[-1]:.3g} to {part[0]:.3g}" if len(part) > 1 else f"{part[0]:.3g}" for part in parts]
    return _strip(means, told, max(means))


def unit_strip(drops: NDArray[np.float64], largest: float) -> str:
    """Return what each unit of a group costs alone, in points (units,), in their order, as dark as `largest` allows."""
    told = [f"{index}: {points(drop)}" for index, drop in enumerate(drops.tolist())]
    return _strip(drops.tolist(), told, largest)


def _strip(values: list[float], told: list[str], largest: float) -> str:
    width, height = STRIP
    side = width / max(len(values), 8)
    cells = [
        f'<rect class="{"s-gain" if value < 0 else "s-cell"}" x="{index * side:.2f}" y="0" '
        f'width="{max(side - 0.6, 0.4):.2f}" height="{height}" '
        f'fill-opacity="{abs(value) / max(largest, 1e-12):.3f}"><title>{title}</title></rect>'
        for index, (value, title) in enumerate(zip(values, told, strict=True))
    ]
    label = f"{min(values):.3g} to {max(values):.3g}"
    frame = (
        f'<rect class="s-frame" x="0.5" y="0.5" width="{len(values) * side - 1:.2f}" height="{height - 1}"/>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(cells)}{frame}</svg>'
    )


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
