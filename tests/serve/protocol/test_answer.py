import json

import numpy as np
import pytest

from v2_bodies import in_json, read
from vitesse.serve.protocol import HEADER_LENGTH, InferRequest, WantedOutput, write_answer
from vitesse.serve.refusals import Refusal

SCORES = np.float32([[0.1, 0.2, 0.7]])
LABELS = np.int64([[3, 1, 2]])
OUTPUTS = {"scores": SCORES, "labels": LABELS}


def wants(*outputs: WantedOutput, binary: bool = False, request_id: str = "") -> InferRequest:
    return InferRequest(request_id, {}, outputs or None, binary, None)


def split(body: bytes, headers: dict[str, str]) -> tuple[dict[str, object], bytes]:
    length = int(headers[HEADER_LENGTH])
    return json.loads(body[:length]), body[length:]


def test_without_wishes_all_outputs_come_in_json() -> None:
    body, headers = write_answer(wants(), OUTPUTS, "m", "3")
    assert headers == {"Content-Type": "application/json"}
    document = json.loads(body)
    assert (document["model_name"], document["model_version"]) == ("m", "3") and "id" not in document
    scores, labels = document["outputs"]
    assert scores == {"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": SCORES.ravel().tolist()}
    assert labels == {"name": "labels", "datatype": "INT64", "shape": [1, 3], "data": [3, 1, 2]}


def test_binary_outputs_follow_the_header_in_its_order() -> None:
    body, headers = write_answer(wants(binary=True), OUTPUTS, "m", "1")
    document, tail = split(body, headers)
    assert headers["Content-Type"] == "application/octet-stream"
    assert [entry["parameters"] for entry in document["outputs"]] == [  # type: ignore[attr-defined]
        {"binary_data_size": 12},
        {"binary_data_size": 24},
    ]
    assert tail == SCORES.tobytes() + LABELS.tobytes()


def test_one_output_in_binary_and_one_in_json_as_asked() -> None:
    request = wants(WantedOutput("labels", False), WantedOutput("scores", True), request_id="r-7")
    document, tail = split(*write_answer(request, OUTPUTS, "m", "1"))
    labels, scores = document["outputs"]  # type: ignore[misc]
    assert document["id"] == "r-7"
    assert labels["data"] == [3, 1, 2] and "data" not in scores
    assert tail == SCORES.tobytes()


def test_the_id_of_a_request_comes_back() -> None:
    body, _ = write_answer(read(in_json(id='é "x"')), OUTPUTS, "m", "1")
    assert json.loads(body)["id"] == 'é "x"'


def test_a_strided_output_is_written_row_major() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    _, tail = split(*write_answer(wants(binary=True), {"t": turned}, "m", "1"))
    assert np.frombuffer(tail, np.float32).tolist() == [0, 3, 1, 4, 2, 5]


def test_an_output_of_another_byte_order_is_written_little_endian() -> None:
    _, tail = split(*write_answer(wants(binary=True), {"t": np.array([1, 2], ">i4")}, "m", "1"))
    assert tail == np.array([1, 2], "<i4").tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_json_has_no_nan_and_the_answer_says_so(value: float) -> None:
    with pytest.raises(Refusal, match="output 't' holds 1 values that are NaN or infinite") as caught:
        write_answer(wants(), {"t": np.float32([0, value])}, "m", "1")
    assert (caught.value.status, caught.value.code) == (500, "backend")
    _, tail = split(*write_answer(wants(binary=True), {"t": np.float32([0, value])}, "m", "1"))
    assert not np.isfinite(np.frombuffer(tail, np.float32)[1])


def test_bytes_that_are_no_text_go_in_binary_only() -> None:
    photo = np.array([b"\xff\xd8"], object)
    with pytest.raises(
        Refusal, match="bytes that are not UTF-8, which JSON cannot carry; ask for it in binary"
    ):
        write_answer(wants(), {"t": photo}, "m", "1")
    _, tail = split(*write_answer(wants(binary=True), {"t": photo}, "m", "1"))
    assert tail == b"\x02\0\0\0\xff\xd8"


def test_an_output_that_the_model_did_not_give_is_named() -> None:
    with pytest.raises(Refusal, match=r"model 'm' gave no output 'boxes', only \['labels', 'scores'\]"):
        write_answer(wants(WantedOutput("boxes", True)), OUTPUTS, "m", "1")


def test_an_output_of_many_values_is_written_in_pieces_that_make_one_list() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4097)).astype(np.float32)
    document = json.loads(write_answer(wants(request_id="x"), {"y": values, "z": values[:0]}, "m", "1")[0])
    first, second = document["outputs"]
    assert np.array_equal(np.float32(first["data"]).reshape(first["shape"]), values)
    assert (second["data"], document["id"]) == ([], "x")


def test_no_piece_of_json_holds_the_interpreter_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    def dumps(value: object, **options: object) -> str:
        nonlocal longest
        longest = max(longest, len(value)) if isinstance(value, list) else longest
        return plain(value, **options)  # type: ignore[arg-type]

    plain = json.dumps
    monkeypatch.setattr(json, "dumps", dumps)
    write_answer(wants(), {"y": np.zeros((1, 100_000), np.float32)}, "m", "1")
    assert longest == 4096
