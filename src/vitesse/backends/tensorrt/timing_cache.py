"""Measured tactics, kept in a file across builds: an unusable file costs time, never a build."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.errors import StorageError
from vitesse.storage import write_atomically

if TYPE_CHECKING:
    import tensorrt

_ASIDE = ".unusable"


@dataclass(frozen=True)
class TimingCache:
    """A file in use by a configuration; `note` says what became of it, `live` whether it is worth saving."""

    path: Path
    note: str
    live: bool


def use_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> TimingCache:
    """Give a configuration the tactics of a file, or none where the file is not there yet.

    A file of another version or GPU, or a damaged one, is put aside under the suffix `.unusable`. TensorRT for RTX
    has these calls and warns that they do nothing; then no file is written.
    """
    content = path.read_bytes() if path.is_file() else b""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        taken = _take(config, content)
        if any(issubclass(one.category, DeprecationWarning) for one in heard):
            return TimingCache(path, "the library says that its timing cache does nothing", False)
        if taken:
            return TimingCache(path, f"{len(content)} bytes of {path}" if content else f"new: {path}", True)
        aside = path.with_name(path.name + _ASIDE)
        path.replace(aside)
        fresh = _take(config, b"")
    return TimingCache(path, f"{path} is damaged, or of another version or GPU: put aside as {aside}", fresh)


def save_timing_cache(config: tensorrt.IBuilderConfig, cache: TimingCache) -> str:
    """Write what was measured, with what another build has written meanwhile; return the note for the settings."""
    if not cache.live:
        return cache.note
    mine = config.get_timing_cache()
    if mine is None:
        return f"{cache.note}; the library kept none"
    if cache.path.is_file():
        other = config.create_timing_cache(cache.path.read_bytes())
        if other is not None:
            mine.combine(other, False)
    try:
        write_atomically(cache.path, bytes(mine.serialize()))
    except StorageError as error:
        return f"{cache.note}; not saved: {error.what}"
    return cache.note


def _take(config: tensorrt.IBuilderConfig, content: bytes) -> bool:
    """Whether the library takes the content; an empty one always, as the beginning of a new cache."""
    try:
        cache = config.create_timing_cache(content)
        return cache is not None and bool(config.set_timing_cache(cache, False))
    except (RuntimeError, TypeError, ValueError):  # how pybind11 passes on what the library throws
        return False
