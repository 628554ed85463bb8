"""Our histograms beside the client library's: the same samples for the same values."""

import random
import re
import threading

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

from vitesse.serve.spread import Spreads

BOUNDS = (0.001, 0.5, 1.0, 12.0)
NAME, TEXT, LABELS = "vitesse_x_seconds", 'A "text"\nof two lines.', ("model", "stage")


def both() -> tuple[prometheus_client.Histogram, Spreads, CollectorRegistry, CollectorRegistry]:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    return (
        prometheus_client.Histogram(NAME, TEXT, LABELS, buckets=BOUNDS, registry=theirs),
        Spreads(NAME, TEXT, LABELS, BOUNDS, ours),
        theirs,
        ours,
    )


def told(registry: CollectorRegistry) -> str:
    text = prometheus_client.generate_latest(registry).decode()
    return re.sub(r"(_created\{.*\}) .*", r"\1 then", text)


def test_a_scrape_reads_what_it_would_read_of_the_library() -> None:
    reference, spreads, theirs, ours = both()
    draw = random.Random(0)
    values = [*BOUNDS, 0.0, 1e9, *(draw.lognormvariate(-1, 3) for _ in range(200))]
    for stage in ("decode", 'a "quoted" one'):
        for value in values:
            reference.labels("m", stage).observe(value)
            spreads.labels("m", stage).observe(value)
    assert told(ours) == told(theirs)
    assert f"{NAME}_created" in told(ours)


def test_a_series_is_there_before_its_first_value() -> None:
    reference, spreads, theirs, ours = both()
    reference.labels("m", "infer")
    spreads.labels("m", "infer")
    assert told(ours) == told(theirs)
    assert ours.get_sample_value(f"{NAME}_count", {"model": "m", "stage": "infer"}) == 0


def test_a_family_without_series_is_named_all_the_same() -> None:
    _, _, theirs, ours = both()
    assert told(ours) == told(theirs)


def test_one_name_is_one_family() -> None:
    _, _, _, ours = both()
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        prometheus_client.Counter(f"{NAME}_count", TEXT, registry=ours)


def test_threads_lose_no_value() -> None:
    _, spreads, _, ours = both()

    def add() -> None:
        for _ in range(2000):
            spreads.labels("m", "infer").observe(0.25)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = {"model": "m", "stage": "infer"}
    assert ours.get_sample_value(f"{NAME}_count", labels) == 8000
    assert ours.get_sample_value(f"{NAME}_sum", labels) == 2000
