import json
from pathlib import Path

import pytest

from vitesse.errors import RunFolderError
from vitesse.ledger import Accuracy, ArtifactRef, Latency, Ledger, Parity, Row, Verdict, load_ledger

ROW = Row(
    "int8",
    Verdict.REJECTED,
    "loses 12.4 points of AP",
    changes={"Conv to INT8": 30},
    artifact=ArtifactRef("artifacts/int8-0123.onnx", "0123", 10),
    accuracy=Accuracy("coco_ap", 0.7, 12.4, 100, {"ap50": 0.8}),
    parity=Parity(1.5, 0.9),
    latency_ms=Latency(1.0, 2.0, 3.0),
    gain=1.4,
    gain_spread=(1.3, 1.5),
    notes=("a note",),
    unmeasured={"memory_mb": "the fresh process was killed"},
)


def test_a_ledger_survives_the_way_to_disk_and_back(tmp_path: Path) -> None:
    ledger = Ledger("model.onnx", "cpu", (ROW,), chosen=0, environment={"cpu": "x"})
    ledger.save(tmp_path / "ledger.json")
    assert load_ledger(tmp_path / "ledger.json") == ledger


def test_the_json_has_the_promised_names() -> None:
    raw = json.loads(Ledger("model.onnx", "cpu", (ROW,), chosen=0).to_json())
    assert raw["schema"] == 1
    assert {"source", "target", "rows", "chosen", "environment"} <= raw.keys()
    row = raw["rows"][0]
    assert {"stage", "verdict", "reason", "changes", "throughput_per_s", "memory_mb", "gain"} <= row.keys()
    assert row["verdict"] == "REJECTED"
    assert {"path", "sha256", "bytes"} <= row["artifact"].keys()
    assert {"metric", "value", "drop", "images"} <= row["accuracy"].keys()
    assert {"max_abs", "cosine"} <= row["parity"].keys()
    assert {"p50", "p90", "p99"} <= row["latency_ms"].keys()


def test_a_stray_nan_never_reaches_a_reader() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Ledger("m", "cpu", (Row("x", Verdict.PASS, "", gain=float("nan")),)).to_json()


def test_an_unfinished_run_has_no_chosen_row() -> None:
    with pytest.raises(RunFolderError, match="goes on from the finished steps"):
        Ledger("m", "cpu").chosen_row()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no ledger at"),
        ("{", "cannot read the ledger"),
        ("[]", "cannot read the ledger"),
        ('{"schema": 2}', "schema 2, this version reads 1"),
        ('{"schema": 1}', "cannot read the ledger"),
        ('{"schema": 1, "source": "m", "target": "cpu", "rows": [{"stage": "x"}]}', "cannot read the ledger"),
    ],
)
def test_a_damaged_ledger_is_refused_with_its_path(tmp_path: Path, content: str | None, text: str) -> None:
    path = tmp_path / "ledger.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunFolderError, match=text):
        load_ledger(path)
