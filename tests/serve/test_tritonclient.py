"""A client that nobody here wrote, unchanged, against a running server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the server: pip install 'vitesse[serve]'")
triton = pytest.importorskip(
    "tritonclient.http", reason="needs tritonclient: pip install 'tritonclient[http]'"
)

from serve.serving import NAME, artifact, running, service_of, tensor  # noqa: E402
from vitesse.predict import Model  # noqa: E402


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with service_of() as service, running(service) as live:
        made = triton.InferenceServerClient(live.url)
        yield made
        made.close()


@pytest.fixture(scope="module")
def expected() -> Any:
    with Model(artifact()) as model:
        return model._session.run({"images": tensor(2)}).outputs["logits"].copy()


def asked(binary: bool) -> Any:
    found = triton.InferInput("images", [2, 3, 56, 56], "FP32")
    found.set_data_from_numpy(tensor(2), binary_data=binary)
    return found


def test_it_finds_the_server_live_and_ready_and_reads_what_it_says_of_itself(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "vitesse"
    assert client.get_model_metadata(NAME)["outputs"][0]["name"] == "logits"
    assert client.get_model_config(NAME)["max_batch_size"] == 4
    assert client.get_model_repository_index()[0]["name"] == NAME
    assert client.get_inference_statistics(NAME)["model_stats"][0]["name"] == NAME


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_it_gets_the_model_s_outputs(
    client: Any, expected: Any, binary_in: bool, binary_out: bool, compression: str | None
) -> None:
    outputs = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    came = client.infer(
        NAME,
        [asked(binary_in)],
        outputs=outputs,
        request_id="seven",
        request_compression_algorithm=compression,
    )
    np.testing.assert_allclose(came.as_numpy("logits"), expected, rtol=1e-3, atol=1e-4)
    assert came.get_response()["id"] == "seven"


def test_it_gets_all_outputs_when_it_names_none(client: Any, expected: Any) -> None:
    np.testing.assert_allclose(
        client.infer(NAME, [asked(True)]).as_numpy("logits"), expected, rtol=1e-3, atol=1e-4
    )


def test_it_shows_the_server_s_sentence_when_a_request_is_wrong(client: Any) -> None:
    wrong = triton.InferInput("pictures", [1, 3, 56, 56], "FP32")
    wrong.set_data_from_numpy(tensor(1))
    with pytest.raises(triton.InferenceServerException, match="unexpected inference input 'pictures'"):
        client.infer(NAME, [wrong])
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        client.infer("nobody", [asked(True)])


def test_many_requests_at_once_get_their_own_answers() -> None:
    with service_of(max_wait_s=0.01) as service, running(service) as live:
        client = triton.InferenceServerClient(live.url, concurrency=8)
        with Model(artifact()) as model:
            arrays = [tensor(1, seed) for seed in range(24)]
            alone = [model._session.run({"images": array}).outputs["logits"].copy() for array in arrays]
        flights = []
        for array in arrays:
            entry = triton.InferInput("images", list(array.shape), "FP32")
            entry.set_data_from_numpy(array)
            flights.append(client.async_infer(NAME, [entry]))
        for flight, right in zip(flights, alone, strict=True):
            np.testing.assert_allclose(flight.get_result().as_numpy("logits"), right, rtol=1e-3, atol=1e-4)
        client.close()
