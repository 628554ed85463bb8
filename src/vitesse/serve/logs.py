"""The server's log: one JSON object a line, with a closed set of fields, and neither a key nor a body in it."""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple, TextIO

NAME: Final = "vitesse.serve"
# In the order in which they are written; whatever else a record carries is left out.
FIELDS: Final = ("request_id", "route", "status", "ms", "served_by", "batch")
LONGEST_TEXT: Final = 2000

# Names, not secrets: asking the system for random bytes takes longer than all the rest of a log line.
_IDS = random.Random()
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# How late the line of an answered request may be. Written at once, each would hand the interpreter's lock to another
# thread and wait for it to come back: a fifth of the processor time of a small request.
LATE_S: Final = 0.1
_ENCODER = json.JSONEncoder(default=str)
_LOGGER = logging.getLogger(NAME)
_CREDENTIALS = re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",;]+")


class JsonLines(logging.Formatter):
    """Writes `time` (UTC, RFC 3339), `level`, the FIELDS that a record has, and `text`.

    Line breaks are escaped by JSON, so that a text from outside cannot forge a line. What follows "Bearer" or "Basic"
    is struck out, in case a library logs headers; our own code never passes them here.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        line: dict[str, object] = {"time": _at(record.created), "level": record.levelname}
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = _struck_out(value) if isinstance(value, str) else value
        line["text"] = _struck_out(text)[:LONGEST_TEXT]
        return _ENCODER.encode(line)


class _Answered(NamedTuple):
    """What the line of an answered request says; `at` is seconds since 1970."""

    at: float
    request_id: str
    route: str
    status: int
    ms: float
    served_by: str | None
    batch: int | None

    def line(self) -> str:
        """Return what `JsonLines` would write of it: a record and its way there cost as much as parsing the request."""
        by = "" if self.served_by is None else f'"served_by": {_quoted(self.served_by)}, '
        of = "" if self.batch is None else f'"batch": {self.batch}, '
        named = _ENCODER.encode(_struck_out(self.request_id))
        return (
            f'{{"time": "{_at(self.at)}", "level": "INFO", "request_id": {named}, "route": {_quoted(self.route)}, '
            f'"status": {self.status}, "ms": {self.ms}, {by}{of}"text": "answered"}}'
        )


class _InBatches(logging.StreamHandler[TextIO]):
    """Writes records at once and answered requests together, at most `LATE_S` late; all in their order.

    Their lines are made when they are written, many in a row: between two requests that code would be cold each time.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._kept: list[str | _Answered] = []
        self._keeping = threading.Lock()  # for the list alone: nobody waits for lines that are being written
        self._came, self._writer = threading.Event(), threading.Thread(target=self._write, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; called with the handler's lock held."""
        try:
            line = self.format(record)
            with self._keeping:
                self._kept.append(line)
            self.flush()
        except Exception:
            self.handleError(record)

    def keep(self, answered: _Answered) -> None:
        """Take an answered request."""
        with self._keeping:
            self._kept.append(answered)
            first = len(self._kept) == 1
        if first:
            if self._writer.ident is None:
                self._writer.start()
            self._came.set()

    def flush(self) -> None:
        """Write what waits; also at the process's end, by `logging.shutdown`."""
        with self._locked():
            with self._keeping:
                kept, self._kept = self._kept, []
            lines = [one if isinstance(one, str) else one.line() for one in kept]
            if lines:
                self.stream.write(self.terminator.join(lines) + self.terminator)
            super().flush()

    def _locked(self) -> threading.RLock:
        assert self.lock is not None
        return self.lock

    def _write(self) -> None:
        while True:
            self._came.wait()
            self._came.clear()
            time.sleep(LATE_S)
            self.flush()


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> logging.Logger:
    """Send the server's log, and uvicorn's errors, to a stream (standard error by default); again replaces the former.

    uvicorn's own access log is silenced: it prints raw paths, which come from clients.
    """
    handler = _InBatches(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (NAME, "uvicorn.error", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(level)
        logger.propagate = name == "uvicorn.error"
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False
    return logging.getLogger(NAME)


def request_id(header: str | None) -> str:
    """Return the client's X-Request-Id if it is sane (1 to 64 of letters, digits and `._:-`), else a new one."""
    if header is not None and _SANE_ID.fullmatch(header):
        return header
    return f"{_IDS.getrandbits(64):016x}"


def log_request(
    request_id: str,
    route: str,
    status: int,
    seconds: float,
    *,
    served_by: str | None = None,
    batch: int | None = None,
    text: str = "",
) -> None:
    """Write the line of one answered request.

    Args:
        route: the template ("/v1/detect", "/v2/models/{model}/infer"), never the path that came.
        status: of HTTP; 5xx is an ERROR, but 503 and 4xx are WARNINGs: the server is well. seconds: to the answer.
        served_by: the variant. batch: items that ran together. text: the refusal's sentence.
    """
    logger, ms = _LOGGER, round(seconds * 1e3, 2)
    if status < 400:
        handler = logger.handlers[0] if len(logger.handlers) == 1 else None
        if isinstance(handler, _InBatches) and not text:
            if logger.isEnabledFor(logging.INFO):
                handler.keep(_Answered(time.time(), request_id, route, status, ms, served_by, batch))
            return
        level = logging.INFO
    else:
        level = logging.WARNING if status < 500 or status == 503 else logging.ERROR
    if logger.isEnabledFor(level):
        fields = {
            "request_id": request_id,
            "route": route,
            "status": status,
            "ms": ms,
            "served_by": served_by,
            "batch": batch,
        }
        # As `logger.log`, which would first look for the line of code that called it: half of the time.
        record = logger.makeRecord(NAME, level, "", 0, "%s", (text or "answered",), None, extra=fields)
        logger.handle(record)


def _at(seconds: float) -> str:
    """Return a time since 1970 as RFC 3339 has it, in UTC, cut to milliseconds."""
    whole, part = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{part:03d}+00:00"


@lru_cache(maxsize=2)
def _second(number: int) -> str:
    return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=64)
def _quoted(text: str) -> str:
    """Routes and releases in JSON, which are few and none of them a client's."""
    return _ENCODER.encode(_struck_out(text))


def _struck_out(text: str) -> str:
    # Nothing is struck out of one word, such as a request's id.
    return text if text.isalnum() else _CREDENTIALS.sub(r"\1 [struck out]", text)
