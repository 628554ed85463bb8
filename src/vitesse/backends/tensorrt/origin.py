"""Was this plan built from that model? Told by the hashes in its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from vitesse.backends.tensorrt.fitness import rebuild_command
from vitesse.backends.tensorrt.manifest import ManifestError, read_manifest, weights_sha256
from vitesse.errors import ModelError
from vitesse.storage import sha256_of


@dataclass(frozen=True)
class Origin:
    """Whether a plan was built from a model, how that is known, and what to do where it was not."""

    same: bool
    reason: str
    fix: str = ""


def built_from(plan: Path, model: Path) -> Origin:
    """Compare the hashes in a plan's manifest with a model file; a manifest that cannot be read is no proof.

    Raises:
        ModelError: the model cannot be read.
    """
    try:
        manifest = read_manifest(plan)
    except ManifestError as error:
        return Origin(False, error.what, error.fix)
    try:
        found = sha256_of(model)
        if found == manifest.onnx_sha256:
            return Origin(True, "the same file")
        if found == manifest.rewritten_from:
            return Origin(True, f"the same file, rewritten for {manifest.module} before it was built")
        weights = weights_sha256(onnx.load(model))
    except Exception as error:  # protobuf and onnx raise a dozen kinds
        raise ModelError(
            f"cannot read {model}: {error}", expected="the ONNX file to compare the engine with"
        ) from error
    rebuild = rebuild_command(manifest)
    if weights == manifest.weights_sha256:
        return Origin(False, "the weights are the same, the graph around them is another", rebuild)
    # Rewriting folds weights or adds some, so that nothing can be said of those before.
    if manifest.rewritten_from:
        return Origin(False, f"another file; the engine's graph was rewritten for {manifest.module}", rebuild)
    return Origin(False, "the weights are others", rebuild)
