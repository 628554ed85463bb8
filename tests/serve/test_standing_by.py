"""Releases that stand by in a served run: warmed up behind what answers, promoted, or left out with a reason."""

from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.serving import PICTURES, make_run, running
from vitesse.backends.onnxruntime import OnnxRuntimeEngine
from vitesse.errors import StorageError, UsageError
from vitesse.run import open_run
from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.of_run import initial_state, name_of
from vitesse.serve.releases.state import StateFile
from vitesse.serve.served import open_served
from vitesse.serve.variants import ServeOptions


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[Path, str]:
    """A served run with one more artifact that waits as a candidate: the folder, and the candidate's name."""
    folder = make_run(tmp_path / "run", stages=("source", "fuse", "fp16"))
    run = open_run(folder)
    row = run.ledger.rows[2]
    assert row.artifact is not None
    name, sha256 = name_of(row), row.artifact.sha256
    file = StateFile(folder)
    file.update(
        lambda state: state.with_candidate(name, sha256, 1.0, "made later"), lambda: initial_state(run, 0.0)
    )
    return folder, name


def test_a_candidate_is_warmed_up_behind_what_answers_and_can_be_promoted(waiting: tuple[Path, str]) -> None:
    folder, name = waiting
    with open_served(open_run(folder), ServeOptions(workers=1)) as served:
        served.start()
        assert served.wait(60)
        operator = served.service.releases
        assert operator is not None
        assert operator.promote()["serving"] == name
        with running(served.service) as live:
            came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())
            assert (came.status, came.headers["x-served-by"]) == (200, name)
        assert operator.rollback("by a test")["serving"].startswith("fuse-")


def test_a_candidate_that_cannot_be_loaded_is_left_out_and_the_rest_serves(waiting: tuple[Path, str]) -> None:
    folder, _name = waiting
    (folder / "artifacts" / "fp16.onnx").write_bytes(b"not this any more")
    with open_served(open_run(folder), ServeOptions(workers=1)) as served:
        served.start()
        assert served.wait(60)
        operator = served.service.releases
        assert operator is not None
        with pytest.raises(Refusal, match="not loaded") as caught:
            operator.promote()
        assert caught.value.status == 409


def test_a_candidate_that_is_wrong_on_this_machine_is_never_given_work(
    waiting: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _name = waiting
    asked: list[str] = []

    def judged(session: object, spec: object, golden: object, tolerances: object) -> tuple[str, ...]:
        asked.append("")
        return ("logits differ by 3.2",) if len(asked) == 3 else ()

    monkeypatch.setattr("vitesse.serve.variants.check", judged)
    with open_served(open_run(folder), ServeOptions(workers=1)) as served:
        served.start()
        assert served.wait(60) and len(asked) == 3
        operator = served.service.releases
        assert operator is not None
        with pytest.raises(Refusal, match="not loaded"):
            operator.promote()


def test_a_state_that_cannot_be_written_is_said_and_nothing_moves(
    waiting: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left on the disk", fix="free some")

    folder, _ = waiting
    with open_served(open_run(folder), ServeOptions(workers=1)) as served:
        served.start()
        assert served.wait(60)
        operator = served.service.releases
        assert operator is not None
        monkeypatch.setattr("vitesse.serve.releases.state.write_atomically", full)
        with pytest.raises(Refusal, match="no space left") as caught:
            operator.promote()
        assert caught.value.status == 503
        with running(served.service) as live:
            came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())
            assert came.headers["x-served-by"].startswith("fuse-")


def test_a_damaged_state_file_leaves_the_original_in_charge(waiting: tuple[Path, str]) -> None:
    folder, _ = waiting
    (folder / "serving.json").write_text("{")
    with open_served(open_run(folder), ServeOptions(workers=1)) as served:
        served.start()
        assert served.wait(60)
        with running(served.service) as live:
            came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())
            assert (came.status, came.headers["x-served-by"]) == (200, "reference")


def test_a_queue_without_room_for_one_batch_is_refused_and_the_engine_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OnnxRuntimeEngine] = []

    def close(engine: OnnxRuntimeEngine) -> None:
        closed.append(engine)

    monkeypatch.setattr(OnnxRuntimeEngine, "close", close)
    options = ServeOptions(workers=1, batch=8, capacity=4)
    with pytest.raises(UsageError, match="--queue 4 beside batches of up to 8"):
        open_served(open_run(make_run(tmp_path / "run")), options)
    assert len(closed) == 1
