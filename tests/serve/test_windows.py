import pytest

from vitesse.serve.windows import Windows


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def windows(clock):
    return Windows(clock)


def test_quantiles_are_within_one_per_cent_of_the_samples(windows, clock):
    for at in range(1, 1001):
        windows.request(200, at / 1000)
    clock.now += 1
    figures = windows.figures()
    assert figures.p50_ms == pytest.approx(500, rel=0.011)
    assert figures.p99_ms == pytest.approx(990, rel=0.011)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 3e-5, 0.0123, 7.0, 400.0])
def test_a_single_latency_comes_back_as_itself(windows, clock, seconds):
    windows.request(200, seconds)
    clock.now += 1
    assert windows.figures().p50_ms == pytest.approx(max(seconds, 1e-5) * 1e3, rel=0.011)


def test_throughput_counts_whole_seconds_and_only_good_answers(windows, clock):
    for _ in range(4):
        for _ in range(30):
            windows.request(200, 0.01)
        windows.request(503, 0.0001)
        windows.request(500, 0.01)
        windows.request(400, 0.001)
        clock.now += 1
    windows.request(200, 0.01)  # of the present second, which is not over
    figures = windows.figures()
    assert figures.requests_per_s == 30
    assert (figures.requests, figures.failed, figures.refused) == (4 * 33, 4, 4)
    assert windows.answered == 4 * 33 + 1


def test_refusals_do_not_flatter_the_latency(windows, clock):
    windows.request(200, 0.1)
    for _ in range(99):
        windows.request(503, 0.0001)
    clock.now += 1
    assert windows.figures().p50_ms == pytest.approx(100, rel=0.011)


def test_what_is_older_than_a_minute_is_forgotten(windows, clock):
    windows.request(200, 5.0)
    clock.now += 60
    assert windows.figures().requests == 1
    clock.now += 1
    assert windows.figures().requests == 0
    assert windows.figures().p50_ms is None


def test_a_pause_leaves_a_gap_in_the_series_and_not_a_zero(windows, clock):
    windows.request(200, 0.01)
    clock.now += 3
    windows.request(200, 0.02)
    clock.now += 1
    series = windows.series()
    assert series["p50_ms"][-4:] == [pytest.approx(10, rel=0.011), None, None, pytest.approx(20, rel=0.011)]
    assert series["requests_per_s"][-4:] == [1, 0, 0, 1]
    assert len(series["p50_ms"]) == 60


def test_batches_are_averaged_over_executions(windows, clock):
    windows.executed(8)
    windows.executed(2)
    clock.now += 1
    assert windows.figures().batch == 5
    assert windows.figures().items_per_s == 10
    clock.now += 61
    assert windows.figures().batch is None


def test_sampled_figures_keep_the_last_reading_of_a_second(windows, clock):
    windows.sampled({"queue": 3.0, "cpu_percent": 50.0})
    windows.sampled({"queue": 5.0})
    clock.now += 1
    series = windows.series(("queue", "cpu_percent", "gpu_percent"))
    assert (series["queue"][-1], series["cpu_percent"][-1], series["gpu_percent"][-1]) == (5.0, 50.0, None)


def test_in_its_first_second_a_server_shows_the_present_one(windows):
    windows.request(200, 0.01)
    assert windows.figures().requests == 1
