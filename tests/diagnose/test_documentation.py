from __future__ import annotations

import shlex

import pytest

from diagnose.documented import PAGE, between, example, table
from vitesse.cli import build_parser
from vitesse.diagnose.causes import CAUSES
from vitesse.diagnose.rules import Cause


def test_the_example_is_what_is_printed() -> None:
    assert between(PAGE.read_text(), "example") == example()


def test_the_table_of_causes_is_the_registry() -> None:
    assert between(PAGE.read_text(), "causes") == table()


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.id)
def test_every_remedy_is_a_command_that_exists(cause: Cause) -> None:
    """Everything before three spaces is the command; argparse ends the process on an unknown option."""
    command = cause.remedy.format(model="m.onnx", against="o.onnx", data="d").partition("   ")[0]
    program, *arguments = shlex.split(command)
    assert program == "vitesse"
    assert callable(build_parser().parse_args(arguments).run)


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["optimize", "m.onnx", "--data", "d", "--mend"])
