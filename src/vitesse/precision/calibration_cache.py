"""What a pass over the calibration images saw, kept on disk so that neither a second run nor another method needs one.

A file is a plain .npz. It is trusted only if it was written for the same question and every byte of its arrays is as it
was; anything else counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vitesse._version import __version__
from vitesse.precision.histograms import BINS, Histogram, Observed
from vitesse.precision.ranges import ChannelStatistics
from vitesse.storage import write_atomically

_FORMAT = 1
_Arrays = dict[str, NDArray[np.generic]]


def key_of(model_sha256: str, data_key: str, axes: Mapping[str, int | None]) -> str:
    """Return the hex sha256 of all that decides what a pass sees.

    Args:
        data_key: of the images and how they are prepared.
        axes: the observed tensors, each with the axis of its channels.
    """
    question = {
        "format": _FORMAT,
        "model": model_sha256,
        "data": data_key,
        "tensors": dict(axes),
        "bins": BINS,
        "versions": [__version__, onnxruntime.__version__, np.__version__],
    }
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def path_of(folder: Path, key: str) -> Path:
    """Return where the observations of a key lie."""
    return folder / f"calibration-{key[:16]}.npz"


def save(folder: Path, key: str, observed: Observed) -> None:
    """Write observations; raises StorageError as `write_atomically` does."""
    arrays = _packed(observed)
    arrays["digest"] = np.array(_digest(key, arrays))
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(path_of(folder, key), stream.getvalue())


def load(folder: Path, key: str) -> Observed | None:
    """Return the observations written for this key; None where there are none, or they are damaged."""
    try:
        content = path_of(folder, key).read_bytes()
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            arrays: _Arrays = dict(stored)
        if str(arrays.pop("digest")) != _digest(key, arrays):
            return None
        return _unpacked(arrays)
    except (
        Exception
    ):  # zip, zlib and numpy raise a dozen classes for damaged bytes; all mean: calibrate again
        return None


def _digest(key: str, arrays: _Arrays) -> str:
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _packed(observed: Observed) -> _Arrays:
    histograms = list(observed.histograms.values())
    arrays: _Arrays = {
        "images": np.array(observed.images),
        "tensors": np.array(list(observed.histograms)),
        "counts": np.array([one.counts for one in histograms]),
        "ends": np.array([(one.limit, one.low, one.high) for one in histograms]),
        "zeros": np.array([one.zeros for one in histograms]),
        "channels": np.array(list(observed.channels)),
    }
    for at, channels in enumerate(observed.channels.values()):
        arrays[f"abs_max_{at}"], arrays[f"mean_{at}"] = channels.abs_max, channels.mean
    return arrays


def _unpacked(arrays: _Arrays) -> Observed:
    rows = zip(arrays["tensors"], arrays["counts"], arrays["ends"], arrays["zeros"], strict=True)
    histograms = {
        str(name): Histogram(counts, float(limit), float(low), float(high), int(zeros))
        for name, counts, (limit, low, high), zeros in rows
    }
    channels = {
        str(name): ChannelStatistics(arrays[f"abs_max_{at}"], arrays[f"mean_{at}"])  # type: ignore[arg-type]
        for at, name in enumerate(arrays["channels"])
    }
    return Observed(histograms, channels, int(arrays["images"]))
