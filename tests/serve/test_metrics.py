"""What a scrape shows: the names, labels and values of every metric."""

import threading
import time

import pytest

prometheus_client = pytest.importorskip("prometheus_client", reason="needs prometheus-client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from vitesse.serve.metrics import Load, Metrics  # noqa: E402
from vitesse.serve.windows import Windows  # noqa: E402

COMMON = {"model", "version", "backend"}
# Name as it is scraped → its own label and the least set of values that must be there.
EXPECTED = {
    "requests": ("code", {"200", "400", "413", "499", "500", "503", "504", "other"}),
    "request_failures": ("reason", {"rejected", "timeout", "cancelled", "bad_input", "backend", "other"}),
    "request_duration_seconds": (None, set()),
    "stage_duration_seconds": ("stage", {"decode", "queue", "input", "infer", "output"}),
    "inferences": (None, set()),
    "executions": (None, set()),
    "batch_size": (None, set()),
    "queue_depth": (None, set()),
    "queue_capacity": (None, set()),
    "inflight": (None, set()),
    "instances_busy": (None, set()),
    "ready": (None, set()),
    "model_state": ("state", {"starting", "warming", "ready", "draining", "failed"}),
    "warmup_seconds": (None, set()),
    "rollbacks": ("reason", {"error", "nonfinite", "slow", "disagreement", "drift", "golden", "manual"}),
    "active_variant": ("variant", {"live", "canary", "reference"}),
    "shadow_agreement_ratio": (None, set()),
    "output_nonfinite": (None, set()),
    "engine_check_failures": ("check", {"hash", "version", "device", "driver"}),
    "pool_bytes": ("kind", {"device"}),
    "pool_fallback_allocs": (None, set()),
    "process_resident_bytes": (None, set()),
    "gpu_utilization_ratio": (None, set()),
    "gpu_memory_used_bytes": (None, set()),
    "gpu_memory_total_bytes": (None, set()),
    "gpu_temperature_celsius": (None, set()),
    "gpu_power_watts": (None, set()),
    "build_info": ("release", set()),
}


@pytest.fixture
def metrics():
    registry = prometheus_client.CollectorRegistry()
    return Metrics(registry, "vit", "fuse-1", "onnxruntime", windows=Windows(), strict=True)


def scraped(metrics):
    return {
        family.name.removeprefix("vitesse_"): family
        for family in text_string_to_metric_families(metrics.exposition().decode())
    }


def value(metrics, name, **labels):
    """Return the one sample of that full name whose labels hold these."""
    found = [
        sample.value
        for family in scraped(metrics).values()
        for sample in family.samples
        if sample.name == f"vitesse_{name}" and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_a_scrape_has_every_metric_with_its_labels(metrics):
    metrics.state("ready")
    metrics.warmed_up(1.5)
    metrics.watch_load(lambda: Load(1, 8, 1, 2))
    metrics.agreement(0.98)
    metrics.memory_pool("device", 10, 20)
    gpu = {
        "gpu_percent": 50,
        "gpu_memory_mb": 1,
        "gpu_memory_total_mb": 2,
        "temperature_c": 40,
        "power_w": 90,
    }
    metrics.sensed({"memory_mb": 100.0, **gpu})
    found = scraped(metrics)
    assert all(sample.name.startswith("vitesse_") for family in found.values() for sample in family.samples)
    for name, (label, values) in EXPECTED.items():
        samples = found[name].samples
        assert samples, name
        assert all(set(sample.labels) >= COMMON for sample in samples), name
        if label:
            assert values <= {sample.labels[label] for sample in samples}, name


def test_failures_are_there_before_the_first_one(metrics):
    assert value(metrics, "request_failures_total", reason="timeout") == 0
    assert value(metrics, "rollbacks_total", reason="nonfinite") == 0


def test_a_request_is_counted_once_everywhere(metrics):
    with metrics.in_flight():
        assert value(metrics, "inflight") == 1
    metrics.stage("decode", 0.004)
    metrics.observe_request(200, 0.03, 602_112)
    assert value(metrics, "inflight") == 0
    assert value(metrics, "requests_total", code="200") == 1
    assert value(metrics, "request_bytes_total") == 602_112
    assert value(metrics, "request_duration_seconds_count") == 1
    assert value(metrics, "request_duration_seconds_bucket", le="0.05") == 1
    assert value(metrics, "request_duration_seconds_bucket", le="0.02") == 0
    assert value(metrics, "stage_duration_seconds_sum", stage="decode") == pytest.approx(0.004)


def test_a_batch_counts_one_execution_all_items_and_each_request_s_wait(metrics):
    metrics.batch_executed(5, 3, [0.001, 0.002, 0.003], 0.02, 18.0)
    assert value(metrics, "executions_total") == 1
    assert value(metrics, "inferences_total") == 5
    assert value(metrics, "batch_size_sum") == 5
    assert value(metrics, "stage_duration_seconds_count", stage="queue") == 3
    assert value(metrics, "stage_duration_seconds_sum", stage="queue") == pytest.approx(0.006)
    assert value(metrics, "stage_duration_seconds_count", stage="infer") == 3
    assert value(metrics, "device_seconds_total") == pytest.approx(0.018)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("queue_full", "rejected"),
        ("deadline", "timeout"),
        ("cancelled", "cancelled"),
        ("bad_image", "bad_input"),
        ("backend", "backend"),
        ("internal", "other"),
    ],
)
def test_a_refusal_s_code_becomes_a_reason(metrics, code, reason):
    metrics.failure(code)
    assert value(metrics, "request_failures_total", reason=reason) == 1


