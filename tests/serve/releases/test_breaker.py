"""The circuit breaker, on a clock that is turned by hand."""

import pytest

from vitesse.serve.releases.breaker import Breaker, Kind, Outcome, State, Thresholds

GOOD = Outcome(seconds=0.01)
BAD = Outcome(Kind.ERROR, "CUDA error 700")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def opened(breaker: Breaker) -> Breaker:
    for _ in range(breaker.thresholds.consecutive):
        breaker.record(BAD)
    assert breaker.state is State.OPEN
    return breaker


def test_errors_in_a_row_open_it_with_the_last_message(breaker: Breaker) -> None:
    assert [breaker.record(BAD) for _ in range(5)] == [False] * 4 + [True]
    assert (breaker.state, breaker.kind) == (State.OPEN, Kind.ERROR)
    assert breaker.why == "5 requests in a row failed; the last: CUDA error 700"


def test_a_good_request_between_begins_the_row_anew_but_a_late_comparison_does_not(breaker: Breaker) -> None:
    for _ in range(4):
        breaker.record(BAD)
    breaker.record(GOOD)
    for _ in range(4):
        assert not breaker.record(BAD)
    breaker.record(Outcome(agreement=1.0))
    assert breaker.record(BAD)


def test_a_share_of_failures_opens_it_only_once_there_are_enough_requests(breaker: Breaker) -> None:
    outcomes = [BAD if number % 4 == 0 else GOOD for number in range(40)]
    opening = next(number for number, outcome in enumerate(outcomes) if breaker.record(outcome))
    assert opening == 20  # the first failure from which 20 requests are there
    assert "6 of the last 21 requests failed (allowed 10%)" in breaker.why


def test_failures_of_long_ago_do_not_count(breaker: Breaker, clock: Clock) -> None:
    for number in range(200):
        clock.now += 3.0  # 20 requests a window, one of them bad: 5 %
        assert not breaker.record(BAD if number % 20 == 0 else GOOD)


def test_a_slow_release_opens_it_and_a_machine_that_is_slow_for_both_does_not(breaker: Breaker) -> None:
    for _ in range(30):
        breaker.record_reference(0.05)
        assert not breaker.record(Outcome(seconds=0.05))
    assert any(breaker.record(Outcome(seconds=0.15)) for _ in range(30))
    assert breaker.kind is Kind.SLOW
    assert "150 ms per image, the reference's 50 ms" in breaker.why


@pytest.mark.parametrize(
    ("reference_ms", "release_ms", "slow"),
    [
        (0.0712, 0.184, False),  # a model that does next to nothing, and a thread that had to wait
        (0.0712, 1.07, False),  # 15 times as long, and still less than a millisecond more
        (0.0712, 1.08, True),
        (10.0, 19.9, False),  # beyond the floor the factor decides
        (10.0, 20.1, True),
    ],
)
def test_less_than_a_millisecond_more_is_not_slow(
    breaker: Breaker, clock: Clock, reference_ms: float, release_ms: float, slow: bool
) -> None:
    for _ in range(200):
        breaker.record_reference(reference_ms / 1e3)
    assert any(breaker.record(Outcome(seconds=release_ms / 1e3)) for _ in range(200)) == slow
    if slow:
        assert "(allowed are 2 times that or 1 ms more)" in breaker.why
    opened(breaker)
    clock.now += breaker.cool_down_s + 1
    assert breaker.probe()
    breaker.record_probe(Outcome(seconds=release_ms / 1e3), reference_ms / 1e3)
    assert (breaker.state is State.OPEN) == slow, "a probe is judged by the same bound"


def test_a_stall_of_the_machine_is_not_a_slow_release(breaker: Breaker) -> None:
    for _ in range(30):
        breaker.record_reference(0.05)
    for number in range(60):
        assert not breaker.record(Outcome(seconds=1.0 if number % 10 == 0 else 0.01))


def test_without_figures_of_the_reference_a_slow_release_is_unknown(breaker: Breaker) -> None:
    assert not any(breaker.record(Outcome(seconds=9.0)) for _ in range(100))


