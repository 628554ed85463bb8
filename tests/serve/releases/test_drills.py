"""A release that begins to misbehave is taken back, and its clients notice as little as can be."""

import json

import pytest

from benchmark_scripts import FOLDER, benchmark

drills = benchmark("serve_drills")

FOUND_AS = {
    "exceptions": "error",
    "NaN": "nonfinite",
    "5 times as slow": "slow",
    "boxes a tenth of their width off": "disagreement",
    "scores too low": "disagreement",
}


@pytest.mark.parametrize("fault", FOUND_AS)
def test_a_fault_is_found_by_its_kind_and_no_request_is_lost(fault: str) -> None:
    done = drills.drill(fault, drills.FAULTS[fault])
    assert done.kind == FOUND_AS[fault]
    assert done.lost == 0
    assert done.requests_until_rollback < 300
    if fault in ("exceptions", "NaN"):  # found in the answer itself: the client sees the reference's
        assert (done.wrong, done.by_the_reference) == (0, done.requests_until_rollback)


def test_a_healthy_release_is_not_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drills, "MOST", 1000)
    with pytest.raises(SystemExit, match="'nothing' was never rolled back"):
        drills.drill("nothing", drills.NONE)


def test_the_committed_results_are_those_of_this_code() -> None:
    kept = json.loads((FOLDER / "results" / "serve_drills.json").read_text())
    again = [vars(drills.drill(name, fault)) for name, fault in drills.FAULTS.items()]
    assert kept["drills"] == again
    assert all(f"| {one['fault']} |" in drills.table([drills.Drill(**one)]) for one in kept["drills"])
