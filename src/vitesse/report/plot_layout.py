"""Where things go in the latency × accuracy plot: axis ranges, ticks, and labels that don't overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

LABEL_HEIGHT = 16.0  # pixels of the drawing, for 12 px text
CHARACTER = 7.0  # pixels of the drawing; wider than the mean of common system fonts at 12 px
MARKER = 8.0  # half the side of the square a marker occupies

# Sides to try around a marker, in the order they read best: right, left, above, below, then the corners.
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
DISTANCES = (12.0, 24.0, 38.0, 54.0, 72.0, 92.0, 114.0)
GRID = 9.0  # pixels between places tried anywhere


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the drawing; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether the two share an area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        """Return whether this lies within `other`."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low`..`high` in data units to `start`..`end` in pixels, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the pixel of a value, held within the axis: a value outside lands on its border."""
        held = min(max(value, self.low), self.high)
        return self.start + (held - self.low) / (self.high - self.low) * (self.end - self.start)

    def shows(self, value: float) -> bool:
        """Return whether the value lies on the axis."""
        return self.low <= value <= self.high

    def tick_text(self, value: float) -> str:
        """Write a tick with as many decimals as the step between ticks needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def axis(low: float, high: float, pixels: tuple[float, float], *, most_ticks: int) -> Axis:
    """Return an axis over `low`..`high` (low < high) with about `most_ticks` ticks or fewer."""
    rough = (high - low) / most_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Axis(low, high, pixels[0], pixels[1], ticks)


def latency_range(latencies: Sequence[float], budget: float | None) -> tuple[float, float]:
    """Return the range of the latency axis in ms: points up to 3× the first (the source), the budget when near."""
    shown = [value for value in latencies if value <= 3 * latencies[0]]
    if budget is not None and min(shown) / 2 <= budget <= 1.6 * max(shown):
        shown.append(budget)
    pad = max(0.14 * (max(shown) - min(shown)), 0.04 * max(shown))
    return max(0.0, min(shown) - pad), max(shown) + pad


def accuracy_range(values: Sequence[float], floor: float | None) -> tuple[float, float]:
    """Return the range of the accuracy axis (0..1): what lies far below must not squash the rest."""
    best = max(values)
    lowest = best - 5 * max(0.002, 0.0 if floor is None else best - floor)
    shown = [value for value in values if value >= lowest] + ([] if floor is None else [floor])
    pad = max(0.18 * (max(shown) - min(shown)), 0.0015)
    return max(0.0, min(shown) - pad), min(max(shown) + pad, max(1.0, *shown) + 0.0005)


def place_labels(
    anchors: Sequence[tuple[float, float]], texts: Sequence[str], frame: Box, taken: Sequence[Box]
) -> tuple[Box, ...]:
    """Return one box per text, near its anchor, inside `frame`, clear of markers, `taken` and each other.

    Labels are placed in the order given, so the ones that matter most go first. Where nothing is free, the
    position that covers the fewest others is taken.
    """
    markers = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in anchors]
    placed: list[Box] = []
    for anchor, text in zip(anchors, texts, strict=True):
        obstacles = [*markers, *taken, *placed]
        best, fewest = None, math.inf
        width = CHARACTER * len(text)
        for candidate in chain(_beside(anchor, width), _anywhere(anchor, width, frame)):
            cost = sum(candidate.overlaps(other) for other in obstacles)
            cost += 0 if candidate.inside(frame) else 100
            if cost < fewest:
                best, fewest = candidate, cost
            if not cost:
                break
        if best is not None:
            placed.append(best)
    return tuple(placed)


def _beside(anchor: tuple[float, float], width: float) -> Iterator[Box]:
    """Yield places around an anchor, the nearest and most readable first."""
    x, y = anchor
    for distance in DISTANCES:
        for across, down in DIRECTIONS:
            left = x + across * distance - (width if across < 0 else width / 2 if across == 0 else 0)
            middle = y + down * distance
            yield Box(left, middle - LABEL_HEIGHT / 2, left + width, middle + LABEL_HEIGHT / 2)


def _anywhere(anchor: tuple[float, float], width: float, frame: Box) -> Iterator[Box]:
    """Yield places all over the frame, the nearest to the anchor first: for clusters in a corner."""
    columns = int(max(0.0, frame.right - frame.left - width) / GRID) + 1
    lines = int(max(0.0, frame.bottom - frame.top - LABEL_HEIGHT) / GRID) + 1
    corners = [
        (frame.left + GRID * column, frame.top + GRID * line)
        for column in range(columns)
        for line in range(lines)
    ]
    corners.sort(
        key=lambda at: math.hypot(at[0] + width / 2 - anchor[0], at[1] + LABEL_HEIGHT / 2 - anchor[1])
    )
    for left, top in corners:
        yield Box(left, top, left + width, top + LABEL_HEIGHT)
