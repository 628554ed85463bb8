"""The table of parts on a terminal: what it shows, and that it fits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vitesse.profile.by_module import Kind, ModuleProfile, ModuleRow
from vitesse.profile.costs import Cost
from vitesse.profile.operators import OperatorProfile, OperatorTime
from vitesse.report.module_table import merged, print_modules, print_operators, summary

OPERATORS = OperatorProfile("onnxruntime", 1, 10, (OperatorTime("Conv", 30.0, 6.0, 0.6),), (), 10.0, 12.0)


def profile(factor: float = 1.0, *, lost: float = 0.0) -> ModuleProfile:
    cost = Cost(4e9, 2_000_000, 1, 1_234_567)
    rows = (
        ModuleRow(Kind.VITESSE, "read the image", "", 2.0, 0.2),
        ModuleRow(Kind.MODEL, "backbone", "", 6.0 * factor, 0.6, 1.5, cost),
        ModuleRow(Kind.MODEL, "decoder", "", 2.0 * factor, 0.2, 0.0, cost),
        ModuleRow(Kind.MODEL, "not attributed", "", lost, 0.0),
        ModuleRow(Kind.RUNTIME, "outside operators", "", 1.0, None),
    )
    matched = {"not attributed": lost}
    return ModuleProfile(
        "onnxruntime", 1, 10, 0, rows, 11.5, 9.5, 8.0, {"by its name": 7}, matched, OPERATORS
    )


def printed(*profiles: tuple[str, ModuleProfile], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_modules(profiles, console)
    return console.file.getvalue()


def test_one_profile_shows_time_share_copies_speed_and_parameters() -> None:
    text = printed(("original", profile()))
    line = next(line for line in text.splitlines() if line.startswith("backbone"))
    assert line.split() == ["backbone", "6.00", "60.0%", "1.50", "4.00", "666.7", "2.00", "1,234,567"]
    assert "not attributed  " not in text  # nothing was lost
    assert "8.00 ms without" in text


def test_lost_time_has_a_row_of_its_own_and_is_said() -> None:
    text = printed(("original", profile(lost=0.5)))
    assert next(line for line in text.splitlines() if line.startswith("not attributed")).split()[2] == "0.50"
    assert "not attributed 5.9% of the operators' time" in "\n".join(summary("original", profile(lost=0.5)))


def test_two_profiles_show_the_gain_of_each_part_but_none_of_the_profilers_own_time() -> None:
    text = printed(("original", profile()), ("chosen", profile(0.5)))
    lines = {line[:17].strip(): line for line in text.splitlines()}
    assert "2.00×" in lines["backbone"]
    assert "×" not in lines["outside operators"]


@pytest.mark.parametrize("width", [48, 60, 80, 120])
def test_the_table_fits_by_leaving_columns_out_never_by_cutting_names(width: int) -> None:
    for profiles in ([("original", profile())], [("original", profile()), ("chosen", profile(0.5))]):
        table = printed(*profiles, width=width).split("original:")[0]
        assert max(map(len, table.splitlines())) <= width
        assert "…" not in table
        assert "outside operators" in table


def test_operators_of_two_runtimes_share_a_table() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_operators([("original", OPERATORS)], console)
    text = console.file.getvalue()
    assert next(line for line in text.splitlines() if line.startswith("Conv")).split() == [
        "Conv",
        "6.00",
        "60.0%",
        "30",
    ]
    assert "operators 10.00 ms of 12.00 ms per call" in text


def test_rows_of_both_sides_are_merged_in_their_order() -> None:
    assert merged(["a", "c"], ["a", "b", "c", "d"]) == ["a", "b", "c", "d"]
    assert merged(["a", "b"], []) == ["a", "b"]
    assert merged([], ["x", "y"]) == ["x", "y"]
