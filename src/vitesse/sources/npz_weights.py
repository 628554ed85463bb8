"""Reading `.npz` files of weights: plain arrays only, and a file that is something else is named as what it is."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from vitesse.errors import ModelError
from vitesse.sources.beginnings import ZIP, refuse_other_files

_EXPECTED = "an .npz of plain arrays, as google-research/vision_transformer publishes them"


def npz_names(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays without reading them; raises ModelError as `read_npz`."""
    with _opened(path) as archive:
        return tuple(archive.files)


def read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """Read the arrays `names` as float32; float16, float64 and bfloat16 (stored as two raw bytes) are converted.

    Raises:
        ModelError: the file is missing, cut off, not an .npz or needs pickle, or an array does not hold real numbers.
    """
    with _opened(path) as archive:
        return {name: _float32(path, name, archive[name]) for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    try:
        with path.open("rb") as stream:
            _refuse_foreign(path, stream.read(64))
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                yield archive
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(
            f"cannot read {path}: {error}",
            expected=_EXPECTED,
            cause="the download was cut off, or the file needs pickle, which is refused because it can run code",
        ) from error


def _refuse_foreign(path: Path, beginning: bytes) -> None:
    if not beginning:
        raise ModelError(f"{path} is empty", expected=_EXPECTED, cause="the download was cut off")
    refuse_other_files(path, beginning, expected=_EXPECTED, takes={ZIP})


def _float32(path: Path, name: str, array: object) -> NDArray[np.float32]:
    if isinstance(array, np.ndarray):
        if array.dtype.kind == "f":
            return array.astype(np.float32, copy=False)
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:
            # NumPy has no bfloat16: it is the upper half of a float32.
            return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    found = array.dtype.name if isinstance(array, np.ndarray) else "not an array"
    raise ModelError(f"{name!r} in {path} is {found}", expected="real numbers: float32, float16 or bfloat16")
