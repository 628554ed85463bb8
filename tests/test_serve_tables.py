"""The tables of benchmarks/serve_cost.py and serve_soak.py, from samples counted by hand."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from benchmark_scripts import benchmark


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return benchmark("serve_tables")


def turn(per_s: float, cpu_ms: float = 1.0) -> dict[str, Any]:
    return {
        "per_s": per_s, "cpu_ms": cpu_ms, "p50_ms": 7.04, "p99_ms": 18.0, "rss_mb": 190.4, "other_cores": 0.25,
    }  # fmt: skip


def cost(table: ModuleType, **changes: Any) -> dict[str, Any]:
    """Three rounds; the machine is half as fast in the second one."""
    samples = {
        table.TENSOR: [turn(1200, 0.8), turn(600, 1.0), turn(1200, 0.7)],
        table.JPEG: [turn(400, 3.5), turn(200, 4.5), turn(400, 3.0)],
        table.DECODE: [{"cpu_ms": 2.5}, {"cpu_ms": 4.0}, {"cpu_ms": 2.75}],
        table.BARE: [{"per_s": 40.0, "other_cores": None}, {"per_s": 20.0}, {"per_s": 50.0}],
        table.BEHIND: [turn(38.0), turn(20.0), turn(48.0)],
        "LitServe, 1 worker": [turn(400, 2.0), turn(300, 2.0), turn(300, 2.5)],
    }
    return {
        "environment": {"cpu": {"model": "a processor"}},
        "connections": 8,
        "failed": {"pytriton": "ended with 1: no | library"},
        "samples": samples,
        **changes,
    }


def soaked(**changes: Any) -> dict[str, Any]:
    return {
        "environment": {"cpu": {"model": "a processor"}},
        "seconds": 600,
        "overload": 2.0,
        "capacity_per_s": 50.0,
        "offered_per_s": 100.0,
        "tolerance": 0.001,
        "load_average": 2.04,
        "answers": {
            "by_status": {"503": 29_000, "200": 31_000}, "accepted_per_s": 51.7, "compared": 31_000, "wrong": 0,
            "swapped": 0, "worst": 2.5e-7, "broken": 0, "not_sent": 3, "p50_ms": 310.2, "p99_ms": 480.6,
            "most_ms": 700.0,
        },
        "memory": {"after_warm_up_mb": 300.0, "end_mb": 301.0, "slope_mb_per_1000": 0.0125},
        **changes,
    }  # fmt: skip


def test_what_a_jpeg_costs_beyond_decoding_is_taken_round_by_round(table: ModuleType) -> None:
    lines = table.cost_table(cost(table)["samples"]).splitlines()
    assert lines[2:] == [
        "| 1×3×224×224 float32 in binary, 602 KB | 0.80 [0.70 to 1.00] |",
        "| JPEG of 640×480, all of it | 3.50 [3.00 to 4.50] |",
        "| its decoding, resizing and normalising, without a server | 2.75 [2.50 to 4.00] |",
        "| JPEG, beyond that | 0.50 [0.25 to 1.00] |",  # the medians' difference would be 0.75
    ]


def test_servers_stand_fastest_first_with_the_ratio_of_each_round(table: ModuleType) -> None:
    found = cost(table)
    lines = table.server_table(found["samples"], found["failed"]).splitlines()
    assert lines[2:] == [
        "| Vitesse | 1200 [600 to 1200] | 7.0 / 18.0 | 0.80 [0.70 to 1.00] | 190 |  |",
        "| LitServe, 1 worker | 300 [300 to 400] | 7.0 / 18.0 | 2.00 [2.00 to 2.50] | 190 | "
        "3.0 [2.0 to 4.0] times as many |",
        "| pytriton | not run: ended with 1: no / library | | | | |",
    ]


def test_small_requests_have_a_table_of_their_own(table: ModuleType) -> None:
    found = cost(table)
    assert "12 KB" not in table.cost_tables(found), "results from before small requests were measured"
    found["samples"] |= {
        table.SMALL: [turn(2400, 0.4), turn(1200, 0.5), turn(2400, 0.3)],
        f"LitServe, 1 worker{table.OF_SMALL}": [turn(600, 1.5), turn(400, 1.5), turn(400, 2.0)],
    }
    assert "| 1×3×32×32 float32 in binary, 12 KB | 0.40 [0.30 to 0.50] |" in table.cost_table(
        found["samples"]
    )
    large = table.server_table(found["samples"], found["failed"])
    assert "1200 [600 to 1200]" in large and "2400" not in large
    lines = table.server_table(found["samples"], found["failed"], table.OF_SMALL).splitlines()
    assert lines[0].startswith("| null model, 12 KB | requests/s |")
    assert lines[2].startswith("| Vitesse | 2400 [1200 to 2400] |") and lines[2].endswith("|  |")
    assert lines[3].startswith("| LitServe, 1 worker | 400 [400 to 600] |")
    assert lines[3].endswith("| 4.0 [3.0 to 6.0] times as many |")


def test_jpegs_have_a_table_once_another_server_was_sent_one(table: ModuleType) -> None:
    found = cost(table)
    assert "null model, JPEG" not in table.cost_tables(found)
    found["samples"][f"LitServe, 1 worker{table.OF_JPEG}"] = [turn(100), turn(100), turn(200)]
    lines = table.server_table(found["samples"], {}, table.OF_JPEG).splitlines()
    assert lines[0].startswith("| null model, JPEG of 640×480 | requests/s |")
    assert lines[2].startswith("| Vitesse | 400 [200 to 400] |") and lines[2].endswith("|  |")
    assert lines[3].startswith("| LitServe, 1 worker | 100 [100 to 200] |")
    assert lines[3].endswith("| 2.0 [2.0 to 4.0] times as many |") and len(lines) == 4
    assert "LitServe, 1 worker | 300" in table.server_table(found["samples"], {}), (
        "the tensors' table is as before"
    )


def test_the_share_of_the_bare_session_is_that_of_the_rounds(table: ModuleType) -> None:
    said = table.share_line(cost(table)["samples"])
    assert "bare 40.0 [20.0 to 50.0] images/s, behind the server 38.0 [20.0 to 48.0]" in said
    assert said.endswith("96 % [95 to 100], round by round.")


def test_the_conditions_say_how_busy_the_machine_was(table: ModuleType) -> None:
    found = cost(table)
    assert "a processor, 3 rounds, 8 connections" in table.cost_tables(found)
    assert "other processes took 0.25 cores (median)" in table.conditions(found, found["samples"])
    for rows in found["samples"].values():
        for row in rows:
            row["other_cores"] = None
    assert "other processes took an unknown number of cores" in table.conditions(found, found["samples"])


def test_a_soak_names_every_status_wrong_answers_and_the_slope(table: ModuleType) -> None:
    said = table.soak_table(soaked())
    assert said.startswith("a processor, load average 2.0 at the end.")
    assert "| duration, offered | 10.0 min, 100 requests/s (2 × the measured 50) |" in said
    assert "| answers | 31,000 × 200, 29,000 × 503; 0 broken connections, 3 not sent by the client |" in said
    assert "| accepted | 52/s, p50 310 ms, p99 481 ms, slowest 700 ms |" in said
    assert "| 31,000; wrong 0, of them another request's answer 0 |" in said
    assert "301 MB at the end: +0.013 MB per 1,000 requests |" in said


def test_a_soak_that_was_too_short_for_a_slope_says_so(table: ModuleType) -> None:
    memory = {"after_warm_up_mb": 300.0, "end_mb": 301.0, "slope_mb_per_1000": None}
    assert "at the end: too short for a slope |" in table.soak_table(soaked(memory=memory))


def test_the_page_is_made_from_the_committed_results(table: ModuleType) -> None:
    page = table.PAGE.read_text()
    assert page == table.page_with_tables(page), "run `python benchmarks/serve_cost.py --table`"
    with pytest.raises(ValueError, match="put both where the tables shall stand"):
        table.page_with_tables(page.replace("<!-- serve_soak:end -->", ""))
