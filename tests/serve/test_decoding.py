"""Which thread decodes an image and writes its answer, and that a client sees no difference."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve import pictures
from serve.serving import PICTURES, Live, artifact, running, service_of
from vitesse.serve import images, sent_image
from vitesse.serve.sent_image import SentImage

PICTURE = PICTURES[0].read_bytes()
THREAD = {False: "vitesse-decode", True: "vitesse-worker"}


@pytest.fixture(scope="module", params=[False, True], ids=["own threads", "workers"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with service_of(max_items=1, decode_in_worker=request.param) as service, running(service) as server:
        yield server


def named(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[str]:
    """Note the name of each thread that calls a function."""
    plain, names = getattr(owner, name), list[str]()

    def noted(*given: Any, **more: Any) -> Any:
        names.append(threading.current_thread().name)
        return plain(*given, **more)

    monkeypatch.setattr(owner, name, noted)
    return names


def test_the_image_is_decoded_once_by_the_thread_that_shall_and_answered_by_the_worker(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, answered = (
        named(monkeypatch, *of) for of in ((sent_image, "picture_of"), (SentImage, "answer"))
    )
    assert live.ask("POST", "/v1/classify", PICTURE).status == 200
    assert len(decoded) == len(answered) == 1
    assert decoded[0].startswith(THREAD[live.service.decode_in_worker])
    assert answered[0].startswith("vitesse-worker")


def test_a_picture_is_drawn_by_a_thread_that_holds_up_no_run(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = named(monkeypatch, SentImage, "answer")
    came = live.ask("POST", "/v1/classify?draw=1", PICTURE)
    assert (came.status, came.body[:4]) == (200, b"\x89PNG")
    assert len(answered) == 1 and answered[0].startswith("vitesse-decode")


def test_the_stages_of_an_image_are_told(live: Live) -> None:
    timings = live.ask("POST", "/v1/classify", PICTURE).json["timings_ms"]
    assert set(timings) == {"decode", "queue", "infer"} and timings["decode"] > 0
    metrics = live.ask("GET", "/metrics").body.decode()
    for stage in ("decode", "queue", "infer", "output"):
        counts = [line for line in metrics.splitlines() if f'stage="{stage}"' in line and "_count" in line]
        assert counts and float(counts[0].split()[-1]) >= 1


@pytest.mark.parametrize(
    ("body", "status"), [(pictures.png(60_000, 60_000), 413), (b"GIF89a", 415), (b"", 400)]
)
def test_what_the_first_bytes_forbid_is_refused_without_a_thread_or_a_worker(
    live: Live, monkeypatch: pytest.MonkeyPatch, body: bytes, status: int
) -> None:
    asked = named(monkeypatch, sent_image, "picture_of")
    before = live.service.router.pool.counters().offered  # type: ignore[attr-defined]
    assert live.ask("POST", "/v1/classify", body).status == status
    assert live.service.router.pool.counters().offered == before and not asked  # type: ignore[attr-defined]


def test_a_defect_of_the_decoder_is_a_500_and_the_next_image_is_answered(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    with monkeypatch.context() as patched:
        patched.setattr(sent_image, "picture_of", broken)
        came = live.ask("POST", "/v1/classify", PICTURE)
    assert (came.status, came.json["code"]) == (500, "internal") and b"secret" not in came.body
    assert live.ask("POST", "/v1/classify", PICTURE).status == 200
    assert [one.note for one in live.service.router.pool.health().workers] == [""]  # type: ignore[attr-defined]


def test_no_memory_for_a_picture_is_a_503_of_its_own(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "rgb_image", none_left)
    came = live.ask("POST", "/v1/classify", PICTURE)
    assert came.status == 503 and "no memory to decode" in came.json["error"]


def test_copies_for_other_releases_are_made_without_decoding_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = artifact().spec
    small = replace(spec, preprocessing=replace(spec.preprocessing, size=(20, 24)))
    specs = {"live": spec, "reference": spec, "small": small}
    with service_of(max_items=1, decode_in_worker=True, specs=specs) as service:
        decoded = named(monkeypatch, sent_image, "picture_of")
        nothing, feeds_of = SentImage(service, PICTURE, {"top": 5}, False).feeds()
        assert nothing == {} and not decoded and feeds_of is not None
        live, reference, other = (feeds_of(name)["images"] for name in ("live", "reference", "small"))
    assert len(decoded) == 1 and other.shape == (1, 3, 20, 24)
    assert reference is live
    expected = images.feeds_of([images.picture_of(PICTURE, service.limits).pixels], spec)["images"]
    np.testing.assert_array_equal(live, expected)
