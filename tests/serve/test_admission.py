"""A request that finds no place is refused before anything is decoded or parsed, and places always come back."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.catalogue import INFER
from serve.serving import PICTURES, Live, binary_body, infer_body, running, service_of, until
from vitesse.serve import handlers, sent_image
from vitesse.serve.admission import Places
from vitesse.serve.refusals import Refusal

PICTURE = PICTURES[0].read_bytes()


def test_as_many_come_in_as_there_are_places() -> None:
    places = Places(2)
    with places.taken(), places.taken():
        with pytest.raises(
            Refusal, match=r"the queue is full: 2 requests are under way, as many as may"
        ) as told:
            places.taken().__enter__()
        assert (told.value.status, told.value.code, told.value.headers["Retry-After"]) == (
            503,
            "queue_full",
            "1",
        )
        assert places.busy == 2, "a refusal takes no place"
    assert places.busy == 0


def test_a_place_is_given_back_by_what_fails() -> None:
    places = Places(1)
    with pytest.raises(ZeroDivisionError), places.taken():
        raise ZeroDivisionError
    with places.taken():
        assert places.busy == 1


def test_a_server_without_a_place_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="0 places; expected at least 1"):
        Places(0)


class Held:
    """A router that answers nobody before it is told to, so that a queue of any length stands still."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.go = inner, threading.Event()
        self.submitted = 0

    def submit(self, work: Any, feeds_of: Any = None) -> Future[Any]:
        """Keep the work until `go`."""
        self.submitted += 1
        answer: Future[Any] = Future()

        def later() -> None:
            self.go.wait(30)
            self.inner.submit(work, feeds_of).add_done_callback(lambda done: answer.set_result(done.result()))

        threading.Thread(target=later, daemon=True).start()
        return answer


def in_background(ask: Callable[[], Any], answers: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(ask().status))
    thread.start()
    return thread


def full(live: Live, answers: list[int]) -> list[threading.Thread]:
    """Fill both places and wait until they are taken."""
    clients = [in_background(lambda: live.ask("POST", "/v1/classify", PICTURE), answers) for _ in range(2)]
    until(lambda: live.service.places.busy == 2 and live.service.router.submitted == 2)  # type: ignore[attr-defined]
    return clients


def test_what_is_refused_was_neither_decoded_nor_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    costly: list[str] = []
    for module, name in ((sent_image, "picture_of"), (handlers, "parse_infer")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, real=real, name=name, **k: (costly.append(name), real(*a, **k))[1]
        )
    with service_of(places=Places(2)) as service, running(service) as live:
        service.router = held = Held(service.router)
        answers: list[int] = []
        clients = full(live, answers)
        costly.clear()
        binary, length = binary_body()
        for path, body, headers in (
            ("/v1/classify", PICTURE, {}),
            (INFER, infer_body(), {}),
            (INFER, binary, {"Inference_Header_Content_Length": length}),
        ):
            came = live.ask("POST", path, body, **headers)
            assert (came.status, came.json["code"], came.headers["retry-after"]) == (503, "queue_full", "1")
            assert "2 requests are under way" in came.json["error"]
        assert costly == [] and held.submitted == 2
        held.go.set()
        for client in clients:
            client.join(30)
        assert answers == [200, 200], "whoever had a place is answered"
        assert live.ask("POST", "/v1/classify", PICTURE).status == 200
        assert costly == ["picture_of"]


@pytest.mark.parametrize(("path", "body"), [("/v1/classify", b"no picture"), (INFER, b"{")])
def test_a_bad_request_gives_its_place_back(path: str, body: bytes) -> None:
    with service_of(places=Places(1)) as service, running(service) as live:
        for _ in range(3):
            assert live.ask("POST", path, body).status == 400
        assert service.places.busy == 0
        assert live.ask("POST", "/v1/classify", PICTURE).status == 200
