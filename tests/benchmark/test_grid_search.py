"""The search ends within 5 % of the best point of the whole grid, on machines whose truth is known."""

from __future__ import annotations

from itertools import product

import pytest

from benchmark.surfaces import SURFACES, Machine, memory_mb, peaked, saturating, sawtooth
from vitesse.benchmark.grid_search import Found, GridSearch, Limits, coarse, grid
from vitesse.benchmark.tune import search_grid

MOST_BATCH, MOST_STREAMS = 64, 4
BOUND_MS, BUDGET_MB = 24.0, 2500.0
LIMITS = {
    "none": Limits(),
    "latency": Limits(latency_ms=BOUND_MS),
    "memory": Limits(memory_mb=BUDGET_MB),
    "both": Limits(BOUND_MS, BUDGET_MB),
}


def searched(machine: Machine, limits: Limits) -> Found:
    return GridSearch(machine.measure, MOST_BATCH, MOST_STREAMS, limits).run()


def truly_best(machine: Machine, limits: Limits, *, quick: bool) -> float:
    """The best of the grid by the formulas, without noise; `quick` keeps the bound of latency, too."""
    kept = [
        machine.surface(batch, streams)
        for batch, streams in product(grid(MOST_BATCH), grid(MOST_STREAMS))
        if (limits.memory_mb is None or memory_mb(batch, streams) <= limits.memory_mb)
        and not (quick and limits.latency_ms and 1.02 * machine.call_ms(batch, streams) > limits.latency_ms)
    ]
    return max(kept)


def shortfall(machine: Machine, found: Found, limits: Limits, *, quick: bool = False) -> float:
    """By how much the chosen point truly is slower than the best; 1 = nothing was chosen."""
    chosen = found.latency if quick else found.throughput
    if chosen is None:
        return 1.0
    return 1 - machine.surface(*chosen.pair) / truly_best(machine, limits, quick=quick)


