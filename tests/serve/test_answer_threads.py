"""Which answers are written on the event loop, and which by a thread because they would hold it up."""

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from serve.catalogue import INFER
from serve.serving import PICTURES, infer_body, running, service_of
from vitesse.serve import handlers


@pytest.fixture(scope="module")
def ask() -> Any:
    """Return a function that sends a request and returns the functions that threads were given, and the answer."""
    with service_of() as service, running(service) as live:
        plain = service.threads.run
        given: list[str] = []

        async def run(function: Callable[..., Any], *arguments: Any) -> Any:
            given.append(getattr(getattr(function, "func", function), "__name__", "?"))
            return await plain(function, *arguments)

        service.threads.run = run  # type: ignore[method-assign]

        def send(path: str, body: bytes) -> tuple[list[str], Any]:
            given.clear()
            answer = live.ask("POST", path, body)
            assert answer.status == 200
            return list(given), answer

        yield send


def wanting(binary: bool) -> bytes:
    document = json.loads(infer_body())
    document["outputs"] = [{"name": "logits", "parameters": {"binary_data": binary}}]
    return json.dumps(document).encode()


@pytest.mark.parametrize(("most", "threads"), [(10, []), (9, ["write_answer"])])
def test_an_output_of_many_values_in_json_is_written_by_a_thread(
    ask: Any, monkeypatch: pytest.MonkeyPatch, most: int, threads: list[str]
) -> None:
    monkeypatch.setattr(handlers, "_QUICK_JSON", 10**9)
    monkeypatch.setattr(handlers, "_QUICK_WRITTEN", most)
    assert ask(INFER, infer_body())[0] == threads
    assert ask(INFER, wanting(binary=False))[0] == threads
    assert ask(INFER, wanting(binary=True))[0] == []


@pytest.mark.parametrize(("most", "threads"), [(10, []), (9, ["answer"])])
def test_an_image_with_many_outputs_is_answered_by_a_thread(
    ask: Any, monkeypatch: pytest.MonkeyPatch, most: int, threads: list[str]
) -> None:
    monkeypatch.setattr(handlers, "_QUICK_READ", most)
    picture = PICTURES[0].read_bytes()
    assert ask("/v1/classify", picture)[0] == threads
    assert ask("/v1/classify?draw=1", picture)[0] == ["answer"]
