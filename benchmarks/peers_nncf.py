"""Quantises an exported model by NNCF, in whatever Python has it; prints the file. Called by peers.py.

PYTHONPATH=src python benchmarks/peers_nncf.py MODEL.onnx FEEDS.npz FOLDER
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.openvino_int8 import quantize
from vitesse.metadata import read_spec
from vitesse.storage import sha256_of


def main(model: Path, arrays: Path, folder: Path) -> None:
    """The arrays are called INDEX/INPUT, one for every image and input."""
    feeds: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(arrays) as stored:
        for key in stored.files:
            at, _, name = key.partition("/")
            feeds[at][name] = stored[key]
    spec = read_spec(onnx.load(model))
    assert spec is not None
    artifact = Artifact(model, sha256_of(model), model.stat().st_size, spec, Provenance("source"))
    print(quantize(artifact, Store(folder), list(feeds.values())).artifact.path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
