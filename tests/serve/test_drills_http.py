"""Rollbacks of a server in a process of its own under real clients: short forms, and long ones with -m long."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")
pytest.importorskip("pycocotools", reason="needs the benchmarks' packages: pip install 'vitesse[optimize]'")

from benchmark_scripts import FOLDER, benchmark
from fashion import DETR
from serve.serving import make_run

http = benchmark("serve_drills_http")
FOUND_AS = {"exceptions": "error", "NaN": "nonfinite", "slow": "slow", "boxes": "disagreement"}


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A server that compares every answer with the reference's, so that little traffic is enough."""
    run = make_run(tmp_path_factory.mktemp("drills") / "run", DETR)
    # A loaded machine makes single runs several times as slow; the fault is slower by far.
    with http.server(run, "--compared", "1", "--slow-factor", "3") as started:
        yield started


@pytest.mark.parametrize("fault", FOUND_AS)
def test_a_fault_is_rolled_back_without_a_lost_request(drilled: ModuleType, fault: str) -> None:
    done = http.drill(drilled, fault, http.pictures_of(8), clients=2, healthy=40)
    assert done.kind == FOUND_AS[fault], done.why
    assert done.lost == 0
    assert done.sent >= 90
    if fault in ("exceptions", "NaN"):  # found in the answer itself: the client sees the reference's
        assert done.wrong == 0
        assert done.by_the_reference >= 1
    if fault == "boxes":
        assert done.wrong >= 1, "answers before the rollback were off, and the clients can tell"


def test_without_a_fault_nothing_is_rolled_back_and_every_answer_is_right(drilled: ModuleType) -> None:
    images = list(http.pictures_of(8).values())
    with http.Clients(drilled.port, images, http.both_answers(drilled, images), 2) as asking:
        http.wait(lambda: len(asking.answers) >= 60, "60 requests are answered")
    assert drilled.rollback() is None
    assert {(one.status, one.served_by, one.right) for one in asking.answers} == {(200, drilled.live, True)}


def test_every_fault_has_a_committed_result_that_lost_nothing() -> None:
    kept = json.loads((FOLDER / "results" / "serve_drills_http.json").read_text())
    assert {one["fault"]: one["kind"] for one in kept["drills"]} == FOUND_AS
    assert [one["lost"] for one in kept["drills"]] == [0] * len(FOUND_AS)
    page = (FOLDER.parent / "docs" / "serving.md").read_text()
    assert http.with_section(page, "drills-http", http.table(kept)) == page, (
        "the table is not of these results"
    )


@pytest.mark.long
def test_the_long_form_with_the_servers_own_thresholds_loses_nothing(tmp_path: Path) -> None:
    with http.server(make_run(tmp_path / "run", DETR)) as started:
        for fault, kind in FOUND_AS.items():
            done = http.drill(started, fault, http.pictures_of(40), clients=4, healthy=http.HEALTHY)
            assert (done.kind, done.lost) == (kind, 0), done
