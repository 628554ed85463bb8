"""`vitesse release` on the state file of a run, and the run's artifacts as releases."""

import argparse
from pathlib import Path

import pytest

from engine_runs import FP16, FP32, a_run
from vitesse.cli import release
from vitesse.errors import RunFolderError, UsageError
from vitesse.ledger import Ledger
from vitesse.run import Run, open_run
from vitesse.serve.releases.of_run import artifact_for, brought_up_to_date, initial_state, name_of
from vitesse.serve.releases.state import Phase, StateFile


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return choosing(a_run(tmp_path, {"source": FP32, "fp16": FP16}), 1)


def choosing(run: Run, row: int) -> Run:
    Ledger(run.ledger.source, "cpu", run.ledger.rows, chosen=row).save(run.folder / "ledger.json")
    return open_run(run.folder)


def call(run: Run, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    release.add(parser)
    action, *more = arguments
    return release.run(parser.parse_args([action, str(run.folder), *more]))


def test_the_chosen_artifact_is_live_and_its_file_is_found(run: Run) -> None:
    live = initial_state(run, 1.0).live
    assert live is not None and live.name == name_of(run.ledger.rows[1])
    row, artifact = artifact_for(run, live)
    assert row.stage == "fp16" and artifact.sha256 == live.sha256


def test_a_run_whose_choice_is_the_original_has_nothing_live(run: Run) -> None:
    assert initial_state(choosing(run, 0), 1.0).live is None


def test_what_the_run_chose_later_waits_as_a_candidate(run: Run) -> None:
    file = StateFile(run.folder)
    brought_up_to_date(choosing(run, 0), file, lambda: 1.0)
    state = brought_up_to_date(choosing(run, 1), file, lambda: 2.0)
    assert [one.phase for one in state.releases] == [Phase.CANDIDATE]
    assert brought_up_to_date(run, file, lambda: 3.0) == state


def test_an_artifact_that_is_gone_is_named(run: Run) -> None:
    live = initial_state(run, 1.0).live
    assert live is not None
    with pytest.raises(RunFolderError, match="has no artifact for the release"):
        artifact_for(Run(run.folder, Ledger("m", "cpu", run.ledger.rows[:1], chosen=0)), live)


def test_rollback_and_promotion_are_one_command_each(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "rollback", "--why", "wrong colours") == 0
    assert "reference: no release is live" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no release waits"):
        call(run, "promote")
    name = name_of(run.ledger.rows[1])
    assert call(run, "promote", "--release", name, "--share", "0.1") == 0
    assert f"canary     {name}  10%" in capsys.readouterr().out
    assert call(run, "promote") == 0
    assert f"live       {name}" in capsys.readouterr().out
    state = StateFile(run.folder).read()
    assert state is not None
    assert [event.what for event in state.events] == ["promoted", "rolled back", "canary", "promoted"]
    assert state.events[1].why == "wrong colours"


def test_status_changes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "status") == 0
    assert "live       fp16-" in capsys.readouterr().out
    assert StateFile(run.folder).read() is None


def test_share_belongs_to_promote(run: Run) -> None:
    with pytest.raises(UsageError, match="--share and --shadow with rollback"):
        call(run, "rollback", "--share", "0.1")


def test_a_damaged_file_is_said_by_status_and_mended_by_promote(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    StateFile(run.folder).path.write_text("{")
    with pytest.raises(RunFolderError, match="begins anew, with the chosen artifact live"):
        call(run, "status")
    assert call(run, "promote") == 0
    assert "live       fp16-" in capsys.readouterr().out