def test_disagreement_opens_it_in_spite_of_a_long_good_past(breaker: Breaker) -> None:
    for _ in range(200):
        assert not breaker.record(Outcome(agreement=0.99))
    found = [breaker.record(Outcome(agreement=0.7)) for _ in range(10)]
    assert found.index(True) >= 3 and breaker.kind is Kind.DISAGREEMENT
    assert "(at least 0.9)" in breaker.why


def test_two_other_classes_in_ten_images_are_chance(breaker: Breaker) -> None:
    for _ in range(5):
        for agreement in (1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0):
            assert not breaker.record(Outcome(agreement=agreement))
        for _ in range(90):
            assert not breaker.record(Outcome(agreement=1.0))


def test_drifted_scores_open_it_and_equally_spread_ones_do_not(breaker: Breaker) -> None:
    spread = [0.5 + 0.005 * (37 * number % 100) for number in range(100)]
    breaker.record_reference(scores=spread)
    assert not any(breaker.record(Outcome(scores=(score,))) for score in spread)
    assert any(breaker.record(Outcome(scores=(0.2 * score,))) for score in 2 * spread)
    assert breaker.kind is Kind.DRIFT
    assert "Hellinger distance" in breaker.why


def test_after_the_cool_down_good_probes_close_it_one_at_a_time(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += 29.9
    assert not breaker.probe() and breaker.remaining_s == pytest.approx(0.1)
    clock.now += 0.2
    for number in range(5):
        assert breaker.probe() and not breaker.probe()
        assert breaker.record_probe(Outcome(seconds=0.01, agreement=0.99), 0.01) == (number == 4)
    assert breaker.state is State.CLOSED and breaker.why == ""


@pytest.mark.parametrize(
    ("probe", "kind"),
    [
        (BAD, Kind.ERROR),
        (Outcome(seconds=0.01, agreement=0.5), Kind.DISAGREEMENT),
        (Outcome(seconds=0.03, agreement=1.0), Kind.SLOW),
    ],
)
def test_a_bad_probe_opens_it_again_for_twice_as_long(
    breaker: Breaker, clock: Clock, probe: Outcome, kind: Kind
) -> None:
    opened(breaker)
    clock.now += 31
    assert breaker.probe()
    assert not breaker.record_probe(probe, 0.01)
    assert (breaker.state, breaker.kind, breaker.cool_down_s) == (State.OPEN, kind, 60.0)
    assert "a probe after the cool-down failed" in breaker.why


def test_a_release_that_fails_again_and_again_is_tried_ever_more_rarely_up_to_the_cap(
    breaker: Breaker, clock: Clock
) -> None:
    times = []
    for _ in range(9):
        opened(breaker)
        times.append(breaker.cool_down_s)
        clock.now += breaker.cool_down_s
        for _ in range(5):
            assert breaker.probe()
            breaker.record_probe(GOOD, 0.01)
    assert times == [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]
    clock.now += 601  # stable for long enough: what comes now is a new story
    assert opened(breaker).cool_down_s == 30


def test_a_probe_that_said_nothing_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += 31
    assert breaker.probe()
    breaker.give_up_probe()
    assert breaker.probe()


def test_stragglers_of_before_the_opening_change_nothing(breaker: Breaker) -> None:
    opened(breaker)
    assert not breaker.record(GOOD) and not breaker.record(BAD)
    assert breaker.state is State.OPEN


def test_a_restart_does_not_shorten_the_cool_down(clock: Clock) -> None:
    breaker = Breaker(clock, Thresholds(cool_down_s=10))
    breaker.restore(40.0, 80.0, "slow", "p95")
    assert (breaker.state, breaker.kind, breaker.remaining_s) == (State.OPEN, Kind.SLOW, 40.0)
    clock.now += 41
    assert breaker.probe()
    breaker.record_probe(BAD)
    assert breaker.cool_down_s == 160.0


def test_releases_share_what_is_known_of_the_reference_and_nothing_else(breaker: Breaker) -> None:
    for _ in range(30):
        breaker.record_reference(0.01)
    other = opened(breaker).fresh()
    assert other.state is State.CLOSED
    assert any(other.record(Outcome(seconds=0.1)) for _ in range(30))
