"""The short form of benchmarks/serve_soak.py, and the wrong answers that its comparison has to find."""

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")
pytest.importorskip("psutil", reason="needs the server: pip install 'vitesse[serve]'")

from benchmark_scripts import benchmark
from serve.serving import make_run
from vitesse.run import Run, open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(make_run(tmp_path_factory.mktemp("soak") / "made"))


@pytest.fixture(scope="module")
def soaking() -> ModuleType:
    return benchmark("serve_soak")


@pytest.fixture(scope="module")
def comparing() -> ModuleType:
    return benchmark("serve_soak_cases")


def test_at_twice_the_capacity_every_accepted_request_is_answered_right(
    soaking: ModuleType, run: Run, tmp_path: Path
) -> None:
    found = soaking.soak(run.folder, tmp_path, seconds=3.0, capacity_s=1.5)
    answers = found["answers"]
    assert answers["compared"] == answers["by_status"]["200"] > 50
    assert (answers["wrong"], answers["swapped"], answers["broken"]) == (0, 0, 0)
    assert set(answers["by_status"]) <= {"200", "503", "504"}
    assert answers["worst"] <= found["tolerance"]
    assert {"JPEG", "binary"} <= set(answers["p99_ms_by_kind"])
    assert max(answers["p99_ms_by_kind"].values()) >= answers["p99_ms"]
    assert found["offered_per_s"] == 2 * found["capacity_per_s"]
    assert answers["p99_ms"] < 1e3 * 10  # waiting for a worker ends after 1 s; the rest is a loaded machine
    assert all(row["rss_mb"] > 10 for row in found["memory"]["samples"])


def kept(**changes: object) -> dict[str, dict[str, object]]:
    answers = {
        "by_status": {"200": 9, "503": 9},
        "wrong": 0,
        "swapped": 0,
        "broken": 0,
        "compared": 9,
        "p99_ms": 400.0,
    }
    memory = {"slope_mb_per_1000": 0.3}
    return {
        "answers": {name: changes.get(name, value) for name, value in answers.items()},
        "memory": {name: changes.get(name, value) for name, value in memory.items()},
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wrong": 2, "swapped": 1}, "2 wrong answers, 1 of them another request's"),
        ({"broken": 3}, "3 broken connections"),
        ({"by_status": {"200": 9, "500": 1}}, "answers of status 500"),
        ({"compared": 0, "p99_ms": None}, "no request was accepted"),
        ({"p99_ms": 1000.5}, "p99 of accepted requests 1000.5 ms, expected at most 1000"),
        ({"slope_mb_per_1000": 1.0}, "memory grew by 1.0 MB per 1,000 requests, expected less than 1"),
    ],
)
def test_what_a_soak_did_not_keep_is_said(soaking: ModuleType, changes: dict[str, object], said: str) -> None:
    assert soaking.faults(kept()) == soaking.faults(kept(slope_mb_per_1000=None)) == []
    assert soaking.faults(kept(**changes)) == [said]


def test_every_form_of_every_image_is_sent(comparing: ModuleType, run: Run) -> None:
    cases = comparing.cases_of(run)
    assert {case.kind for case in cases} == {"JPEG", "binary", "JSON"}
    assert len(cases) == 3 * comparing.IMAGES
    assert math.isclose(sum(case.weight for case in cases), 1.0)


def test_the_answer_of_another_request_is_found(comparing: ModuleType, run: Run) -> None:
    cases = comparing.cases_of(run)
    one = cases[0]
    other = next(case for case in cases if case.kind == one.kind and case.image != one.image)
    assert comparing.judge(one, cases, one.expected) == (0.0, False)
    off, swapped = comparing.judge(one, cases, other.expected)
    assert swapped
    assert comparing.Verdict(200, off).wrong


@pytest.mark.parametrize("change", ["a little off", "NaN", "too few"])
def test_a_wrong_answer_is_found(comparing: ModuleType, run: Run, change: str) -> None:
    cases = comparing.cases_of(run)
    right = cases[1].expected
    wrong = {"a little off": right + 0.002, "NaN": right * np.nan, "too few": right[:-1]}[change]
    off, swapped = comparing.judge(cases[1], cases, wrong)
    assert comparing.Verdict(200, off).wrong
    assert not swapped
    assert not comparing.Verdict(503, off).wrong


def test_images_whose_answers_are_alike_are_refused(comparing: ModuleType) -> None:
    expected = np.array([0.5, 0.25])
    cases = [comparing.Case("binary", number, b"", expected + 1e-4 * number, 1.0) for number in range(2)]
    with pytest.raises(ValueError, match="images 0 and 1 have the same answer as binary"):
        comparing.check_distinct(cases)


def test_boxes_that_change_places_at_equal_scores_are_the_same_answer(comparing: ModuleType) -> None:
    rows = [
        {"class": 1, "score": 0.5, "box_xyxy": [0, 0, 10, 10]},
        {"class": 2, "score": 0.5, "box_xyxy": [5, 5, 20, 20]},
    ]
    image = {"width": 20, "height": 10}
    found, turned = (comparing.numbers({"detections": some, "image": image}) for some in (rows, rows[::-1]))
    assert found.tolist() == turned.tolist()
    assert found[2:6].tolist() == [0, 0, 0.5, 1]


def test_the_slope_of_memory_is_a_thousand_requests(soaking: ModuleType) -> None:
    rows = [{"s": float(n), "requests": 50.0 * n, "rss_mb": 100 + 0.1 * n} for n in range(30)]
    assert math.isclose(soaking.slope(rows), 2.0)
    assert soaking.slope(rows[:19]) is None


def test_a_quantile_is_one_of_the_samples(soaking: ModuleType) -> None:
    assert soaking.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert soaking.quantile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert soaking.quantile([], 0.99) is None
