"""What diagnose takes, refuses, prints and gives as JSON."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

import fusing
import tiny_graphs
from diagnose.changes import after, changed
from vitesse.diagnose.command import diagnose
from vitesse.errors import SpecError, UsageError
from vitesse.metadata import write_spec


def _saved(folder: Path, model: onnx.ModelProto, name: str = "model.onnx", *, spec: bool = True) -> Path:
    onnx.save(write_spec(model, tiny_graphs.detector_spec()) if spec else model, folder / name)
    return folder / name


def test_without_images_random_ones_are_fed_and_that_is_said(tmp_path: Path) -> None:
    path = _saved(tmp_path, tiny_graphs.detector())
    found = diagnose(path, path, images=3)
    assert (found.healthy, found.images) == (True, 3)
    assert any("random images" in note for note in found.notes)


def test_without_an_original_nan_is_found_and_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    broken = changed(tiny_graphs.detector, after("mixed", "Sqrt"))()
    found = diagnose(_saved(tmp_path, broken), images=2)
    assert not found.healthy and found.symptom is not None
    assert (found.symptom.kind, found.symptom.tensor, found.symptom.operator) == ("nan", "mixed", "Sqrt")
    assert found.cause == "unknown"
    assert "cause        unknown" in "\n".join(found.lines())
    assert any("give --against" in note for note in found.notes)


def test_without_an_original_a_tensor_that_stands_still_is_found(tmp_path: Path) -> None:
    broken = changed(tiny_graphs.detector, after("mixed", "Mul", np.float32(0)))()
    found = diagnose(_saved(tmp_path, broken), images=2)
    assert found.symptom is not None
    assert (found.symptom.kind, found.symptom.tensor) == ("zeros", "mixed")


def test_a_spec_given_by_hand_is_used(tmp_path: Path) -> None:
    path = _saved(tmp_path, tiny_graphs.detector(), spec=False)
    assert diagnose(path, path, spec=tiny_graphs.detector_spec(), images=2).healthy


def test_images_without_a_spec_are_refused_in_words(tmp_path: Path, pictures: Path) -> None:
    path = _saved(tmp_path, tiny_graphs.detector(), spec=False)
    with pytest.raises(SpecError) as refusal:
        diagnose(path, path, pictures)
    assert str(refusal.value) == (
        "nothing says how these images become the model's input\n"
        "  expected: a spec in the model's metadata, or one that is given\n"
        "  next step: give --preset NAME or --spec spec.toml"
    )


def test_without_any_spec_random_numbers_of_the_graphs_shape_are_fed(tmp_path: Path) -> None:
    path = _saved(tmp_path, tiny_graphs.detector(), spec=False)
    assert diagnose(path, path, images=2).healthy
    broken = changed(tiny_graphs.detector, after("hidden", "Mul", np.float32(2)))()
    found = diagnose(_saved(tmp_path, broken, "broken.onnx", spec=False), path, images=2)
    assert found.symptom is not None and found.symptom.tensor == "hidden"


def test_an_input_of_unknown_size_without_a_spec_is_refused_in_words(tmp_path: Path) -> None:
    model = fusing.graph("y = Relu(x)", "float[N,3,H,W] x", "float[N,3,H,W] y")
    with pytest.raises(SpecError, match="nothing says how large images are"):
        diagnose(_saved(tmp_path, model, spec=False))


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--images 0"):
        diagnose(_saved(tmp_path, tiny_graphs.detector()), images=0)


def test_a_graph_that_does_not_run_is_a_symptom(tmp_path: Path) -> None:
    original = _saved(tmp_path, tiny_graphs.detector(), "original.onnx")
    broken = tiny_graphs.detector()
    tiny_graphs.set_weight(broken, "mix", np.ones((3, 3), np.float32))
    found = diagnose(_saved(tmp_path, broken), original, images=2)
    assert found.symptom is not None and found.symptom.kind == "refused"
    assert "does not run the graph" in found.outputs[0]


def test_a_graph_that_answers_by_chance_is_found(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    tiny_graphs.insert_after(model, "mixed", "Add", "noise")
    noise = helper.make_node(
        "RandomNormal", [], ["noise"], "noise", shape=[1, 64, 16], dtype=TensorProto.FLOAT
    )
    model.graph.node.insert(0, noise)
    found = diagnose(_saved(tmp_path, model), images=1)
    assert found.symptom is not None and found.symptom.kind == "random"


def test_everything_is_there_as_json_and_in_print(tmp_path: Path) -> None:
    original = _saved(tmp_path, tiny_graphs.detector(), "original.onnx")
    broken = changed(tiny_graphs.detector, after("mixed", "Div", np.float32(0)))()
    found = diagnose(_saved(tmp_path, broken), original, images=2)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (plain["healthy"], plain["cause"], plain["images"]) == (False, "replaced_operator", 2)
    assert plain["symptom"]["tensor"] == "mixed"
    assert plain["symptom"]["candidate"] == ["-inf", "inf"]
    console = Console(width=200, record=True, file=StringIO())
    found.show(console)
    text = console.export_text()
    assert "first wrong  `mixed` (made by Div node `mixed_div`) overflows" in text
    assert "cause        a rewrite changed what is computed [replaced_operator, possible]" in text