def test_an_unknown_label_value_raises_in_tests_and_is_other_in_production(metrics):
    with pytest.raises(KeyError, match=r"'\.\./etc/passwd', expected one of"):
        metrics.failure("../etc/passwd")
    with pytest.raises(KeyError, match="'418'"):
        metrics.observe_request(418, 0.1, 0)
    lenient = Metrics(prometheus_client.CollectorRegistry(), "vit", "1", "onnxruntime")
    lenient.failure("../etc/passwd")
    lenient.observe_request(418, 0.1, 0)
    assert value(lenient, "request_failures_total", reason="other") == 1
    assert value(lenient, "requests_total", code="other") == 1
    assert b"passwd" not in lenient.exposition()


def test_ready_follows_the_state(metrics):
    metrics.state("warming")
    assert (value(metrics, "ready"), value(metrics, "model_state", state="warming")) == (0, 1)
    metrics.state("ready")
    assert (value(metrics, "ready"), value(metrics, "model_state", state="ready")) == (1, 1)
    assert value(metrics, "model_state", state="warming") == 0
    with pytest.raises(KeyError, match="'asleep'"):
        metrics.state("asleep")


def test_queue_and_workers_are_asked_at_each_scrape(metrics):
    load = Load(3, 16, 1, 2)
    metrics.watch_load(lambda: load)
    assert (value(metrics, "queue_depth"), value(metrics, "instances")) == (3, 2)
    load = Load(9, 16, 2, 2)
    assert (value(metrics, "queue_depth"), value(metrics, "instances_busy")) == (9, 2)


def test_without_a_gpu_there_are_no_figures_of_one(metrics):
    metrics.sensed({"memory_mb": 120.5, "cpu_percent": 150.0, "cpu_mhz": 2400.0})
    found = scraped(metrics)
    assert found["gpu_utilization_ratio"].samples == []
    assert value(metrics, "process_resident_bytes") == 120.5e6
    assert value(metrics, "process_cpu_ratio") == 1.5


def test_variants_share_a_registry_and_stay_apart(metrics):
    reference = metrics.beside("reference", "onnxruntime")
    metrics.batch_executed(2, 2, [0.0, 0.0], 0.01, None)
    reference.batch_executed(1, 1, [0.0], 0.02, None)
    assert value(metrics, "inferences_total", version="fuse-1") == 2
    assert value(metrics, "inferences_total", version="reference") == 1
    server_wide = [
        sample for sample in scraped(metrics)["requests"].samples if sample.labels["version"] != "fuse-1"
    ]
    assert server_wide == []


def test_a_worker_s_changes_are_counted_and_its_state_kept(metrics):
    for state in ("starting", "idle", "hung"):
        metrics.worker_changed(0, state)
    assert metrics.workers() == {0: "hung"}
    assert value(metrics, "worker_changes_total", state="hung") == 1


def test_a_halved_batch_shows_its_new_limit(metrics):
    metrics.memory_halved(4)
    assert (value(metrics, "batch_halved_total"), value(metrics, "batch_limit")) == (1, 4)


def test_an_unknown_pool_is_refused(metrics):
    metrics.memory_pool("pinned", 100, 4096)
    assert value(metrics, "pool_bytes", kind="pinned", state="reserved") == 4096
    with pytest.raises(KeyError, match="'swap'"):
        metrics.memory_pool("swap", 1, 2)


def test_nothing_is_lost_between_threads(metrics):
    def count():
        for _ in range(500):
            metrics.observe_request(200, 0.01, 10)
            metrics.batch_executed(1, 1, [0.0], 0.01, None)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "requests_total", code="200") == 2000
    assert value(metrics, "inferences_total") == 2000


def test_a_request_costs_little(metrics):
    """About 10 µs on a quiet core; the bound leaves room for a loaded machine, whose quickest round counts."""

    def spent():
        began = time.thread_time()
        for _ in range(300):
            with metrics.in_flight():
                for stage in ("decode", "input", "output"):
                    metrics.stage(stage, 0.003)
                metrics.batch_executed(1, 1, [0.001], 0.01, None)
            metrics.observe_request(200, 0.02, 100_000)
        return (time.thread_time() - began) / 300

    assert min(spent() for _ in range(20)) < 100e-6
