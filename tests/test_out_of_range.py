"""A number that cannot be meant is refused with the option that it was typed for, not the field that it sets."""

from __future__ import annotations

import argparse

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("torch_pruning", reason="needs torch_pruning: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning_fabric: pip install 'vitesse[compress]'")

from vitesse import cli  # noqa: E402
from vitesse.cli import main  # noqa: E402
from vitesse.errors import OutOfRange, UsageError  # noqa: E402

PRUNE = ("prune", "vit.npz", "--flops", "0.7", "--out", "out")
DISTILL = ("distill", "--teacher", "vit.npz", "--student", "like:hidden=8", "--data", "train", "--out", "out")


@pytest.mark.parametrize("command", [PRUNE, DISTILL])
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--batch", "0", "1 image or more"),
        ("--rate", "0.0", "a learning rate above 0"),
        ("--rate", "nan", "a learning rate above 0"),
        ("--steps", "0", "1 step or more"),
    ],
)
def test_what_cannot_be_learnt_by_is_refused_by_the_option_s_name(
    command: tuple[str, ...], option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = () if option == "--steps" else ("--steps", "1")
    assert main([*command, *steps, option, value]) == 2
    assert capsys.readouterr().err == f"vitesse: {option} is {value}\n  expected: {expected}\n"


def test_a_temperature_is_refused_by_the_option_s_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DISTILL, "--steps", "1", "--temperature", "0"]) == 2
    assert capsys.readouterr().err.startswith("vitesse: --temperature is 0.0\n  expected: a number above 0")


def test_a_field_that_no_option_was_given_for_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("batch", "warmup"):

        def refuse(options: argparse.Namespace, name: str = name) -> int:
            raise OutOfRange(name, 0, expected="more")

        monkeypatch.setattr(cli.prune, "run", refuse)
        assert main(list(PRUNE)) == 2
        assert capsys.readouterr().err == f"vitesse: {name} is 0\n  expected: more\n"


def test_it_is_wrong_usage_and_says_what_came() -> None:
    error = OutOfRange("decoder_layers", 0, expected="1 to 6")
    assert isinstance(error, UsageError) and error.exit_code == 2
    assert (error.name, error.value, error.what) == ("decoder_layers", 0, "decoder_layers is 0")
