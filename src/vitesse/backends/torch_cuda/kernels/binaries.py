"""Triton's compiled kernels as files: those that a plan needs, taken along in its artifact and put back on loading.

Triton keeps every compiled kernel, and the launcher that goes with it, in a folder named by the hash of its source, its
options and the compiler. The index file in such a folder holds absolute paths, so that it is written anew where the
folder is put.

A compiled kernel and its launcher are programs: they are as trustworthy as the file that they came in.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime.cache import FileCacheManager
from triton.runtime.jit import JITFunction

from vitesse.storage import write_atomically

_INDEX = "__grp__"
# Of a kernel's files those that running it reads; the others are the steps of its compilation.
_NEEDED = (".json", ".cubin", ".so")
# Compiled once for a machine and looked up before any kernel is, so that no recording sees it.
_DRIVER = "cuda_utils"
_KEY = re.compile(r"[A-Za-z0-9_-]{8,128}")
_FILE = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def recorded(work: Callable[[], object]) -> dict[str, bytes]:
    """Run `work` as if Triton had just been imported, and return the files of all kernels that it looked up.

    Returns:
        "KEY/FILE" → content; without index files.
    """
    folders: set[Path] = set()

    class Recording(FileCacheManager):  # type: ignore[misc]  # triton has no types
        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override=override, dump=dump)
            if not override and not dump:
                folders.add(Path(self.cache_dir))

    for found in gc.get_objects():
        # Not isinstance: that asks the object, and some objects warn when asked.
        if issubclass(type(found), JITFunction):
            found.device_caches.clear()
    with _manager(Recording):
        work()
    folders.update(file.parent for file in _cache().glob(f"*/{_DRIVER}*"))
    return {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in sorted(folders)
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in _NEEDED and not file.name.startswith(_INDEX)
    }


def merge(files: Mapping[str, bytes]) -> int:
    """Put the files of `recorded` into Triton's cache where it lacks them, and return the number of kernels added.

    Raises:
        ValueError: a name that is no "KEY/FILE" of Triton's cache.
        StorageError: they cannot be written.
    """
    kernels: dict[str, dict[str, bytes]] = {}
    for name, content in files.items():
        key, _, file = name.partition("/")
        if not (_KEY.fullmatch(key) and _FILE.fullmatch(file)) or file.startswith("."):
            raise ValueError(f"{name!r} is no file of Triton's cache")
        kernels.setdefault(key, {})[file] = content
    added = 0
    for key, content_of in kernels.items():
        folder = _cache() / key
        if any((folder / name).exists() for name in (*map(_index, content_of), *_launchers(content_of))):
            continue
        for name, content in content_of.items():
            write_atomically(folder / name, content)
        # The index comes last: a kernel without one does not exist for Triton.
        for name in (name for name in content_of if name.endswith(".json")):
            paths = {each: str(folder / each) for each in content_of}
            write_atomically(folder / _index(name), json.dumps({"child_paths": paths}).encode())
        added += 1
    return added


def _index(name: str) -> str:
    return f"{_INDEX}{name}"


def _launchers(names: Mapping[str, bytes]) -> list[str]:
    return [name for name in names if name.endswith(".so")]


def _cache() -> Path:
    return Path(str(knobs.cache.dir))


class _manager:
    """Have Triton use another cache manager inside a block."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __enter__(self) -> None:
        self._before = knobs.cache.__dict__.get("manager_class")
        knobs.cache.manager_class = self._manager

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del knobs.cache.manager_class
        else:
            knobs.cache.manager_class = self._before
