import io
import json
import logging
import threading
import time

import pytest

from vitesse.serve import logs


@pytest.fixture
def written():
    names = (logs.NAME, "uvicorn", "uvicorn.error", "uvicorn.access")
    kept = {
        name: (list((one := logging.getLogger(name)).handlers), one.level, one.propagate) for name in names
    }
    stream = io.StringIO()
    logs.configure(stream)
    handler = logging.getLogger(logs.NAME).handlers[0]

    def lines():
        handler.flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield lines
    for name, (handlers, level, propagate) in kept.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_request_is_one_line_of_json(written):
    logs.log_request("abc", "/v1/detect", 200, 0.01234, served_by="live", batch=4)
    (line,) = written()
    time = line.pop("time")
    assert time.endswith("+00:00") and "T" in time
    assert line == {
        "level": "INFO", "request_id": "abc", "route": "/v1/detect", "status": 200, "ms": 12.34, "served_by": "live",
        "batch": 4, "text": "answered",
    }  # fmt: skip


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("served_by", [None, 'a "quoted" release', "Basic s3cret-key"])
@pytest.mark.parametrize("name", ["abc", 'bearer s3cret-key "\\ü'])
def test_the_line_of_an_answered_request_is_that_of_any_record(written, name, served_by, batch):
    known = {"served_by": served_by, "batch": batch}
    logs.log_request(name, "/v1/detect", 200, 0.01234, **known)
    logs.log_request(name, "/v1/detect", 200, 0.01234, **known, text="answered")
    short, long = written()
    assert list(short) == list(long), "the fields in their order"
    del short["time"], long["time"]
    assert short == long
    assert "s3cret" not in json.dumps(short)


def test_a_logger_with_other_handlers_gets_a_record_for_each_answered_request(written):
    seen = []

    class Other(logging.Handler):
        def emit(self, record):
            seen.append((record.request_id, record.status, record.getMessage()))

    logging.getLogger(logs.NAME).handlers = [Other()]
    logs.log_request("abc", "/v1/detect", 200, 0.01)
    assert seen == [("abc", 200, "answered")]


def test_answered_requests_are_left_out_where_the_level_leaves_them_out(written):
    logging.getLogger(logs.NAME).setLevel(logging.WARNING)
    logs.log_request("abc", "/v1/detect", 200, 0.01)
    assert written() == []


@pytest.mark.parametrize(
    ("status", "level"), [(200, "INFO"), (400, "WARNING"), (503, "WARNING"), (500, "ERROR"), (504, "ERROR")]
)
def test_the_level_says_whose_fault_it_is(written, status, level):
    logs.log_request("abc", "/v1/detect", status, 0.01, text="why")
    assert [(line["level"], line["text"]) for line in written()] == [(level, "why")]


def test_lines_of_answered_requests_come_by_themselves_and_soon(monkeypatch):
    stream = io.StringIO()
    logger = logs.configure(stream)
    monkeypatch.setattr(logs, "LATE_S", 0.01)
    logs.log_request("abc", "/v1/detect", 200, 0.01)
    logs.log_request("def", "/v1/detect", 200, 0.01)
    end = time.monotonic() + 10
    while not stream.getvalue() and time.monotonic() < end:
        time.sleep(0.005)
    assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == ["abc", "def"]
    logger.handlers.clear()


def test_what_went_wrong_is_written_at_once_behind_what_came_before_it():
    stream = io.StringIO()
    logger = logs.configure(stream)
    logs.log_request("abc", "/v1/detect", 200, 0.01)
    assert stream.getvalue() == "", "one line, written with those that follow it"
    logs.log_request("def", "/v1/detect", 504, 0.01, text="late")
    assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == ["abc", "def"]
    logger.handlers.clear()


def test_a_text_from_outside_cannot_forge_a_line(written):
    logs.log_request("abc", "/v1/detect", 400, 0.01, text='bad\n{"level": "INFO", "text": "all is well"}')
    assert len(written()) == 1


@pytest.mark.parametrize(
    "text", ["Authorization: Bearer s3cret-key", "bearer s3cret-key, x", "Basic s3cret-key"]
)
def test_a_key_in_a_library_s_message_is_struck_out(written, text):
    logging.getLogger(logs.NAME).warning("headers were %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed")
    assert len(written()) == 2
    assert "s3cret" not in json.dumps(written())
    assert "[struck out]" in written()[0]["text"]


def test_fields_outside_the_set_are_left_out(written):
    logging.getLogger(logs.NAME).info("hello", extra={"body": "pixels", "route": "/v1/detect"})
    (line,) = written()
    assert set(line) == {"time", "level", "route", "text"}


def test_an_error_has_its_trace_and_a_bound(written):
    try:
        raise RuntimeError("x" * 5000)
    except RuntimeError:
        logging.getLogger(logs.NAME).exception("failed")
    (line,) = written()
    assert line["text"].startswith("failed\nTraceback")
    assert len(line["text"]) == logs.LONGEST_TEXT


def test_uvicorn_s_access_log_is_silent_and_its_errors_are_written_once(written):
    logging.getLogger("uvicorn.access").info("GET /secret/path")
    logging.getLogger("uvicorn.error").error("broken pipe")
    assert [line["text"] for line in written()] == ["broken pipe"]


def test_configuring_again_replaces_the_former_stream(written):
    other = io.StringIO()
    logs.configure(other)
    logs.log_request("abc", "/v1/detect", 200, 0.01)
    logging.getLogger(logs.NAME).handlers[0].flush()
    assert written() == []
    assert len(other.getvalue().splitlines()) == 1


@pytest.mark.parametrize("sane", ["a", "7f3a-12.B:x_", "x" * 64])
def test_a_sane_request_id_is_kept(sane):
    assert logs.request_id(sane) == sane


@pytest.mark.parametrize("odd", [None, "", "x" * 65, "a b", "a\nb", "ä", "<b>", "a;b", "abc\n"])
def test_any_other_request_id_is_made_anew(odd):
    made = logs.request_id(odd)
    assert made != odd and len(made) == 16
    assert made != logs.request_id(odd)


def test_lines_of_many_threads_stay_in_the_order_of_each(written):
    def answer(name):
        for number in range(200):
            logs.log_request(f"{name}.{number}", "/v1/detect", 200 if number % 20 else 400, 0.01)

    threads = [threading.Thread(target=answer, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line["request_id"].split(".") for line in written()]
    for name in "abcd":
        assert [number for of, number in found if of == name] == [str(number) for number in range(200)]


def test_the_time_of_a_line_is_when_the_request_was_answered(written, monkeypatch):
    monkeypatch.setattr(logs.time, "time", lambda: 1_700_000_000.0429)
    logs.log_request("abc", "/v1/detect", 200, 0.01)
    assert written()[0]["time"] == "2023-11-14T22:13:20.042+00:00"
