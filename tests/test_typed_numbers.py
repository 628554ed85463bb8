"""A number on the command line that is out of its range is refused at once, and its option is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fashion import FOLDER
from vitesse import cli
from vitesse.cli import main

# What each command cannot do without; nothing of it is there.
GIVEN = {
    "bench": "vit.onnx",
    "check": "vit.plan",
    "distill": "--teacher t --student s --data d --out o --steps 1",
    "importance": "vit.npz --data d",
    "predict": "run a.png",
    "profile": "vit.onnx",
    "prune": "vit.npz --flops 0.7 --out o",
    "serve": "run",
    "tune": "vit.onnx",
}


@pytest.mark.parametrize(
    ("command", "option", "wrong", "expected"),
    [
        ("bench", "--device", "-1", "0 or more"),
        ("bench", "--threads", "-1", "0 or more"),
        ("bench", "--seconds", "0", "more than 0"),
        ("bench", "--seconds", "nan", "a number, more than 0"),
        ("bench", "--seconds", "inf", "a number, more than 0"),
        ("check", "--device", "-1", "0 or more"),
        ("distill", "--seed", "-1", "0 to 4294967295"),
        ("importance", "--images", "0", "1 or more"),
        ("predict", "--replicas", "0", "1 or more"),
        ("predict", "--threshold", "2", "0 to 1"),
        ("predict", "--threshold", "-0.1", "0 to 1"),
        ("predict", "--threshold", "nan", "a number, 0 to 1"),
        ("profile", "--depth", "-1", "0 or more"),
        ("profile", "--runs", "0", "1 or more"),
        ("profile", "--threads", "-1", "0 or more"),
        ("prune", "--decoder-layers", "0", "1 or more"),
        ("prune", "--flops", "0", "more than 0, at most 1"),
        ("prune", "--flops", "1.5", "more than 0, at most 1"),
        ("prune", "--images", "0", "1 or more"),
        ("prune", "--multiple", "0", "1 or more"),
        ("prune", "--seed", "4294967296", "0 to 4294967295"),
        ("serve", "--batch", "0", "1 or more"),
        ("serve", "--body", "0MiB", "more than 0"),
        ("serve", "--connections", "-1", "1 or more"),
        ("serve", "--device", "-1", "0 or more"),
        ("serve", "--drain-s", "-1", "0 or more"),
        ("serve", "--hang-s", "0", "more than 0"),
        ("serve", "--image-aspect", "0.5", "1 or more"),
        ("serve", "--port", "70000", "0 to 65535"),
        ("serve", "--queue", "-1", "0 or more"),
        ("serve", "--queue", "2.5", "a whole number, 0 or more"),
        ("serve", "--queue-s", "inf", "a number, more than 0"),
        ("serve", "--wait-ms", "-1", "0 or more"),
        ("serve", "--workers", "0", "1 or more"),
        ("tune", "--latency-bound", "0ms", "more than 0"),
        ("tune", "--max-batch", "0", "1 or more"),
        ("tune", "--max-streams", "many", "a whole number, 1 or more"),
        ("tune", "--memory", "0", "more than 0"),
        ("tune", "--seconds", "nan", "a number, more than 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_the_option_s_name(
    command: str, option: str, wrong: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, *GIVEN[command].split(), option, wrong])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"vitesse {command}: error: argument {option}: {wrong}: expected {expected}"


@pytest.mark.parametrize(
    ("command", "option", "text", "value"),
    [
        ("bench", "--device", "0", 0),
        ("bench", "--seconds", "0.06", 0.06),
        ("bench", "--threads", "0", 0),  # cores / streams
        ("distill", "--seed", "4294967295", 4294967295),
        ("predict", "--threshold", "0", 0.0),  # every box
        ("predict", "--threshold", "1", 1.0),
        ("profile", "--depth", "0", 0),
        ("profile", "--threads", "0", 0),  # every usable core
        ("prune", "--flops", "1", 1.0),  # nothing is cut
        ("serve", "--hang-s", "0.5", 0.5),
        ("serve", "--port", "0", 0),  # a free one
        ("serve", "--port", "65535", 65535),
        ("serve", "--queue", "0", 0),  # 8 × batch × N
        ("serve", "--wait-ms", "0", 0.0),  # for nobody
        ("tune", "--latency-bound", "16ms", 16.0),
        ("tune", "--memory", "8GiB", 8 * 2**30),
    ],
)
def test_what_is_at_the_end_of_a_range_or_has_a_meaning_of_its_own_is_taken(
    command: str, option: str, text: str, value: float
) -> None:
    options = cli.build_parser().parse_args([command, *GIVEN[command].split(), option, text])
    assert getattr(options, option.removeprefix("--").replace("-", "_")) == value


def test_what_is_written_wrong_says_so_where_a_range_is_checked_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "vit.onnx", "--memory", "much"])
    assert "argument --memory: 'much' is not a size in memory; write 4GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "export absent.npz -o out.onnx",
        "optimize absent.npz --data examples/fashion/vit --out OUT",
        "profile absent.npz",
        "quantize absent.npz --data examples/fashion/vit -o out.onnx",
    ],
)
def test_an_opset_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = command.replace("OUT", str(tmp_path)).replace("examples/fashion", str(FOLDER)).split()
    assert main([*given, "--opset", "17"]) == 2
    assert "vitesse: --opset 17\n  expected: 18 or more\n" in capsys.readouterr().err
