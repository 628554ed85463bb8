"""`vitesse profile`: one artifact or two, by module or by operator, as a table or as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from fashion import VIT, artifact_of, lowered
from vitesse.errors import UsageError
from vitesse.profile.calls import random_images
from vitesse.profile.command import Profiled, profile_target


def shown(found: Profiled, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    found.show(console)
    return console.file.getvalue()


def test_one_artifact_shows_time_costs_and_how_to_read_them() -> None:
    text = shown(profile_target([("original", artifact_of(VIT))], runs=2))
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "1,189,632" in lines["blocks"]
    assert "GFLOP/s" in text
    assert "the rows add up to" in text
    assert "without; " in text
    assert "random images of the model's size; give --data" in text


def test_before_and_after_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "lowered.onnx"
    onnx.save(lowered(VIT), path)
    pair = [("original", artifact_of(VIT)), ("chosen", artifact_of(path, like=VIT))]
    images = random_images(pair[0][1].spec)
    text = shown(profile_target(pair, images, runs=2))
    assert "original ms" in text
    assert "chosen ms" in text
    (blocks,) = (line for line in text.splitlines() if line.startswith("blocks"))
    assert "×" in blocks
    assert "random images" not in text


def test_by_operator_and_as_json() -> None:
    found = profile_target([("original", artifact_of(VIT))], by="op", runs=2)
    assert "LayerNormalization" in shown(found)
    raw = json.loads(json.dumps(found.to_json()))
    assert raw["by"] == "op"
    assert raw["profiles"]["original"]["operators"]
    modules = json.loads(json.dumps(profile_target([("original", artifact_of(VIT))], runs=1).to_json()))
    assert modules["profiles"]["original"]["rows"]


def test_wrong_requests_are_named() -> None:
    with pytest.raises(UsageError, match="--by layer") as caught:
        profile_target([("original", artifact_of(VIT))], by="layer")
    assert caught.value.expected == "module or op"
    with pytest.raises(UsageError, match="0 artifacts"):
        profile_target([])
