"""The memory model finds what memory was made of, says how far off it is, and never promises room that is not there."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fashion import VIT, artifact_of
from vitesse.backends.protocol import LoadOptions
from vitesse.benchmark.memory_model import MemoryModel, fit_memory, largest_batch
from vitesse.benchmark.points import Bench
from vitesse.errors import DataError

FIXED, PER_STREAM, PER_ITEM = 900.0, 120.0, 35.0


def truth(batch: int, streams: int) -> float:
    return FIXED + streams * (PER_STREAM + batch * PER_ITEM)


def known(pairs: list[tuple[int, int]], noise: float = 0.0) -> list[tuple[int, int, float]]:
    rng = np.random.default_rng(1)
    return [(b, s, truth(b, s) * (1 + noise * rng.standard_normal())) for b, s in pairs]


def test_two_batch_sizes_and_two_numbers_of_streams_are_enough() -> None:
    model = fit_memory(known([(1, 1), (2, 1), (1, 2)]))
    assert (model.fixed_mb, model.per_stream_mb, model.per_item_mb) == pytest.approx((900, 120, 35))
    assert model.predict_mb(64, 4) == pytest.approx(truth(64, 4))
    assert model.error is None  # three points for three figures leave nothing to check with


def test_with_noise_the_error_says_how_far_predictions_are_off() -> None:
    model = fit_memory(known(list(product((1, 2, 4, 8, 16), (1, 2, 4))), noise=0.01))
    assert model.error is not None and 0.005 < model.error < 0.05
    assert model.predict_mb(32, 4) == pytest.approx(truth(32, 4), rel=0.05)


def test_memory_that_does_not_follow_the_model_has_a_large_error() -> None:
    jumping = [(b, s, truth(b, s) + (3000.0 if b >= 8 else 0.0)) for b, s in product((1, 2, 4, 8), (1, 2))]
    model = fit_memory(jumping)
    assert model.error is not None and model.error > 0.2


def test_no_figure_is_negative_even_where_noise_would_have_it() -> None:
    model = fit_memory([(1, 1, 500.0), (2, 1, 499.0), (1, 2, 499.5), (2, 2, 500.5)])
    assert min(model.fixed_mb, model.per_stream_mb, model.per_item_mb) >= 0
    assert model.predict_mb(64, 4) == pytest.approx(500, rel=0.2)


def test_one_number_of_streams_predicts_for_that_number_alone() -> None:
    model = fit_memory(known([(1, 1), (4, 1)]))
    assert model.predict_mb(16, 1) == pytest.approx(truth(16, 1))
    with pytest.raises(DataError, match="streams 2 from points that all have 1"):
        model.predict_mb(1, 2)


def test_a_fixed_batch_size_predicts_for_other_numbers_of_streams() -> None:
    model = fit_memory(known([(1, 1), (1, 2)]))
    assert model.predict_mb(1, 4) == pytest.approx(truth(1, 4))
    with pytest.raises(DataError, match="batch size 8 from points that all have 1"):
        model.predict_mb(8, 1)


@pytest.mark.parametrize("pairs", [[], [(1, 1)], [(1, 1), (2, 2)]])
def test_points_that_decide_nothing_are_refused_with_what_to_measure(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match="measure batch 1 and 2 with one stream, and batch 1 with two"):
        fit_memory(known(pairs))


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_the_largest_batch_fits_and_the_next_one_does_not(streams: int) -> None:
    model = MemoryModel(FIXED, PER_STREAM, PER_ITEM)
    found = largest_batch(model, 4000.0, streams)
    assert truth(found, streams) <= 4000.0 < truth(found + 1, streams)


def test_where_not_even_one_image_fits_the_largest_batch_is_none() -> None:
    assert largest_batch(MemoryModel(FIXED, PER_STREAM, PER_ITEM), 1000.0) == 0


def test_a_budget_met_exactly_is_met() -> None:
    assert largest_batch(MemoryModel(0.1, 0.2, 0.3), 0.1 + 0.2 + 3 * 0.3) == 3


def test_items_that_cost_nothing_are_bounded_by_the_given_limit() -> None:
    assert largest_batch(MemoryModel(FIXED, PER_STREAM, 0.0), 2000.0, at_most=64) == 64


def test_a_real_session_on_the_cpu_follows_the_model(tmp_path: Path) -> None:
    artifact = artifact_of(VIT)
    height, width = artifact.spec.preprocessing.size

    def feeds_of(batch: int) -> dict[str, np.ndarray]:
        return {artifact.spec.image_input: np.zeros((batch, 3, height, width), np.float32)}

    with Bench(artifact, feeds_of, LoadOptions(threads=1), None) as bench:
        pairs = [(16, 1), (64, 1), (16, 2), (128, 2)]
        found = {point.pair: point for point in bench.measure(pairs, 0.02, rounds=1)}
    measured = {pair: point.memory_mb for pair, point in found.items() if point.memory_mb is not None}
    assert set(measured) == set(pairs)
    model = fit_memory([(*pair, measured[pair]) for pair in pairs[:3]])
    assert model.predict_mb(128, 2) == pytest.approx(measured[128, 2], rel=0.35)
    # The inputs alone are 38 kB an image: an item that seems to take less was not measured.
    assert model.per_item_mb > 3 * height * width * 4 / 1e6
