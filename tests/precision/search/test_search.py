"""The search on subjects whose true costs are known."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision.search.fakes import FakeSubject, Interrupted
from tiny_graphs import classifier_spec
from vitesse.errors import RunFolderError
from vitesse.precision.search import Blocks, Found, Pace, Plan, Trial, TrialStore, load_found, search
from vitesse.recipe import SearchOptions

SPEC = classifier_spec()
MAX_DROP = 0.5
ALLOWED = 0.4  # four fifths of the budget: the rest is the margin for few images


def _subject(blocks: Mapping[str, tuple[float, float]], **settings: Any) -> FakeSubject:
    """A subject from block → (points it costs, milliseconds it saves)."""
    return FakeSubject(
        {name: points for name, (points, _) in blocks.items()},
        {name: saved for name, (_, saved) in blocks.items()},
        SPEC,
        **settings,
    )


def _search(subject: FakeSubject, folder: Path, **settings: Any) -> Found:
    options = SearchOptions(minutes=settings.pop("minutes", 10.0))
    return search(
        subject,
        max_drop=settings.pop("max_drop", MAX_DROP),
        options=options,
        trials=TrialStore(folder),
        clock=subject.clock,
        **settings,
    )


def _optimum(subject: FakeSubject) -> Blocks:
    """The fastest set inside what is allowed, by trying all of them."""
    sets = (
        frozenset(chosen)
        for count in range(len(subject.blocks) + 1)
        for chosen in itertools.combinations(subject.blocks, count)
    )
    inside = [one for one in sets if subject.true_drop(one) <= ALLOWED + 1e-12]
    return min(inside, key=subject.true_ms)


HARD = {
    "backbone.0": (0.02, 12.0),
    "backbone.1": (0.05, 9.0),
    "encoder.0": (0.15, 8.0),
    "encoder.1": (0.17, 7.5),
    "decoder.0": (0.35, 11.0),
    "decoder.1": (3.0, 14.0),
    "decoder.2": (0.09, 1.0),
}


def test_everything_that_is_accurate_and_faster_takes_one_trial(tmp_path: Path) -> None:
    subject = _subject({"a": (0.01, 10), "b": (0.1, 20)})
    found = _search(subject, tmp_path)
    assert found.chosen == {"a", "b"}
    assert [blocks for blocks, _ in subject.scored] == [{"a", "b"}]
    assert found.reason == "2 of 2 blocks lowered: AP −0.11, 1.43× as fast as FP32"


@pytest.mark.parametrize("seed", range(12))
def test_the_best_set_is_found_when_costs_add_up(seed: int, tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    subject = _subject(
        {f"block.{at}": (float(rng.lognormal(-3, 1.5)), float(rng.uniform(0.5, 8))) for at in range(11)}
    )
    if subject.true_drop(frozenset(subject.blocks)) <= ALLOWED:
        pytest.skip("nothing to search for")
    found = _search(subject, tmp_path)
    best = subject.true_ms(_optimum(subject))
    # Costs are rounded up in 4000 steps of the budget: a set on the very edge may be missed for one a hair slower.
    assert subject.true_ms(found.chosen) <= best * 1.005
    assert subject.true_drop(found.chosen) <= ALLOWED


def test_the_worst_block_goes_back_and_a_greedy_dead_end_is_left(tmp_path: Path) -> None:
    subject = _subject(HARD)
    found = _search(subject, tmp_path)
    assert found.chosen == _optimum(subject)
    assert "decoder.1" not in found.chosen


def test_a_search_takes_far_fewer_trials_of_sets_than_there_are_sets(tmp_path: Path) -> None:
    subject = _subject({f"b{at}": (0.02 * (at + 1), 1.0) for at in range(32)})
    plans: list[Plan] = []
    _search(subject, tmp_path, on_plan=plans.append)
    sets = [blocks for blocks, _ in subject.scored if len(blocks) > 1]
    assert len(sets) <= plans[0].sets
    assert len(subject.scored) == len(set(subject.scored)), "a trial was made twice"


@pytest.mark.parametrize("max_drop", [0.0, 0.1, 0.3, 1.0])
def test_no_set_over_the_budget_is_ever_chosen(max_drop: float, tmp_path: Path) -> None:
    subject = _subject(HARD)
    found = _search(subject, tmp_path, max_drop=max_drop)
    assert subject.true_drop(found.chosen) <= max_drop
    if not found.chosen:
        assert max_drop == 0.0


def test_a_block_that_is_slower_lowered_goes_back_at_once(tmp_path: Path) -> None:
    subject = _subject({"fast": (0.05, 20), "slow": (0.0, -6), "fine": (0.05, 10)})
    found = _search(subject, tmp_path)
    assert found.chosen == {"fast", "fine"}
    slow = next(one for one in found.sensitivities if one.block == "slow")
    assert slow.fate == "back in FP32: not faster lowered"
    assert slow.score is None, "no trial was spent on what a block costs that saves nothing"


def test_the_target_and_not_the_profile_decides_whether_a_block_pays(tmp_path: Path) -> None:
    # The profile calls "join" slower by itself, but without it everything else is slower, too.
    class Joined(FakeSubject):
        def true_ms(self, blocks: Blocks) -> float:
            return super().true_ms(blocks) + (20.0 if blocks and "join" not in blocks else 0.0)

    subject = Joined({"a": 0.0, "join": 0.0}, {"a": 30.0, "join": -5.0}, SPEC)
    assert _search(subject, tmp_path).chosen == {"a", "join"}


def test_nothing_accurate_leaves_an_empty_set_with_words(tmp_path: Path) -> None:
    subject = _subject({"a": (7.0, 10), "b": (5.4, 20)})
    found = _search(subject, tmp_path)
    assert found.chosen == frozenset()
    assert found.reason == "rejected: AP −12.4; the best of 2 sets: AP −5.40, 0.4 allowed"
    assert found.trials[0].verdict == "rejected: AP −12.4"


def test_accurate_but_slower_is_rejected_for_its_speed_without_looking_at_blocks(tmp_path: Path) -> None:
    subject = _subject({"a": (0.0, 1.0), "b": (0.0, 1.0)}, overhead_ms=20.0)
    found = _search(subject, tmp_path)
    assert found.chosen == frozenset()
    assert found.reason == "rejected: slower than FP32: 0.85× (0.84 to 0.86)"
    assert len(subject.scored) == 1


def test_inaccurate_and_slower_does_not_cost_a_trial_for_every_block(tmp_path: Path) -> None:
    subject = _subject(dict.fromkeys("abcdefgh", (1.0, 0.5)), overhead_ms=30.0)
    found = _search(subject, tmp_path)
    assert found.reason.startswith("rejected: slower than FP32")
    assert len(subject.scored) == 1


def test_a_gain_within_noise_is_no_gain(tmp_path: Path) -> None:
    found = _search(_subject({"a": (0.0, 2.0)}, noise=0.05), tmp_path)
    assert found.chosen == frozenset()
    assert found.reason == "rejected: not surely faster than FP32: 1.02× (0.97 to 1.07)"


@pytest.mark.parametrize("died_at", range(12))
def test_an_interrupted_search_goes_on_without_repeating_a_trial(died_at: int, tmp_path: Path) -> None:
    whole = _search(_subject(HARD), tmp_path / "whole")
    first = _subject(HARD, interrupt_at=died_at)
    with pytest.raises(Interrupted):
        _search(first, tmp_path / "resumed")
    second = _subject(HARD)
    resumed = _search(second, tmp_path / "resumed")
    assert not set(first.scored) & set(second.scored)
    assert len(first.scored) == died_at
    assert resumed.chosen == whole.chosen
    assert [trial.blocks for trial in resumed.trials] == [trial.blocks for trial in whole.trials]


def test_a_finished_search_is_taken_over_without_any_measurement(tmp_path: Path) -> None:
    whole = _search(_subject(HARD), tmp_path)
    again = _subject(HARD)
    assert _search(again, tmp_path).chosen == whole.chosen
    assert not again.scored and not again.raced


def test_other_ranges_or_another_graph_share_no_trial(tmp_path: Path) -> None:
    _search(_subject(HARD), tmp_path)
    other = _subject(HARD, key="other")
    _search(other, tmp_path)
    assert other.scored


def test_a_damaged_trial_is_measured_again(tmp_path: Path) -> None:
    _search(_subject({"a": (0.0, 10)}), tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(path.read_text()[:-4])
    again = _subject({"a": (0.0, 10)})
    assert _search(again, tmp_path).chosen == {"a"}
    assert again.scored


def test_no_trial_begins_after_the_minutes_and_what_was_found_counts(tmp_path: Path) -> None:
    blocks = {f"b{at}": (0.05, 2.0) for at in range(20)}
    for minutes in (0.5, 1.0, 2.0, 5.0):
        subject = _subject(blocks, seconds=4.0, pace=Pace(0.5, 0.01, 1.0))
        found = _search(subject, tmp_path / str(minutes), minutes=minutes)
        assert subject.now <= 60 * minutes + 4.0
        assert subject.true_drop(found.chosen) <= MAX_DROP
        assert any("no time was left" in note or "time was over" in note for note in found.notes) == (
            minutes < 5
        )
    assert found.chosen, "five minutes are enough"


def test_blocks_that_were_not_looked_at_for_want_of_time_stay_in_fp32(tmp_path: Path) -> None:
    subject = _subject(
        {f"b{at}": (0.05, 0.2 + 0.2 * at) for at in range(20)}, seconds=4.0, pace=Pace(0.5, 0.01, 1.0)
    )
    found = _search(subject, tmp_path, minutes=1.5)
    unknown = [one for one in found.sensitivities if one.score is None]
    assert unknown and not any(one.lowered for one in unknown)
    assert {one.fate for one in unknown} == {"back in FP32: no time was left to see what it costs"}
    assert found.chosen, "those that were looked at, the ones that save most, make a set"


def test_slow_models_are_searched_on_fewer_images_and_the_estimate_is_said_first(tmp_path: Path) -> None:
    heard: list[Plan | Trial] = []
    subject = _subject(HARD, pace=Pace(2.0, 0.5, 30.0), images=400)
    _search(subject, tmp_path, on_plan=heard.append, on_trial=heard.append)
    plan = heard[0]
    assert isinstance(plan, Plan) and all(isinstance(one, Trial) for one in heard[1:])
    assert plan.scored < 100 and 8 <= plan.probed <= plan.scored
    assert plan.seconds <= 600
    assert plan.words() == (
        "about 52 seconds if everything can be lowered, else about 8 minutes: "
        "7 blocks and variants on 32 images, 11 sets on 39 images"
    )


def test_the_way_of_quantising_with_the_least_error_goes_on(tmp_path: Path) -> None:
    given = _subject({"a": (0.9, 10), "b": (0.3, 20)}, key="percentile")
    better = _subject({"a": (0.3, 10), "b": (0.05, 20)}, key="mse")
    worse = _subject({"a": (2.0, 10), "b": (3.0, 20)}, key="minmax")
    found = _search(given, tmp_path, variants={"mse": lambda: better, "minmax": lambda: worse})
    assert (found.variant, found.chosen) == ("mse", {"a", "b"})
    assert len(worse.scored) == 1
    assert not any(len(blocks) == 1 for blocks, _ in given.scored)


def test_the_given_way_is_kept_where_it_is_good_enough(tmp_path: Path) -> None:
    given, other = _subject({"a": (0.1, 10)}), _subject({"a": (0.0, 10)}, key="mse")
    assert _search(given, tmp_path, variants={"mse": lambda: other}).variant == ""
    assert not other.scored


@pytest.mark.parametrize(
    ("saved", "points", "expected"), [(40.0, 0.32, "uint8"), (40.0, 0.9, ""), (31.0, 0.32, "")]
)
def test_of_two_numbers_the_measured_speed_decides_where_errors_are_alike(
    saved: float, points: float, expected: str, tmp_path: Path
) -> None:
    given = _subject({"a": (0.3, 30.0), "b": (0.3, 0.0)})
    unsigned = _subject({"a": (points, saved), "b": (0.3, 0.0)}, key="u", number="uint8")
    found = _search(given, tmp_path, variants={"uint8": lambda: unsigned})
    assert found.variant == expected
    assert any("by number: int8 1.43×" in note for note in found.notes)


def test_without_a_profile_gains_are_told_from_the_operations_and_noted(tmp_path: Path) -> None:
    subject = _subject({"a": (0.1, 10), "b": (2.0, 10)}, profiled=False)
    found = _search(subject, tmp_path)
    assert found.chosen == {"a"}
    assert any("share of the operations" in note for note in found.notes)


class Liar(FakeSubject):
    """Says that all is well on the search images."""

    def score(self, artifact, images):
        return replace(super().score(artifact, images), drop=0.0)


def _liar() -> Liar:
    return Liar(
        {name: cost for name, (cost, _) in HARD.items()}, {n: ms for n, (_, ms) in HARD.items()}, SPEC
    )


def test_a_set_that_validation_refuses_is_followed_by_more_careful_ones_until_one_is_right(
    tmp_path: Path,
) -> None:
    refused: list[Blocks] = []
    subject = _liar()
    found = _search(subject, tmp_path)
    while found.chosen and subject.true_drop(found.chosen) > MAX_DROP:
        assert found.chosen not in refused
        refused.append(found.chosen)
        found = _search(subject, tmp_path, refused=refused)
    assert found.chosen, "there are sets inside the budget"
    assert refused[0] == frozenset(HARD)
    assert len(refused) < 12
    assert len(subject.scored) == len(set(subject.scored))


def test_a_block_that_pays_only_together_and_saves_nothing_by_itself_is_the_dearest(tmp_path: Path) -> None:
    # By the profile "join" saves exactly nothing; without it everything else is slower. The whole costs too much.
    class Joined(FakeSubject):
        def true_ms(self, blocks: Blocks) -> float:
            return super().true_ms(blocks) + (8.0 if blocks and "join" not in blocks else 0.0)

    costs = {"a": 0.1, "b": 0.1, "join": 0.3}
    subject = Joined(costs, {"a": 30.0, "b": 20.0, "join": 0.0}, SPEC)
    assert _search(subject, tmp_path).chosen == {"a", "b"}


def test_what_was_found_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    found = _search(_subject(HARD), tmp_path / "trials")
    assert load_found(found.save(tmp_path)) == found
    assert (tmp_path / "search-onnxruntime.json").is_file()


def test_a_damaged_outcome_says_so(tmp_path: Path) -> None:
    path = _search(_subject({"a": (0.0, 10)}), tmp_path / "trials").save(tmp_path)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(
        RunFolderError, match=r"schema 7, this version reads 1[\s\S]*repeat the optimize command"
    ):
        load_found(path)


def test_too_few_images_for_the_budget_are_noted(tmp_path: Path) -> None:
    found = _search(_subject({"a": (0.0, 10)}, images=50), tmp_path)
    assert any("one image weighs about 2.0 points of AP" in note for note in found.notes)
