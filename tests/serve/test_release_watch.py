import logging

import pytest

prometheus_client = pytest.importorskip("prometheus_client", reason="needs prometheus-client")

from serve.test_metrics import value  # noqa: E402
from vitesse.serve.metrics import Metrics  # noqa: E402
from vitesse.serve.release_watch import ReleaseWatch  # noqa: E402
from vitesse.serve.releases.breaker import Kind  # noqa: E402
from vitesse.serve.releases.observer import ReleaseObserver  # noqa: E402


@pytest.fixture
def metrics():
    return Metrics(prometheus_client.CollectorRegistry(), "vit", "1", "onnxruntime", strict=True)


@pytest.fixture
def watch(metrics):
    return ReleaseWatch(metrics)


def test_it_hears_everything_that_the_router_tells(watch):
    told = [name for name in vars(ReleaseObserver) if not name.startswith("_")]
    assert len(told) >= 7
    assert all(callable(getattr(watch, name, None)) for name in told)


@pytest.mark.parametrize("kind", [*(str(kind) for kind in Kind), "manual"])
def test_a_rollback_is_counted_by_its_reason_and_logged_with_it(metrics, watch, caplog, kind):
    with caplog.at_level(logging.INFO):
        watch.rolled_back("fuse-1", kind, "3 of 20 answers held NaN")
    assert value(metrics, "rollbacks_total", reason=kind) == 1
    assert caplog.messages == [f"fuse-1 was rolled back ({kind}): 3 of 20 answers held NaN"]
    assert caplog.records[0].levelname == "ERROR"


def test_the_reason_in_words_of_an_answer_becomes_no_label(metrics, watch):
    watch.routed("fuse-1", "live")
    watch.routed("reference", "fallback")
    watch.routed("reference", "fuse-1 was rolled back: 3 of 20 answers held NaN")
    assert [value(metrics, "routed_total", why=why) for why in ("live", "fallback", "reference")] == [1, 1, 1]
    assert b"NaN" not in b"".join(line for line in metrics.exposition().splitlines() if b"routed" in line)


def test_agreement_is_the_mean_of_the_latest_samples(metrics, watch):
    assert watch.agreement is None
    watch.agreed("fuse-1", 0.0)
    for _ in range(100):
        watch.agreed("fuse-1", 0.9)
    assert watch.agreement == pytest.approx(0.9)
    assert value(metrics, "shadow_agreement_ratio") == pytest.approx(0.9)


def test_a_breaker_s_change_is_logged_as_grave_as_it_is(watch, caplog):
    with caplog.at_level(logging.INFO):
        watch.breaker_changed("fuse-1", "half_open", "cool-down over")
        watch.breaker_changed("fuse-1", "closed", "5 good probes")
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("WARNING", "the breaker of fuse-1 is half open: cool-down over"),
        ("INFO", "the breaker of fuse-1 is closed: 5 good probes"),
    ]


def test_nonfinite_answers_and_dropped_copies_are_counted(metrics, watch):
    watch.nonfinite("fuse-1")
    watch.shadow_dropped("fuse-1")
    assert value(metrics, "output_nonfinite_total") == 1
    assert value(metrics, "shadow_dropped_total") == 1