def test_the_grid_is_powers_of_two_and_half_way_between() -> None:
    assert grid(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert grid(5) == [1, 2, 3, 4, 5]
    assert grid(1) == coarse(1) == [1]
    assert coarse(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("name", SURFACES)
def test_without_noise_the_choice_is_within_5_percent_of_the_best(name: str, limits: Limits) -> None:
    machine = Machine(SURFACES[name])
    found = searched(machine, limits)
    assert shortfall(machine, found, limits) <= 0.05
    if limits.latency_ms is not None:
        assert shortfall(machine, found, limits, quick=True) <= 0.05
        assert found.latency is not None and (found.latency.p99_ms or 0) <= limits.latency_ms
    assert len(set(machine.asked)) < 0.75 * len(grid(MOST_BATCH)) * len(grid(MOST_STREAMS))


@pytest.mark.parametrize("name", SURFACES)
def test_with_three_percent_of_noise_it_nearly_always_is(name: str) -> None:
    tries = [Machine(SURFACES[name], noise=0.03, seed=seed) for seed in range(8)]
    good = [
        shortfall(machine, searched(machine, LIMITS["memory"]), LIMITS["memory"]) <= 0.05 for machine in tries
    ]
    assert sum(good) >= 7


class StopsAtOnce(GridSearch):
    """Broken: takes the first point for the best."""

    def _coarse(self) -> None: ...

    def _climb(self, speed: object) -> None: ...


class OneStream(GridSearch):
    """Broken: never tries more streams."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._streams = [1]


class CoarseOnly(GridSearch):
    """Broken: does not look around the best coarse point."""

    def _climb(self, speed: object) -> None: ...


class Slowest(GridSearch):
    """Broken: prefers few images in flight to speed."""

    def _best(self, speed: object) -> object:  # type: ignore[override]
        return min(self._points.values(), key=lambda point: point.batch * point.streams)


@pytest.mark.parametrize("broken", [StopsAtOnce, OneStream, CoarseOnly, Slowest])
def test_a_broken_search_is_further_than_5_percent_from_the_best_somewhere(broken: type[GridSearch]) -> None:
    shortfalls = []
    for surface, limits in product(SURFACES.values(), LIMITS.values()):
        machine = Machine(surface)
        found = broken(machine.measure, MOST_BATCH, MOST_STREAMS, limits).run()
        shortfalls.append(shortfall(machine, found, limits))
        if limits.latency_ms is not None:
            shortfalls.append(shortfall(machine, found, limits, quick=True))
    assert max(shortfalls) > 0.05


def test_nothing_is_tried_that_would_not_fit() -> None:
    machine = Machine(saturating)
    found = searched(machine, LIMITS["memory"])
    assert all(memory_mb(*pair) <= BUDGET_MB for pair in machine.asked)
    assert any("MB by the memory model" in one.why for one in found.skipped)


def test_a_memory_model_that_promises_too_much_would_be_seen() -> None:
    machine = Machine(saturating)

    class Trusting(GridSearch):
        def _predicted_mb(self, pair: tuple[int, int]) -> float:
            return 0.0

    Trusting(machine.measure, MOST_BATCH, MOST_STREAMS, LIMITS["memory"]).run()
    assert any(memory_mb(*pair) > BUDGET_MB for pair in machine.asked)


def test_what_was_refused_is_not_chosen_and_nothing_larger_is_tried() -> None:
    machine = Machine(saturating, refuses=lambda batch, streams: batch > 16)
    found = searched(machine, Limits())
    assert found.throughput is not None and found.throughput.batch <= 16
    assert sum(batch > 16 for batch, _ in machine.asked) <= len(grid(MOST_STREAMS))
    assert any("was refused already" in one.why for one in found.skipped)


def test_every_point_of_the_grid_is_measured_or_skipped_with_a_reason() -> None:
    found = searched(Machine(peaked), LIMITS["both"])
    pairs = {point.pair for point in found.points} | {(one.batch, one.streams) for one in found.skipped}
    assert pairs == set(product(grid(MOST_BATCH), grid(MOST_STREAMS)))
    assert all(one.why for one in found.skipped)


def test_without_a_bound_the_latency_setting_is_one_image_on_one_stream() -> None:
    found = searched(Machine(peaked), Limits())
    assert found.latency is not None and found.latency.pair == (1, 1)


def test_a_bound_that_nothing_keeps_leaves_no_latency_setting() -> None:
    assert searched(Machine(peaked), Limits(latency_ms=0.01)).latency is None


def test_a_tie_goes_to_fewer_images_in_flight() -> None:
    found = searched(Machine(lambda batch, streams: 1000.0), Limits())
    assert found.throughput is not None and found.throughput.pair == (1, 1)


def test_near_ties_are_measured_again() -> None:
    machine = Machine(lambda batch, streams: 1000.0 + (30 if (batch, streams) == (4, 1) else 0), noise=0.02)
    searched(machine, Limits())
    assert max(map(machine.asked.count, machine.asked)) > 1


def test_an_exhaustive_search_says_how_far_the_choice_was_from_the_best() -> None:
    machine = Machine(sawtooth)
    limits = LIMITS["both"]
    found = search_grid(
        GridSearch(machine.measure, MOST_BATCH, MOST_STREAMS, limits), limits, exhaustive=True
    )
    fitting = {
        pair for pair in product(grid(MOST_BATCH), grid(MOST_STREAMS)) if memory_mb(*pair) <= BUDGET_MB
    }
    assert {point.pair for point in found.points} == fitting
    assert found.gap is not None and found.gap <= 0.05
    assert found.latency_gap is not None and found.latency_gap <= 0.05


def test_the_distance_from_the_best_shows_a_search_that_missed_it() -> None:
    machine = Machine(saturating)
    found = search_grid(StopsAtOnce(machine.measure, MOST_BATCH, MOST_STREAMS, Limits()), Limits(), True)
    assert found.throughput is not None
    truth = 1 - saturating(*found.throughput.pair) / saturating(MOST_BATCH, MOST_STREAMS)
    assert found.gap == pytest.approx(truth) and truth > 0.5
