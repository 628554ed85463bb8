"""Golden outputs that came with a run: a machine that answers otherwise is not ready, and says by how much."""

import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.serving import PICTURES, make_run, running
from vitesse.errors import StorageError
from vitesse.run import open_run
from vitesse.serve.releases.golden import FILE, golden_of
from vitesse.serve.served import open_served
from vitesse.serve.variants import ServeOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with golden outputs, as the machine left it that made it."""
    made = make_run(tmp_path / "run")
    golden_of(open_run(made))
    return made


def scaled(path: Path, factor: float) -> None:
    """Rewrite the kept outputs as another machine might have given them."""
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    for name in arrays:
        if name.startswith("output/"):
            arrays[name] = (arrays[name] * np.float32(factor)).astype(np.float32)
    np.savez_compressed(path, **arrays)


def test_a_machine_that_answers_as_the_one_before_is_ready(folder: Path) -> None:
    kept = (folder / FILE).read_bytes()
    with open_served(open_run(folder), ServeOptions(workers=1)) as served:
        served.start()
        assert served.wait(60)
    assert (folder / FILE).read_bytes() == kept, "it is compared with and not made anew"


def test_a_machine_that_answers_otherwise_is_not_ready_and_says_by_how_much(folder: Path) -> None:
    scaled(folder / FILE, 0.5)
    with open_served(open_run(folder), ServeOptions(workers=1)) as served, running(served.service) as live:
        served.start()
        assert not served.wait(60)
        for came in (live.ask("GET", "/readyz"), live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())):
            assert (came.status, came.json["code"]) == (503, "not_ready")
            assert (
                "is not right on this machine: the output `logits` differs from the original's by up to"
                in (came.json["error"])
            )
            assert "golden images (allowed 5 %)" in came.json["error"]
        assert live.ask("GET", "/v2/health/live").status == 200, "a restart would not help"


def test_a_run_on_a_read_only_disk_is_compared_without_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object) -> None:
        raise StorageError("the disk is read-only")

    monkeypatch.setattr("vitesse.serve.releases.golden.write_atomically", read_only)
    folder = make_run(tmp_path / "run")
    with (
        caplog.at_level(logging.WARNING, "vitesse.serve"),
        open_served(open_run(folder), ServeOptions(workers=1)) as served,
    ):
        served.start()
        assert served.wait(60)
    assert not (folder / FILE).exists()
    assert any("are not kept: the disk is read-only" in record.getMessage() for record in caplog.records)
