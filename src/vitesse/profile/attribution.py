"""Which place of the given graph each kernel that ran belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from vitesse.profile.modules import Found, Modules, Place
from vitesse.profile.parts import FLOW
from vitesse.profile.recording import Kernel
from vitesse.scopes import common_path


class Matched(StrEnum):
    """How a kernel was tied to the graph."""

    DIRECT = "by the name of a tensor or node"
    NEIGHBOURS = "by the kernels beside it"
    NOT = "not attributed"


def attribute(kernels: Sequence[Kernel], modules: Modules) -> list[tuple[Place | None, Matched]]:
    """Return for every kernel its place and how it was found; None where nothing ties it to the graph.

    A kernel that a runtime put in between, such as a change of layout, belongs to the kernel it reads from, else
    to the one that reads it.
    """
    places = [_direct(kernel, modules) for kernel in kernels]
    direct = [place is not None for place in places]
    at = {kernel.name: index for index, kernel in enumerate(kernels)}
    before = [[at[name] for name in kernel.sources if name in at] for kernel in kernels]
    after: list[list[int]] = [[] for _ in kernels]
    for index, sources in enumerate(before):
        for source in sources:
            after[source].append(index)
    _spread(places, before, last=True)
    _spread(places, after, last=False)
    return [
        (place, Matched.NOT if place is None else Matched.DIRECT if known else Matched.NEIGHBOURS)
        for place, known in zip(places, direct, strict=True)
    ]


def matched_ms(
    kernels: Sequence[Kernel], attributed: Sequence[tuple[Place | None, Matched]]
) -> dict[Matched, float]:
    """Return the milliseconds per run of the kernels that were tied to the graph each way."""
    times = dict.fromkeys(Matched, 0.0)
    for kernel, (_, how) in zip(kernels, attributed, strict=True):
        times[how] += kernel.ms
    return times


def _direct(kernel: Kernel, modules: Modules) -> Place | None:
    found = (modules.place_of(name, kernel.operator) for name in kernel.origins)
    return next((place for place in found if place is not None), None)


def _spread(places: list[Place | None], edges: Sequence[Sequence[int]], *, last: bool) -> None:
    """Give every kernel without a place that of its neighbours, until nothing changes.

    Of several parts the last or the first; inside it, the modules that these neighbours share.
    """
    changed = True
    while changed:
        changed = False
        for index, neighbours in enumerate(edges):
            known = [place for i in neighbours if (place := places[i]) is not None]
            if places[index] is None and known:
                part = (max if last else min)((place.part for place in known), key=FLOW.index)
                inside = [place for place in known if place.part is part]
                path = common_path([place.path for place in inside]) or ()
                places[index], changed = Place(part, path, Found.NEIGHBOURS), True
