"""What `vitesse profile` is pointed at."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from vitesse.cli import main
from vitesse.errors import UsageError
from vitesse.profile.subject import pictures, subject
from vitesse.recipe import Recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fashion"
VIT = EXAMPLES / "vit_fashion.onnx"


def test_a_model_is_one_subject() -> None:
    with subject(str(VIT), Recipe()) as found:
        assert [(title, artifact.path) for title, artifact in found] == [("vit_fashion.onnx", VIT)]


def test_a_model_may_be_built_for_a_runtime_first() -> None:
    pytest.importorskip("openvino", reason="needs openvino: pip install 'vitesse[openvino]'")
    with subject(str(VIT), Recipe(), "openvino") as found:
        ((_, artifact),) = found
        assert artifact.backend == "openvino"


def test_a_target_for_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text("{}")
    with (
        pytest.raises(UsageError, match="a run's artifacts are built already"),
        subject(str(tmp_path), Recipe(), "x"),
    ):
        pass


def test_a_few_pictures_are_taken_from_a_folder_and_none_without_one() -> None:
    assert len(pictures(EXAMPLES / "vit")) == 8
    assert pictures(None) == ()


def test_the_command_prints_every_part_and_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(VIT), "--runs", "3", "--threads", "1"]) == 0
    table = capsys.readouterr().out
    assert main(["profile", str(VIT), "--runs", "3", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == "module"
    ((title, profile),) = found["profiles"].items()
    assert title == "vit_fashion.onnx"
    parts = [row["part"] for row in profile["rows"] if row["ms"]]
    assert {"patch embedding", "blocks", "heads"} <= set(parts)
    assert all(part in table for part in parts)


def test_the_command_takes_a_recipe_free_spec(tmp_path: Path) -> None:
    recipe = replace(Recipe(), preset="vit")
    with subject(str(VIT), recipe) as found:
        assert found[0][1].spec.preprocessing.mean == (0.5, 0.5, 0.5)


def test_operators_are_rewritten_first_where_that_is_asked_for(tmp_path: Path) -> None:
    before = onnx.load(VIT)
    with subject(str(VIT), replace(Recipe(), lower=("layer_norm",))) as found:
        after = onnx.load(found[0][1].path)
    counts = [
        [node.op_type for node in model.graph.node].count("LayerNormalization") for model in (before, after)
    ]
    assert counts == [13, 0]
    (tmp_path / "ledger.json").write_text("{}")
    refused = pytest.raises(UsageError, match="--lower layer_norm with the run")
    with refused, subject(str(tmp_path), replace(Recipe(), lower=("layer_norm",))):
        pass
