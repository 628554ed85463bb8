"""Video files, cameras and network streams through a model, with the boxes drawn.

reading ──▶ model ──▶ drawing ──▶ writing      a thread each, joined by short queues (overlap); predicting ties them

PyAV is imported by `reading` and `writing` alone; naming a source, below, loads nothing.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePath
from urllib.parse import urlsplit, urlunsplit

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv",
)  # fmt: skip


class SourceKind(StrEnum):
    """Where frames come from; a live source goes on whether or not anybody keeps up with it."""

    FILE = "file"
    CAMERA = "camera"
    STREAM = "stream"

    @property
    def live(self) -> bool:
        """Whether frames come at their own pace and are lost when nobody takes them."""
        return self is not SourceKind.FILE


def kind_of(source: str) -> SourceKind | None:
    """Say what kind of video a source names, by its text alone; None where it names none, such as a picture.

    `rtsp://` and `rtsps://` are streams, `/dev/video0` a camera, the known suffixes files.
    """
    if urlsplit(source).scheme.lower() in {"rtsp", "rtsps"}:
        return SourceKind.STREAM
    if source.startswith("/dev/video"):
        return SourceKind.CAMERA
    return SourceKind.FILE if PurePath(source).suffix.lower() in SUFFIXES else None


def without_password(source: str) -> str:
    """Return the source as messages may show it: a URL's user name and password replaced by ***."""
    parts = urlsplit(source)
    if not parts.scheme or "@" not in parts.netloc:
        return source
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"***@{host}"))
