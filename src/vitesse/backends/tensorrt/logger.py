"""What a TensorRT library says while it works, collected instead of printed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vitesse.backends.tensorrt.api import Api

if TYPE_CHECKING:
    import tensorrt

_QUIET = ("INFO", "VERBOSE")

# TensorRT keeps a plain pointer to a logger, in objects that outlive a build and once for the whole process; one that
# was freed would be called. They are few and small.
_kept: list[tensorrt.ILogger] = []


class Log:
    """Messages in order, each once, as (severity, text).

    Args:
        api: `ILogger` is another class in each module.
        verbose: keep what is for information only, too.

    Attributes:
        native: what a Builder, OnnxParser or Runtime takes.
    """

    def __init__(self, api: Api, *, verbose: bool = False) -> None:
        self._lock = threading.Lock()  # a builder may log from threads of its own
        self._messages: dict[tuple[str, str], None] = {}
        self._verbose = verbose
        self.native = _native(api, self)
        _kept.append(self.native)

    def add(self, severity: str, text: str) -> None:
        """Keep a message; `severity` is such as ERROR or WARNING."""
        if self._verbose or severity not in _QUIET:
            with self._lock:
                self._messages.setdefault((severity, " ".join(text.split())))

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything kept, as `ERROR: text`."""
        with self._lock:
            return tuple(f"{severity}: {text}" for severity, text in self._messages)

    @property
    def errors(self) -> tuple[str, ...]:
        """The texts of errors alone."""
        with self._lock:
            return tuple(text for severity, text in self._messages if severity.endswith("ERROR"))

    def clear(self) -> None:
        """Forget everything; the library may go on calling `native`."""
        with self._lock:
            self._messages.clear()


def _native(api: Api, log: Log) -> tensorrt.ILogger:
    base: Any = api.ILogger

    class Native(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)  # as pybind11 demands of a class with virtual methods

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            log.add(severity.name, msg)

    native: tensorrt.ILogger = Native()
    return native
