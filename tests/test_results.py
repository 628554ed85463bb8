"""The published tables are those of the committed raw results."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ledgers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ledgers", ROOT / "benchmarks" / "ledgers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses looks its module up while the classes are made
    import sys

    sys.modules["ledgers"] = module
    spec.loader.exec_module(module)
    return module


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
    known = {"detr_fashion": 0.8259, "vit_fashion": 0.9345, "deimv2_atto_fp32": 0.3645}
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
