"""The page's table of fast decoding is that of the committed results."""

import json

import pytest

pytest.importorskip("pycocotools", reason="needs the benchmarks' packages: pip install 'vitesse[optimize]'")
pytest.importorskip("starlette", reason="needs the server: pip install 'vitesse[serve]'")

from benchmark_scripts import benchmark

fast = benchmark("fast_decode")


def test_the_table_on_the_page_is_that_of_the_results() -> None:
    found, page = json.loads(fast.RESULTS.read_text()), fast.PAGE.read_text()
    assert fast.with_section(page, "fast-decode", fast.table(found)) == page
    found["results"][1]["ap"]["fast"] += 0.01
    assert fast.with_section(page, "fast-decode", fast.table(found)) != page


def test_a_picture_that_is_not_reduced_costs_nothing() -> None:
    for one in json.loads(fast.RESULTS.read_text())["results"]:
        same = one["ap"]["full"] == one["ap"]["fast"]
        assert same == (one["reduced"] == 0), one["model"]
