"""The published tables are those of the committed raw results."""

import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from benchmark_scripts import benchmark

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ledgers() -> ModuleType:
    return benchmark("ledgers")


def test_the_results_page_is_made_from_the_committed_ledgers(ledgers: ModuleType) -> None:
    assert (ROOT / "docs" / "results.md").read_text() == ledgers.results_page()


def test_the_readme_table_is_made_from_the_committed_ledgers(ledgers: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    assert ledgers.readme_with_table(readme) == readme
    assert "DETR (3.2 M" in readme


def test_every_published_gain_is_the_median_of_its_raw_samples(ledgers: ModuleType) -> None:
    for name in ledgers.CASES:
        ledger = json.loads((ledgers.RESULTS / f"{name}.json").read_text())
        samples = json.loads((ledgers.RESULTS / f"{name}.samples.json").read_text())["final"]["rounds"]
        chosen = "original" if ledger["chosen"] == 0 else ledger["rows"][ledger["chosen"]]["stage"]
        pairs = zip(samples["original"], samples[chosen], strict=True)
        gain = statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)
        assert ledger["final"]["gain"] == pytest.approx(gain, rel=1e-3), name


def test_known_accuracies_are_met_and_budgets_kept(ledgers: ModuleType) -> None:
    known = {
        "detr_fashion": 0.8259,
        "vit_fashion": 0.9345,
        "detr_fashion_pth": 0.8259,
        "vit_fashion_npz": 0.9345,
        "deimv2_atto_fp32": 0.3645,
    }
    for name, value in known.items():
        ledger = json.loads((ledgers.RESULTS / f"{name}.json").read_text())
        assert ledger["rows"][0]["accuracy"]["value"] == pytest.approx(value, abs=1e-3), name
    assert json.loads((ledgers.RESULTS / "deimv2_atto_fp32.json").read_text())["rows"][0]["accuracy"][
        "details"
    ]["AP50"] == pytest.approx(0.5038, abs=1e-3)
    for name in ledgers.CASES:
        ledger = json.loads((ledgers.RESULTS / f"{name}.json").read_text())
        row = ledger["rows"][ledger["chosen"]]
        assert row["verdict"] == "PASS"
        assert row["accuracy"]["drop"] <= ledger["max_drop"], name


def test_the_tables_of_distances_and_of_the_export_are_made_from_the_committed_results() -> None:
    originals, export = benchmark("originals_table"), benchmark("export_detr")
    for made, page in ((originals.page_with_tables, "models.md"), (export.page_with_table, "export.md")):
        text = (ROOT / "docs" / page).read_text()
        assert made(text) == text, page


@pytest.mark.parametrize("name", ["detr", "vit"])
def test_every_distance_to_an_original_is_inside_the_limit_and_a_changed_weight_was_seen(name: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "originals" / f"{name}.json").read_text())
    for case in found["cases"].values():
        assert all(value < 1e-4 for key, value in case.items() if key.startswith("max_abs")), case
        assert case.get("seen_when_changed", found.get("control_max_abs")) > 1e-3


def test_stripping_auxiliary_heads_changes_no_bit_and_the_export_is_cheap_enough() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "export_detr.json").read_text())["graphs"]
    aux, stripped = found["export --keep-aux"], found["export"]
    assert stripped["largest_difference_to_aux"] == 0
    assert stripped["nodes"] < aux["nodes"]
    assert (stripped["operators"]["Gather"], aux["operators"]["Gather"]) == (0, 2)
    for row in found.values():
        assert row.get("seconds", 0) < 120
        assert row.get("peak_mb", 0) < 6000
