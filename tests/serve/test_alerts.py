"""Every rule is raised by what it is for, once, stays silent beside it, and is cleared once."""

import pytest

from vitesse.serve.alerts import Alerts, Seen, mb_per_1000


def run(alerts, seconds, of):
    """Feed seconds; `of` makes what was seen from the second. Returns what was raised and cleared, in order."""
    return [
        (one.name, "raised" if one.until is None else "cleared")
        for at in seconds
        for one in alerts.update(of(float(at)))
    ]


def growing(slope, *, start=200.0, step_at=None):
    """100 requests a second, memory growing by `slope` MB per 1000 of them; or one step of 50 MB at a second."""
    return lambda at: Seen(
        at,
        answered=int(100 * at),
        memory_mb=start + slope * at / 10 + (50 if step_at and at >= step_at else 0),
    )


def test_the_slope_is_that_of_a_line():
    assert mb_per_1000([(0, 100.0), (1000, 102.5), (2000, 105.0)]) == pytest.approx(2.5)
    assert mb_per_1000([(5, 1.0), (5, 2.0)]) == 0


def test_memory_that_grows_is_raised_once_with_its_figures():
    alerts = Alerts()
    assert run(alerts, range(120), growing(3.0)) == [("memory", "raised")]
    (alert,) = alerts.standing
    assert alert.text.startswith("Memory grows by 3.0 MB per 1000 requests: ")
    assert "buckets" in alert.next_step


@pytest.mark.parametrize(
    "of",
    [growing(0.0), growing(0.5), growing(0.0, step_at=60), growing(-3.0)],
    ids=["flat", "slow", "one step for a larger shape", "falling"],
)
def test_memory_that_does_not_leak_is_left_alone(of):
    assert run(Alerts(), range(300), of) == []


def test_memory_during_warm_up_is_not_judged():
    def of(at):
        return Seen(at, answered=int(100 * at), memory_mb=200 + min(at, 10.0) * 40)

    assert run(Alerts(), range(300), of) == []


def test_memory_is_not_judged_on_few_requests():
    assert run(Alerts(), range(300), lambda at: Seen(at, answered=int(at), memory_mb=100 + at)) == []


def test_a_memory_alert_is_cleared_when_the_growth_has_stopped():
    alerts = Alerts()

    def of(at):
        return Seen(at, answered=int(100 * at), memory_mb=200 + 0.5 * min(at, 100.0))

    assert run(alerts, range(600), of) == [("memory", "raised"), ("memory", "cleared")]
    assert alerts.standing == ()


def test_throttling_needs_more_than_a_moment():
    def of(share):
        return lambda at: Seen(at, throttling=("hardware thermal slowdown",) if at % 10 < 10 * share else ())

    assert run(Alerts(), range(60), of(0.3)) == []
    alerts = Alerts()
    assert run(alerts, range(60), of(0.6)) == [("throttling", "raised")]
    assert "hardware thermal slowdown" in alerts.standing[0].text
    assert "nvidia-smi" in alerts.standing[0].next_step


def test_a_full_queue_is_raised_and_a_short_burst_is_not():
    burst = Alerts()
    assert (
        run(burst, range(60), lambda at: Seen(at, queue_depth=32 if at % 10 < 3 else 0, queue_capacity=32))
        == []
    )
    full = Alerts()
    assert run(full, range(60), lambda at: Seen(at, queue_depth=30, queue_capacity=32)) == [
        ("queue", "raised")
    ]
    assert "30 of 32 places" in full.standing[0].text


def test_refused_requests_raise_the_queue_alert_with_their_number():
    alerts = Alerts()
    assert run(alerts, range(3), lambda at: Seen(at, queue_capacity=32, requests=100, refused=5)) == [
        ("queue", "raised")
    ]
    assert "5 of 100 requests refused" in alerts.standing[0].text


@pytest.mark.parametrize(("requests", "failed", "raised"), [(100, 1, False), (100, 2, True), (10, 10, False)])
def test_errors_are_judged_by_their_share_of_enough_requests(requests, failed, raised):
    found = run(Alerts(), range(5), lambda at: Seen(at, requests=requests, failed=failed))
    assert found == ([("errors", "raised")] if raised else [])


def test_an_open_breaker_is_raised_at_once_with_its_reason():
    alerts = Alerts()
    (alert,) = alerts.update(Seen(1.0, breaker="3 of 20 answers held NaN."))
    assert alert.text == (
        "The optimised model was taken out of service: 3 of 20 answers held NaN. The reference answers."
    )
    assert "vitesse release status" in alert.next_step


def test_an_alert_that_hovers_is_raised_once_and_cleared_only_after_calm():
    alerts = Alerts()

    def of(at):
        return Seen(at, breaker="it failed" if at < 30 and at % 4 == 0 else "")

    assert run(alerts, range(30), of) == [("breaker", "raised")]
    assert alerts.standing[0].since == 0.0
    assert run(alerts, range(30, 38), of) == []
    assert run(alerts, range(38, 60), of) == [("breaker", "cleared")]


def test_the_gravest_alert_comes_first():
    alerts = Alerts()
    alerts.update(Seen(0.0, requests=100, failed=50, refused=20, queue_capacity=8, breaker="it failed"))
    assert [one.name for one in alerts.standing] == ["breaker", "errors", "queue"]
