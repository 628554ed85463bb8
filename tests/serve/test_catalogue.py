"""The catalogue of bad requests, pictures and faults against a running server, and a good request right after each."""

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve import catalogue_faults, catalogue_pictures, pictures
from serve.catalogue import CASES, INFER, Case
from serve.catalogue_references import ELSEWHERE, NOT_HERE
from serve.serving import PICTURES, Live, binary_body, running, service_of, tensor, with_limits
from vitesse.serve.limits import MIB

ROOT = Path(__file__).resolve().parents[2]
GOOD, LENGTH = binary_body(tensor())


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    limits = with_limits(body_bytes=4 * MIB, inflated_bytes=8 * MIB)
    with service_of(limits=limits) as service, running(service) as server:
        yield server


def a_good_request_is_answered(live: Live) -> None:
    assert live.ask("POST", INFER, GOOD, Inference_Header_Content_Length=LENGTH).status == 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number} {case.what}")
def test_a_bad_request_gets_its_answer_and_the_next_good_one_too(live: Live, case: Case) -> None:
    came = case.send(live)
    assert came.status in case.status, came.body
    if came.status >= 400:
        assert set(came.json) == {"error", "code"}
        assert case.text in came.json["error"]
    a_good_request_is_answered(live)


@pytest.fixture(scope="module", params=[False, True], ids=["own threads", "workers"])
def decoding(request: pytest.FixtureRequest) -> Iterator[Live]:
    """A server that decodes pictures in threads of their own, and one whose workers do."""
    with service_of(decode_in_worker=request.param) as service, running(service) as server:
        yield server


@pytest.mark.parametrize("name", catalogue_pictures.bad())
def test_a_bad_picture_gets_its_answer_and_the_next_good_one_too(decoding: Live, name: str) -> None:
    bad = catalogue_pictures.bad()[name]
    came = decoding.ask("POST", "/v1/classify", bad.body, Content_Type="image/jpeg")
    assert came.status in bad.status, came.body
    assert set(came.json) == {"error", "code"}
    assert bad.text in came.json["error"]
    a_good_request_is_answered(decoding)


@pytest.mark.parametrize("name", catalogue_pictures.good())
def test_a_picture_is_answered_as_a_plain_one_of_what_it_shows(decoding: Live, name: str) -> None:
    good = catalogue_pictures.good()[name]
    came, plain = (decoding.ask("POST", "/v1/classify", body) for body in (good.body, good.shown))
    assert came.status == plain.status == 200, came.body
    assert (came.json["classes"], came.json["image"]) == (plain.json["classes"], plain.json["image"])


def test_other_pictures_are_answered_otherwise(decoding: Live) -> None:
    scores = {
        decoding.ask("POST", "/v1/classify", body).json["classes"][0]["score"]
        for body in (
            pictures.encoded(catalogue_pictures.SCENE),
            pictures.encoded(255 - catalogue_pictures.SCENE),
        )
    }
    assert len(scores) == 2, "equal answers would say nothing"


def test_a_picture_is_known_by_its_bytes_and_not_by_its_content_type(live: Live) -> None:
    came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes(), Content_Type="text/html")
    assert came.status == 200


def test_pictures_of_all_sizes_and_bad_ones_in_one_batch_are_answered_as_alone() -> None:
    sizes = [(64, 48), (30, 90), (200, 200), (57, 56)]
    bodies = [pictures.encoded(pictures.scene(*sizes[at % 4]) ^ at) if at % 3 else b"bad" for at in range(12)]
    with service_of(max_wait_s=0.2, max_items=4) as service, running(service) as live:
        alone = [live.ask("POST", "/v1/classify", body) for body in bodies]
        before = service.tally.counters()
        with ThreadPoolExecutor(12) as threads:
            together = list(threads.map(lambda body: live.ask("POST", "/v1/classify", body), bodies))
        after = service.tally.counters()
    assert after.executions - before.executions < 8, "they ran together"
    for at, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.status == other.status == (200 if at % 3 else 400)
        if at % 3:
            found, expected = ([row["label"] for row in came.json["classes"]] for came in (other, one))
            assert found == expected
            scores = [row["score"] for row in one.json["classes"]]
            assert [row["score"] for row in other.json["classes"]] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("case", catalogue_faults.CASES, ids=lambda case: f"{case.number} {case.what}")
def test_a_fault_gets_its_answer_and_a_good_request_after_it_too(case: catalogue_faults.Case) -> None:
    with service_of(**case.options()) as service, running(service) as live:
        came = case.send(live)
        assert came.status in case.status, came.body
        if came.status >= 400:
            assert set(came.json) == {"error", "code"}
            assert case.text in came.json["error"]
        assert live.ask("GET", "/healthz").status == case.good_status, "health stays open and says the truth"
        assert case.good(live).status == case.good_status


# Where the rest is.


@cache
def names_in(file: Path) -> frozenset[str]:
    """Names of the test functions of a module."""
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def missing(references: dict[int, tuple[str, ...]]) -> list[str]:
    """Return the references that lead nowhere."""
    gone = []
    for number, names in references.items():
        for name in names:
            file, _, test = name.partition("::")
            if not (ROOT / file).is_file() or test not in names_in(ROOT / file):
                gone.append(f"{number}: {name}")
    return gone


def test_every_number_of_the_catalogue_is_tested_here_or_elsewhere_or_says_why_not() -> None:
    tables = (
        CASES,
        catalogue_faults.CASES,
        catalogue_pictures.bad().values(),
        catalogue_pictures.good().values(),
    )
    here = {case.number for table in tables for case in table} | {
        47,
        48,
        49,
    }  # these have tests of their own above
    assert here | set(ELSEWHERE) | set(NOT_HERE) == set(range(1, 87))
    assert not set(NOT_HERE) & (here | set(ELSEWHERE))
    assert all(ELSEWHERE.values()) and all(NOT_HERE.values())


def test_every_reference_leads_to_a_test() -> None:
    assert missing(ELSEWHERE) == []


def test_a_reference_that_leads_nowhere_is_found() -> None:
    gone = {1: ("tests/serve/test_server.py::test_that_was_renamed", "tests/serve/test_gone.py::test_x")}
    assert len(missing(gone)) == 2
