import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from fashion import FOLDER, VIT
from vitesse import cli
from vitesse.cli import main
from vitesse.cli.optimize import recipe_from
from vitesse.cli.values import axes, gridsample, height_width, milliseconds, setting
from vitesse.recipe import SourceOptions


def test_help_answers_fast_enough_to_be_asked_often() -> None:
    def once(*arguments: str) -> float:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime

    # The interpreter's own start is not ours: what help adds to it must stay small. In processor time, because other
    # processes take their share of the clock's.
    bare = min(once("-c", "pass") for _ in range(5))
    full = min(once("-m", "vitesse", "--help") for _ in range(5))
    assert full - bare < 0.15


@pytest.mark.parametrize(
    ("text", "expected"), [("16ms", 16.0), ("0.016s", 16.0), ("16", 16.0), (" 2.5 ms ", 2.5)]
)
def test_a_time_is_read_with_its_unit(text: str, expected: float) -> None:
    assert milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["16 min", "fast", "-3ms", ""])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 16ms or"):
        milliseconds(text)


def test_a_missing_model_ends_with_code_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["optimize", str(tmp_path / "absent.onnx"), "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "absent.onnx" in said
    assert "Traceback" not in said


def test_a_missing_run_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no ledger at" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "x.jpg"]) == 2


def test_draw_takes_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "a.jpg", "b.jpg", "--draw", "out.png"]) == 2
    assert "call predict once per image" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.doctor, "run", interrupted)
    assert main(["doctor"]) == 130
    assert "go on from the finished steps" in capsys.readouterr().err


def test_a_missing_extra_ends_with_code_3_and_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(options: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(cli.doctor, "run", absent)
    assert main(["doctor"]) == 3
    assert "pip install 'vitesse[optimize]'" in capsys.readouterr().err


def test_doctor_lists_every_runtime_with_version_or_pip_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "yes  onnxruntime" in said
    assert "openvino" in said


def test_the_command_line_wins_over_the_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('target = "openvino"\nmax_drop = 2.0\n[data]\nlimit = 7\n')
    options = cli.build_parser().parse_args(
        [
            "optimize",
            "m.onnx",
            "--data",
            "d",
            "--recipe",
            str(file),
            "--max-drop",
            "1",
            "--latency-budget",
            "16ms",
        ]
    )
    recipe = recipe_from(options)
    assert (recipe.target, recipe.max_drop, recipe.latency_budget_ms) == ("openvino", 1.0, 16.0)
    assert recipe.data.limit == 7


def test_sizes_axes_and_settings_are_read_as_people_write_them() -> None:
    assert height_width("800x1333") == height_width("800×1333") == [800, 1333]
    assert axes("batch, height,width") == ["batch", "height", "width"]
    assert axes("none") == []
    assert setting("heads=8") == ("heads", "8")
    assert gridsample("gather") == ["grid_sample"]


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (height_width, "800", "write HEIGHTxWIDTH"),
        (height_width, "0.5x3", "write HEIGHTxWIDTH"),
        (setting, "heads", "write KEY=VALUE"),
        (setting, "=8", "write KEY=VALUE"),
        (gridsample, "keep", "write gather"),
    ],
)
def test_what_is_written_otherwise_is_refused_with_an_example(
    read: Callable[[str], object], text: str, words: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        read(text)


def test_options_about_the_model_reach_the_recipe() -> None:
    parser = cli.build_parser()
    text = "optimize m.pth --data d --weights w --size 64x96 --dynamic none --opset 19 --set heads=4"
    options = parser.parse_args([*text.split(), "--set", "dilation=true", "--gridsample", "gather"])
    recipe = recipe_from(options)
    assert recipe.lower == ("grid_sample",)
    assert recipe.source == SourceOptions(
        "w", opset=19, dynamic=(), size=(64, 96), settings={"heads": "4", "dilation": "true"}
    )
    assert recipe_from(parser.parse_args(["optimize", "m.pth", "--data", "d"])).source == SourceOptions()


def test_export_refuses_a_name_that_is_not_onnx(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", "model.onnx", "-o", str(tmp_path / "out.bin")]) == 2
    assert "expected: a path that ends in .onnx" in capsys.readouterr().err


def test_a_preset_beside_a_source_that_knows_itself_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", "x.npz", "--preset", "vit", "-o", str(tmp_path / "out.onnx")]) == 2
    assert "give --spec spec.toml to feed it otherwise" in capsys.readouterr().err


def test_quantize_writes_a_file_for_every_runtime_and_names_the_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vit.int8.onnx"
    command = [
        "quantize",
        str(VIT),
        "--data",
        str(FOLDER / "vit"),
        "--method",
        "entropy",
        "--calib-images",
        "8",
    ]
    assert main([*command, "--keep", "blocks.0.mlp", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Linear to INT8: 34" in said
    assert "blocks: blocks.0.attention, blocks.0.mlp" in said
    model = onnx.load(out)
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert zeros
    for name in zeros:
        assert stored[name].data_type == onnx.TensorProto.INT8
        assert not onnx.numpy_helper.to_array(stored[name]).any()


def test_quantize_refuses_what_it_cannot_do_and_leaves_an_older_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "older.onnx"
    out.write_text("precious")
    command = ["quantize", str(VIT), "--data", str(FOLDER / "vit"), "--calib-images", "4", "-o", str(out)]
    assert main([*command, "--keep", "neck"]) == 2
    assert "no block 'neck' to keep" in capsys.readouterr().err
    assert main([*command, "--method", "guess"]) == 2
    assert "int8.method = 'guess'" in capsys.readouterr().err
    assert out.read_text() == "precious"


def test_diagnose_ends_with_0_for_a_healthy_model_and_1_for_a_broken_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--against", str(VIT), "--data", str(FOLDER / "vit" / "val"), "--images", "2"]
    assert main(["diagnose", str(VIT), *arguments]) == 0
    model = onnx.load(VIT)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    epsilon = next(entry for entry in norm.attribute if entry.name == "epsilon")
    epsilon.f = 0.005
    onnx.save(model, tmp_path / "broken.onnx")
    capsys.readouterr()
    assert main(["diagnose", str(tmp_path / "broken.onnx"), *arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cause"] == "epsilon"
