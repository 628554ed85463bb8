"""What `--spec` and `--set` say is read alike by every command that takes a checkpoint; a wrong spec is found out."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("torch_pruning", reason="needs torch_pruning: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning_fabric: pip install 'vitesse[compress]'")

from compress.distillation.networks import vit
from fashion import FOLDER
from training.data.training_folders import class_folders
from vitesse.cli import distill, prune
from vitesse.compress.pruning import job as pruning
from vitesse.errors import DataError
from vitesse.sources.source import Given
from vitesse.sources.spec_file import given_from, read_spec_file
from vitesse.sources.trainable import save_trainable

SPEC = FOLDER / "detr.toml"


def test_spec_and_settings_are_read_alike_by_every_command() -> None:
    said = ["--spec", str(SPEC), "--set", "heads=8", "--out", "out", "--steps", "1"]
    expected = Given(read_spec_file(SPEC), {"heads": "8"})
    parser = argparse.ArgumentParser()
    prune.add(parser)
    assert prune.asked(parser.parse_args(["detr.pth", "--flops", "0.7", *said])).given == expected
    parser = argparse.ArgumentParser()
    distill.add(parser)
    student = ["--teacher", "detr.pth", "--student", "cut:decoder_layers=3", "--data", "train"]
    assert distill.asked(parser.parse_args([*student, *said]))[0].given == expected
    assert given_from(str(SPEC), [("heads", "8")]) == expected
    assert given_from(None, None) == Given()


def test_an_original_that_guesses_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_trainable(vit(), tmp_path / "model")
    images = class_folders(tmp_path / "images")
    monkeypatch.setattr(pruning, "points", lambda *_: 33.0)
    with pytest.raises(DataError, match=r"the original scores 33\.0 points") as caught:
        pruning.prune_to(tmp_path / "out", pruning.Job(str(model), 0.7, val=images, method="l1"))
    assert "give --spec" in caught.value.fix
    assert not (tmp_path / "out").exists()
