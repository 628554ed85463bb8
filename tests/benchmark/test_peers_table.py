"""The tables of benchmarks/peers.py, from raw samples counted by hand."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from benchmark_scripts import benchmark


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return benchmark("peers_table")


def found(table: ModuleType, **changes: Any) -> dict[str, Any]:
    """Seven rounds of two calls: the baseline takes 12 ms, ours 4 ms, torch 24 ms."""
    times = {table.BASELINE: 12.0, table.OURS: 4.0, "torch eager": 24.0}
    operators = {
        table.BASELINE: {"operators": [row("MatMul", 8.0), row("Add", 3.0)], "operators_ms": 11.0},
        table.OURS: {"operators": [row("Gemm", 3.0), row("Add", 0.5)], "operators_ms": 3.5},
    }
    return {
        "model": "a model",
        "environment": {"cpu": {"model": "a processor"}},
        "threads": 2,
        "chosen": "int8",
        "runtime": "openvino",
        "failed": {},
        "latency": {
            "rounds": {name: [[ms, ms]] * 7 for name, ms in times.items()},
            "foreign_cores": 0.031,
            "settled": 0.995,
        },
        "operators": operators,
        **changes,
    }


def row(operator: str, ms: float) -> dict[str, Any]:
    return {"operator": operator, "ms": ms}


def lines(text: str) -> list[str]:
    return text.splitlines()[2:]


def test_candidates_stand_fastest_first_with_both_ratios(table: ModuleType) -> None:
    assert lines(table.peer_table(found(table))) == [
        "| **Vitesse** | 4.0 | 3.00 (3.00 to 3.00) | 1.00 |",
        f"| {table.BASELINE} | 12.0 | 1.00 (1.00 to 1.00) | 0.33 |",
        "| torch eager | 24.0 | 0.50 (0.50 to 0.50) | 0.17 |",
    ]


def test_the_ratio_is_that_of_the_rounds_and_not_of_the_medians_over_all(table: ModuleType) -> None:
    data = found(table)
    # The machine slows down sevenfold; round by round, torch takes twice as long throughout.
    data["latency"]["rounds"] = {
        table.BASELINE: [[1.0 * n] for n in range(1, 8)],
        table.OURS: [[1.0 * n] for n in range(1, 8)],
        "torch eager": [[2.0 * n] for n in range(1, 8)],
    }
    assert lines(table.peer_table(data))[-1] == "| torch eager | 8.0 | 0.50 (0.50 to 0.50) | 0.50 |"


def test_a_candidate_that_failed_is_named_with_the_reason(table: ModuleType) -> None:
    data = found(table, failed={"torch.compile": "RuntimeError: no | compiler"})
    assert lines(table.peer_table(data))[-1] == "| torch.compile | failed | RuntimeError: no \\| compiler | |"


def test_operators_of_both_stand_side_by_side_the_largest_first(table: ModuleType) -> None:
    assert lines(table.operator_table(found(table))) == [
        "| MatMul | 8.0 | – |",
        "| Add | 3.0 | 0.5 |",
        "| Gemm | – | 3.0 |",
        "| all | 11.0 | 3.5 |",
    ]


def test_beyond_eight_operators_the_rest_is_one_line(table: ModuleType) -> None:
    data = found(table)
    many = [row(f"Op{n}", 10.0 - n) for n in range(10)]
    data["operators"][table.BASELINE] = {"operators": many, "operators_ms": 55.0}
    data["operators"][table.OURS] = {"operators": [row("Op9", 0.25)], "operators_ms": 0.25}
    shown = lines(table.operator_table(data))
    assert shown[7:] == ["| Op7 | 3.0 | – |", "| 2 others | 3.0 | 0.2 |", "| all | 55.0 | 0.2 |"]


def test_a_runtime_without_operator_times_is_said_so(table: ModuleType) -> None:
    data = found(table)
    data["operators"][table.OURS] = "it does not tell"
    assert table.operator_table(data) == "No operator times of Vitesse: it does not tell."


def test_the_conditions_stand_above(table: ModuleType) -> None:
    text = table.tables(found(table))
    assert text.startswith("### a model\n")
    assert "a processor, 2 threads, batch 1; other processes took 0.03 cores" in text
    assert "Vitesse chose int8 on openvino." in text
    busy = found(table)
    busy["latency"]["foreign_cores"] = None
    assert "other processes took unknown" in table.tables(busy)


def test_the_page_is_made_from_the_committed_results(table: ModuleType) -> None:
    page = table.PAGE.read_text()
    assert page == table.page_with_tables(page), "run `python benchmarks/peers.py --table`"
    assert page != table.page_with_tables(page.replace(table.END, "")), (
        "a page without marks is not taken for equal"
    )
