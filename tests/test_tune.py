"""`vitesse tune` on the CPU: what it finds, keeps in the run and says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmark.surfaces import Machine, saturating
from fashion import VIT, artifact_of
from test_bench import run as run  # the fixture
from vitesse.backends.protocol import LoadOptions
from vitesse.benchmark.grid_search import GridSearch, Limits, grid
from vitesse.benchmark.subject import fed_with
from vitesse.benchmark.tune import search_grid
from vitesse.benchmark.tune import tune as search
from vitesse.benchmark.watch import THROTTLED, Observed
from vitesse.cli import tune
from vitesse.cli.tune import chosen_of, setting, summary
from vitesse.errors import RunFolderError, UsageError
from vitesse.tuning import device_name, load_tuning

QUICK = ["--max-batch", "4", "--max-streams", "2", "--seconds", "0.03"]


def tune_with(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    tune.add(parser)
    options = parser.parse_args(list(arguments))
    options.command_line = ["vitesse", "tune", *arguments]
    return tune.run(options)


def test_settings_are_found_and_kept_in_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune_with(str(run), *QUICK) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "latency batch 1, 1 stream:" in said and "← " in said and "memory = " in said
    sha256 = artifact_of(VIT).sha256
    settings = load_tuning(run, "cpu", device_name(None), artifact_sha256=sha256)
    assert settings is not None and settings.latency is not None and settings.throughput is not None
    assert (settings.latency.batch, settings.latency.streams) == (1, 1)
    assert settings.throughput.batch in grid(4) and settings.throughput.streams in grid(2)
    assert settings.throughput.cuda_graph is None and settings.throughput.threads >= 1
    (kept,) = json.loads((run / "tuning.json").read_text())["entries"]
    assert kept["command"].startswith("vitesse tune ") and kept["environment"]["packages"]["numpy"]
    measured = {(point["batch"], point["streams"]) for point in kept["points"]}
    assert measured | {(one["batch"], one["streams"]) for one in kept["skipped"]} == {
        (batch, streams) for batch in grid(4) for streams in grid(2)
    }
    samples = json.loads((run / "samples" / "tune-cpu.json").read_text())["points"]
    assert all(point["rounds"][0]["host_ms"] for point in samples)


def test_a_file_is_tuned_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune_with(str(VIT), *QUICK, "--max-batch", "1", "--max-streams", "1") == 0
    assert "written to" not in capsys.readouterr().out


def test_a_bound_that_nothing_keeps_ends_with_1_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune_with(str(run), *QUICK, "--max-batch", "2", "--latency-bound", "0.0001ms") == 1
    assert "nothing measured keeps the limit: p99 within 0.0001 ms" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_damaged_file_of_settings_is_refused_before_anything_is_measured(run: Path) -> None:
    (run / "tuning.json").write_text("{")
    with pytest.raises(RunFolderError, match="tune again"):
        tune_with(str(run), *QUICK)


@pytest.mark.parametrize(
    ("limit", "option"),
    [
        ("most_batch", "--max-batch"),
        ("most_streams", "--max-streams"),
        ("seconds", "--seconds"),
        ("memory_mb", "--memory"),
        ("latency_bound_ms", "--latency-bound"),
    ],
)
def test_limits_that_allow_nothing_are_refused(limit: str, option: str) -> None:
    feeds = fed_with(artifact_of(VIT).spec, None)
    with pytest.raises(UsageError, match=f"{option} 0"):
        search(artifact_of(VIT), feeds, options=LoadOptions(), device=None, **{limit: 0})


def test_what_was_skipped_and_how_far_the_search_was_from_the_best_is_said() -> None:
    limits = Limits(latency_ms=20.0, memory_mb=2000.0)
    found = search_grid(GridSearch(Machine(saturating).measure, 64, 4, limits), limits, exhaustive=True)
    text = "\n".join(summary(found))
    assert "throughput: the search's choice is 0.0 % from the best of the whole grid" in text
    assert "p99 within 20 ms" in text and "memory within 2000 MB" in text
    assert "memory = 500 MB + streams × (100.0 MB + batch × 20.00 MB), off by at most 0 %" in text
    assert "64×4" in text.partition("not measured: ")[2]
    assert found.throughput is not None
    assert "throughput" in chosen_of(found)[found.throughput.pair]


def test_a_setting_found_on_a_throttled_machine_says_so() -> None:
    machine = Machine(saturating, watched=Observed(THROTTLED, "software power cap"))
    found = GridSearch(machine.measure, 4, 2, Limits()).run()
    kept = setting(found.throughput)
    assert kept is not None and kept.verdict == THROTTLED
