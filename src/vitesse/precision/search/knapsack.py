"""The most gain within a bound on cost, for costs and gains that add up."""

from __future__ import annotations

from collections.abc import Mapping

# Costs are counted in this many steps of the capacity: the set found lies within 40 / 4000 of the bound at most.
STEPS = 4000


def best_within(cost: Mapping[str, float], gain: Mapping[str, float], capacity: float) -> frozenset[str]:
    """Return the names with the largest summed gain whose costs sum to at most `capacity`.

    Names without a positive gain are left out; without a cost (0) they are always in. Costs are rounded up to
    `capacity / STEPS`, so the bound is kept, and dynamic programming over the steps finds the best (Bellman 1957).

    Args:
        cost, gain: 0 or more, by the same names.
    """
    wanted = [name for name in cost if gain[name] > 0]
    free = frozenset(name for name in wanted if cost[name] <= 0)
    if capacity <= 0:
        return free
    best: dict[int, tuple[float, frozenset[str]]] = {0: (0.0, free)}
    for name in wanted:
        # A hair below, so that sums that only rounding puts above the bound still fit.
        steps = -int(-(cost[name] * STEPS / capacity - 1e-9) // 1)
        if not 0 < steps <= STEPS:
            continue
        for used, (value, names) in list(best.items()):
            total, with_it = used + steps, value + gain[name]
            if total <= STEPS and with_it > best.get(total, (-1.0, free))[0]:
                best[total] = (with_it, names | {name})
    return max(best.values(), key=lambda one: one[0])[1]
