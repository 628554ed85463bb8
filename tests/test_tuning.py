"""Settings are found again for the same artifact on the same device only, and otherwise it is said why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vitesse.errors import RunFolderError
from vitesse.tuning import Setting, Settings, Tuned, check_readable, device_name, load_tuning, save_tuning

SETTINGS = Settings(Setting(1, 1, 2, None, 90.0, 11.5, 300.0, "clean"), Setting(16, 2, 1, None, 400.0, 80.0))
TUNED = Tuned(
    "cpu",
    "EPYC, 2 cores",
    "a" * 64,
    SETTINGS,
    {"latency_ms": 16.0},
    [{"batch": 1}],
    command="vitesse tune run",
)


def loaded(run: Path, target: str = "cpu", device: str = "EPYC, 2 cores", sha256: str = "a" * 64) -> object:
    said: list[str] = []
    found = load_tuning(run, target, device, artifact_sha256=sha256, on_stale=said.append)
    assert (found is None) == bool(said)
    return said[0] if said else found


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert save_tuning(tmp_path, TUNED) == tmp_path / "tuning.json"
    assert loaded(tmp_path) == SETTINGS


def test_a_setting_that_no_point_kept_stays_none(tmp_path: Path) -> None:
    save_tuning(tmp_path, replace(TUNED, settings=replace(SETTINGS, latency=None)))
    assert loaded(tmp_path) == Settings(None, SETTINGS.throughput)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            {"sha256": "b" * 64},
            "tuned with the artifact aaaaaaaaaaaa…, this is bbbbbbbbbbbb…: run `vitesse tune",
        ),
        ({"device": "H100"}, "tuned for EPYC, 2 cores, not for H100"),
        ({"target": "cuda"}, "not tuned for cuda: run `vitesse tune"),
    ],
)
def test_settings_for_something_else_are_none_and_it_is_said_why(
    tmp_path: Path, asked: dict[str, str], why: str
) -> None:
    save_tuning(tmp_path, TUNED)
    assert str(loaded(tmp_path, **asked)).startswith(why)


def test_a_run_that_was_never_tuned_says_how_to(tmp_path: Path) -> None:
    assert str(loaded(tmp_path)) == f"not tuned for cpu: run `vitesse tune {tmp_path} --target cpu`"


def test_targets_and_devices_lie_side_by_side_and_a_new_tuning_replaces_its_own(tmp_path: Path) -> None:
    other = replace(SETTINGS, throughput=Setting(64, 4, cuda_graph=True))
    save_tuning(tmp_path, TUNED)
    save_tuning(tmp_path, replace(TUNED, target="cuda", device="H100", settings=other))
    save_tuning(tmp_path, replace(TUNED, artifact_sha256="c" * 64))
    assert loaded(tmp_path, sha256="c" * 64) == SETTINGS
    assert loaded(tmp_path, target="cuda", device="H100") == other
    assert len(json.loads((tmp_path / "tuning.json").read_text())["entries"]) == 2


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": 2, "entries": []}', '{"schema": 1, "entries": [{"target": "cpu"}]}']
)
def test_a_damaged_file_is_no_settings_and_is_refused_before_measuring(tmp_path: Path, content: str) -> None:
    (tmp_path / "tuning.json").write_text(content)
    assert "cannot be read" in str(loaded(tmp_path))
    with pytest.raises(RunFolderError, match=r"delete .* and tune again"):
        check_readable(tmp_path)
    with pytest.raises(RunFolderError):
        save_tuning(tmp_path, TUNED)
    assert (tmp_path / "tuning.json").read_text() == content


def test_the_processor_is_named_with_its_cores() -> None:
    assert device_name(None).endswith((" core", " cores"))
