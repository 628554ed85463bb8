"""Every bad request of the catalogue against a running server, and a good one right after it."""

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from serve import pictures
from serve.catalogue import CASES, ELSEWHERE, INFER, Case
from serve.serving import PICTURES, Live, binary_body, running, service_of, tensor, with_limits
from vitesse.serve.limits import MIB

GOOD, LENGTH = binary_body(tensor())
# Number of the case → picture, statuses, part of the sentence.
BAD_PICTURES: dict[str, tuple[int, bytes, tuple[int, ...]]] = {
    "empty": (31, b"", (400,)),
    "html": (32, pictures.HTML, (400,)),
    "svg": (32, pictures.SVG, (400,)),
    "random": (32, pictures.RANDOM, (400,)),
    "cut jpeg": (33, pictures.encoded(pictures.scene(), "JPEG")[:-200], (400,)),
    "cut png": (33, pictures.encoded(pictures.scene())[:-80], (400,)),
    "header only": (34, pictures.encoded(pictures.scene())[:33], (400,)),
    "bad crc": (35, pictures.bad_crc(), (400,)),
    "thin": (41, pictures.encoded(pictures.scene(4, 600)), (400,)),
    "text bomb": (40, pictures.text_bomb(200 * MIB), (400, 413)),
    **{kind: (44, body, (415,)) for kind, body in pictures.unsupported().items()},
}


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


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_gets_its_answer_and_the_next_good_one_too(live: Live, name: str) -> None:
    _, body, statuses = BAD_PICTURES[name]
    came = live.ask("POST", "/v1/classify", body, Content_Type="image/jpeg")
    assert came.status in statuses, came.body
    assert set(came.json) == {"error", "code"}
    a_good_request_is_answered(live)


def test_a_picture_is_known_by_its_bytes_and_not_by_its_content_type(live: Live) -> None:
    came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes() + b"trailing", Content_Type="text/html")
    assert came.status == 200


def test_a_bad_picture_beside_good_ones_fails_alone(live: Live) -> None:
    bodies = [PICTURES[at].read_bytes() if at % 3 else b"bad" for at in range(12)]
    alone = [live.ask("POST", "/v1/classify", body) for body in bodies]
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda body: live.ask("POST", "/v1/classify", body), bodies))
    for at, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.status == other.status == (200 if at % 3 else 400)
        if at % 3:
            assert [row["label"] for row in one.json["classes"]] == [
                row["label"] for row in other.json["classes"]
            ]


def test_every_number_of_the_catalogue_is_tested_or_says_where_and_why_not() -> None:
    here = {case.number for case in CASES} | {number for number, _, _ in BAD_PICTURES.values()}
    assert here | set(ELSEWHERE) == set(range(1, 87))
    assert all(ELSEWHERE.values())
    assert all(case.what and case.status for case in CASES)
