import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="needs prometheus-client")
pytest.importorskip("psutil", reason="needs psutil")
pytest.importorskip("starlette", reason="needs starlette")

from serve.status_server import Scene, released
from vitesse.ledger import Accuracy, ArtifactRef, Latency, Ledger, Row, Verdict
from vitesse.run import Run
from vitesse.serve.metrics import Load
from vitesse.serve.sampling import Sample
from vitesse.serve.status import answering, model_facts


def test_a_minute_of_work_is_in_the_document():
    scene = Scene(load=Load(5, 64, 1, 2))
    for _ in range(10):
        scene.second(requests=40, latency_s=0.02)
    document = scene.status.document()
    assert document["figures"]["requests_per_s"] == 40
    assert document["figures"]["p50_ms"] == pytest.approx(30, rel=0.05)
    assert document["figures"]["batch"] == 4
    assert document["load"] == {"queue_depth": 5, "queue_capacity": 64, "busy": 1, "workers": 2}
    assert document["series"]["queue"][-10:] == [5.0] * 10
    assert document["series"]["memory_mb"][-1] == 212.4
    assert document["machine"]["values"]["cpu_percent"] == 162.0
    assert document["uptime_s"] == 10
    assert document["limits"]["body_bytes"] == 32 * 2**20
    assert (document["ready"], document["reason"]) == (True, "")


def test_the_document_is_json_also_before_anything_happened():
    document = json.loads(json.dumps(Scene().status.document(), allow_nan=False))
    assert document["figures"]["p50_ms"] is None
    assert document["machine"] == {"age_s": None, "values": {}, "throttling": [], "missing": {}}
    assert document["alerts"] == []


def test_why_the_server_is_not_ready_is_said():
    document = Scene(ready=(False, "warming up: bucket 2 of 3")).status.document()
    assert (document["ready"], document["reason"]) == (False, "warming up: bucket 2 of 3")


def test_a_release_shows_its_breaker_and_the_latest_event_first():
    release = Scene(state=released("12 of 50 answers held NaN")).status.document()["release"]
    assert (release["answering"], release["why"]) == ("reference", "12 of 50 answers held NaN")
    assert [(one["name"], one["phase"], one["breaker"]) for one in release["releases"]] == [
        ("fuse-dc9bd489b28a", "live", "open"),
        ("int8-0a1b2c3d4e5f", "canary", "closed"),
    ]
    assert [one["what"] for one in release["events"]] == ["breaker opened", "promoted"]


def test_who_answers_follows_what_the_router_tells():
    assert answering(released()) == ("live", "")
    assert answering({**released(), "serving": "reference"}) == (
        "reference",
        "fuse-dc9bd489b28a is not loaded",
    )
    assert answering({**released(), "serving": "reference", "live": None}) == ("reference", "")


def test_an_alert_is_logged_once_shown_while_it_stands_and_then_among_the_past_ones(caplog):
    scene = Scene(state=released("12 of 50 answers held NaN"))
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            scene.second()
        (alert,) = scene.status.document()["alerts"]
        scene.state = released()
        for _ in range(12):
            scene.second()
    assert alert["name"] == "breaker"
    assert alert["since"] == 1_790_001_000.0
    assert [(one.levelname, one.message[:13]) for one in caplog.records] == [
        ("WARNING", "alert breaker"),
        ("INFO", "alert breaker"),
    ]
    document = scene.status.document()
    assert document["alerts"] == []
    assert [(one["name"], one["until"]) for one in document["past_alerts"]] == [("breaker", 1_790_001_014.0)]


def test_errors_of_the_last_minute_raise_an_alert():
    scene = Scene()
    for _ in range(3):
        scene.second(code=500)
    assert [one["name"] for one in scene.status.document()["alerts"]] == ["errors"]


def test_samples_reach_the_gauges_and_a_missing_sensor_is_named():
    scene = Scene(state=released("it failed"))
    scene.status.sampled(Sample(scene.clock.now, {"gpu_percent": 25.0}, missing={"GPU": "GPU is lost"}))
    scene.clock.now += 7
    machine = scene.status.document()["machine"]
    assert (machine["missing"], machine["age_s"]) == ({"GPU": "GPU is lost"}, 7)
    text = scene.metrics.exposition().decode()
    assert (
        'vitesse_gpu_utilization_ratio{backend="onnxruntime",model="detr_fashion",version="fuse"} 0.25'
        in text
    )
    assert 'variant="reference",version="fuse"} 1.0' in text


def _run(tmp_path: Path, row: Row, **ledger) -> Run:
    spec = {
        "task": "classification", "decode": "logits", "image_input": "x", "outputs": {"logits": "y"},
        "preprocessing": {"size": [224, 192]}, "labels": ["cat", "dog"],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps({"spec": spec}))
    return Run(tmp_path, Ledger(source="m.onnx", target="cpu", rows=(row,), chosen=0, **ledger))


ROW = Row(
    "fuse", Verdict.PASS, "faster", artifact=ArtifactRef("artifacts/fuse-1.onnx", "ab" * 32, 1000),
    accuracy=Accuracy("top1", 0.91, 0.2, 40), latency_ms=Latency(1.0, 2.0, 3.0), gain=1.7,
)  # fmt: skip


def test_the_model_s_facts_come_from_the_ledger(tmp_path):
    facts = model_facts(_run(tmp_path, ROW, final={"gain": 1.9}), "vit")
    assert (facts["name"], facts["task"], facts["labels"]) == ("vit", "classification", 2)
    assert (facts["gain"], facts["accuracy"]["value"], facts["input_size"]) == (1.9, 0.91, [224, 192])
    assert (facts["artifact"], facts["verdict"]) == ("artifacts/fuse-1.onnx", "PASS")


def test_what_was_not_measured_is_null(tmp_path):
    facts = model_facts(_run(tmp_path, replace(ROW, gain=None, accuracy=None, artifact=None)), "vit")
    assert (facts["gain"], facts["accuracy"], facts["sha256"]) == (None, None, None)
