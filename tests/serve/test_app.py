"""Routes through a running server: what each answers, and the one form that every error has."""

import json

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")

from collections.abc import Iterator

from serve.serving import NAME, PICTURES, Live, artifact, binary_body, infer_body, running, service_of, tensor
from vitesse.backends.fake import Fault
from vitesse.predict import Model
from vitesse.serve import routes
from vitesse.serve.auth import Keys

KEY, ADMIN_KEY = "k" * 32, "a" * 32


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with service_of() as service, running(service) as server:
        yield server


def test_health_and_metadata_answer(live: Live) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{NAME}/ready", "/healthz", "/readyz"):
        assert live.ask("GET", path).status == 200, path
    assert live.ask("GET", "/v2").json["extensions"][0] == "binary_tensor_data"
    model = live.ask("GET", f"/v2/models/{NAME}/versions/1").json
    assert model["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 56, 56]}]
    assert live.ask("GET", f"/v2/models/{NAME}/config").json["max_batch_size"] == 4
    assert live.ask("POST", "/v2/repository/index").json[0]["state"] == "READY"


def test_inference_is_answered_alike_whether_its_address_is_known_or_searched(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v2/models/{NAME}/infer"
    assert {("POST", path), ("POST", f"/v2/models/{NAME}/versions/1/infer")} <= set(
        routes.direct(live.service)
    )

    def answers(server: Live) -> list[tuple[int, bytes]]:
        body, length = binary_body(tensor(1))
        asked = [
            server.ask("POST", path, body, Inference_Header_Content_Length=length),
            server.ask("POST", path, b"{"),
            server.ask("GET", path),
        ]
        return [(one.status, one.body) for one in asked]

    known = answers(live)
    monkeypatch.setattr("vitesse.serve.app.direct", lambda service: {})
    with service_of() as service, running(service) as searching:
        assert answers(searching) == known
    assert [status for status, _ in known] == [200, 400, 405]


def test_tensors_are_answered_alike_in_json_and_in_binary(live: Live) -> None:
    array = tensor(2)
    as_json = live.ask("POST", f"/v2/models/{NAME}/infer", infer_body(array))
    body, length = binary_body(array)
    binary = live.ask("POST", f"/v2/models/{NAME}/infer", body, Inference_Header_Content_Length=length)
    assert as_json.status == binary.status == 200
    assert as_json.headers["x-served-by"] == "live"
    header = int(binary.headers["inference-header-content-length"])
    logits = np.frombuffer(binary.body[header:], np.float32)
    np.testing.assert_allclose(np.array(as_json.json["outputs"][0]["data"]), logits, rtol=1e-6)
    with Model(artifact()) as model:
        expected = model._session.run({"images": array}).outputs["logits"]
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_answered_as_predict_answers_it(live: Live) -> None:
    path = PICTURES[3]
    came = live.ask("POST", "/v1/classify?top=3", path.read_bytes())
    with Model(artifact()) as model:
        expected = model(path)
    assert [row["label"] for row in came.json["classes"]] == list(expected.names[:3])
    np.testing.assert_allclose([row["score"] for row in came.json["classes"]], expected.scores[:3], atol=1e-5)
    assert set(came.json["timings_ms"]) == {"decode", "queue", "infer"}


def test_a_picture_is_drawn_when_asked(live: Live) -> None:
    came = live.ask("POST", "/v1/classify?draw=1", PICTURES[0].read_bytes())
    assert came.status == 200
    assert came.headers["content-type"] == "image/png"
    assert came.body.startswith(b"\x89PNG")


def test_a_route_of_another_task_is_not_there(live: Live) -> None:
    assert live.ask("POST", "/v1/detect", PICTURES[0].read_bytes()).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/nowhere", 404, "GET /openapi.json describes what there is"),
        ("GET", "/v2/", 404, "nothing at this address"),
        ("POST", "/v1/detect", 404, "for another task, POST /v1/classify: there is nothing at this address"),
        ("DELETE", "/v2", 405, "does not take DELETE; it takes GET, HEAD"),
        ("GET", "/v2/models/other", 404, f"this server has '{NAME}'"),
        ("GET", f"/v2/models/{NAME}/versions/7", 404, "this server has '1'"),
        ("POST", "/v1/classify?top=many", 400, "top is 'many'; expected a number from 1 to 100"),
        ("POST", "/v1/classify?draw=perhaps", 400, "draw is 'perhaps'; expected 1 or 0"),
        ("POST", "/api/release/rollback", 404, "nothing at this address"),
    ],
)
def test_errors_are_json_with_a_sentence_and_a_code(
    live: Live, method: str, path: str, status: int, text: str
) -> None:
    came = live.ask(method, path)
    assert came.status == status
    assert set(came.json) == {"error", "code"}
    assert text in came.json["error"]


def test_a_request_keeps_its_name_and_an_insane_name_is_replaced(live: Live) -> None:
    assert live.ask("GET", "/v2", X_Request_Id="order-7").headers["x-request-id"] == "order-7"
    assert live.ask("GET", "/v2", X_Request_Id="x" * 500).headers["x-request-id"] != "x" * 500


def test_requests_and_refusals_are_counted(live: Live) -> None:
    body, length = binary_body(tensor(2))
    live.ask("POST", f"/v2/models/{NAME}/infer", body, Inference_Header_Content_Length=length)
    live.ask("POST", f"/v2/models/{NAME}/infer", b"{")
    text = live.ask("GET", "/metrics").body.decode()
    assert 'code="200"' in text
    assert (
        'vitesse_request_failures_total{backend="onnxruntime",model="vit_fashion",reason="bad_input"' in text
    )
    stats = live.ask("GET", f"/v2/models/{NAME}/stats").json["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] >= 1
    assert stats["inference_stats"]["fail"]["count"] >= 1


def test_what_is_not_ready_says_why_and_takes_no_requests() -> None:
    with service_of(ready=False) as service, running(service) as live:
        assert live.ask("GET", "/v2/health/live").status == 200
        for path in ("/v2/health/ready", "/readyz"):
            came = live.ask("GET", path)
            assert (came.status, came.json["code"]) == (503, "not_ready")
            assert "being loaded and warmed up" in came.json["error"]
        assert live.ask("POST", f"/v2/models/{NAME}/infer", infer_body()).status == 503
        service.readiness.become("failed", "warm-up failed: out of memory")
        assert "warm-up failed: out of memory" in live.ask("GET", "/readyz").json["error"]


def test_a_failing_model_is_a_500_of_its_own_and_not_a_crash() -> None:
    with service_of(fault=Fault(crash="the kernel is broken")) as service, running(service) as live:
        came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes())
        assert (came.status, came.json["code"]) == (500, "backend")
        assert "the kernel is broken" in came.json["error"]
        assert live.ask("GET", "/v2/health/live").status == 200


def test_a_defect_is_answered_with_the_name_under_which_the_log_has_it(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(live.service, "status", broken)
    came = live.ask("GET", "/api/status", X_Request_Id="find-me")
    assert (came.status, came.json["code"]) == (500, "internal")
    assert "find-me" in came.json["error"]
    assert "secret detail" not in came.json["error"]


class Operator:
    def __init__(self) -> None:
        self.asked: list[object] = []

    def promote(
        self, release: str = "", *, share: float | None = None, shadow: bool = False
    ) -> dict[str, str]:
        self.asked.append((release, share, shadow))
        return {"live": "candidate"}

    def rollback(self, why: str) -> dict[str, str]:
        self.asked.append(why)
        return {"live": "reference"}


def test_keys_guard_inference_and_admin_keys_guard_releases_while_health_stays_open() -> None:
    operator = Operator()
    keys = {"keys": Keys([KEY]), "admin_keys": Keys([ADMIN_KEY]), "releases": operator}
    with service_of(**keys) as service, running(service) as live:
        for path in ("/v2/health/live", "/readyz", "/"):
            assert live.ask("GET", path).status == 200, path
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {ADMIN_KEY}"}):
            came = live.ask("POST", "/v1/classify", PICTURES[0].read_bytes(), **header)
            assert came.status == 401, header
            assert came.headers["www-authenticate"].startswith("Bearer")
            assert live.ask("GET", "/metrics", **header).status == 401
        right = {"Authorization": f"Bearer {KEY}"}
        assert live.ask("POST", "/v1/classify", PICTURES[0].read_bytes(), **right).status == 200
        assert live.ask("POST", "/api/release/rollback", **right).status == 401
        admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
        body = json.dumps({"why": "wrong boxes"})
        assert live.ask("POST", "/api/release/rollback", body, **admin).json == {"live": "reference"}
        assert operator.asked == ["wrong boxes"]
        for body in ("", json.dumps({"release": "int8-1", "share": 0.1, "shadow": True})):
            assert live.ask("POST", "/api/release/promote", body, **admin).json == {"live": "candidate"}
        assert operator.asked[1:] == [("", None, False), ("int8-1", 0.1, True)]
        for wrong in (
            '{"share": 0}',
            '{"share": 2}',
            '{"share": true}',
            '{"release": 3}',
            '{"shadow": 1}',
            "[]",
        ):
            came = live.ask("POST", "/api/release/promote", wrong, **admin)
            assert (came.status, came.json["code"]) == (400, "bad_request"), wrong
        assert len(operator.asked) == 3


def test_the_dashboard_may_run_its_own_scripts_and_nothing_else(live: Live) -> None:
    came = live.ask("GET", "/")
    policy = came.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy


def test_the_document_describes_every_route(live: Live) -> None:
    from vitesse.serve.routes import endpoints

    paths = live.ask("GET", "/openapi.json").json["paths"]
    assert {(one.method.lower(), one.path) for one in endpoints(live.service)} == {
        (method, path) for path, methods in paths.items() for method in methods
    }
