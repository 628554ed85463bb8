"""The small trained models of the examples, as artifacts."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import onnx

from tiny_onnx import as_artifact
from vitesse.artifact import Artifact
from vitesse.backends.onnxruntime_lowering import lower
from vitesse.fusion import clean_model, fuse_model
from vitesse.metadata import read_spec

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "fashion"
DETR, VIT = FOLDER / "detr_fashion.onnx", FOLDER / "vit_fashion.onnx"
IMAGES = {DETR: sorted((FOLDER / "detr" / "val").glob("*.jpg"))[:4]}


def artifact_of(path: Path, *, like: Path | None = None, backend: str = "onnxruntime") -> Artifact:
    """Wrap a file with the spec it carries, or that of `like`."""
    spec = read_spec(onnx.load(like or path))
    assert spec is not None
    return dataclasses.replace(as_artifact(path), spec=spec, backend=backend)


@cache
def lowered(path: Path) -> onnx.ModelProto:
    """Return the model cleaned, fused and in ONNX Runtime's favourite form; callers must not change it."""
    return lower(fuse_model(clean_model(onnx.load(path)).model).model)[0]


def without_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which no node and no inner tensor tells by its name where it came from."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = {value.name for value in (*bare.graph.output, *bare.graph.input)}
    kept |= {tensor.name for tensor in bare.graph.initializer}
    inner = (name for node in bare.graph.node for name in node.output if name and name not in kept)
    renamed = {name: f"t{at}" for at, name in enumerate(inner)}
    del bare.graph.value_info[:]
    for node in bare.graph.node:
        node.name = ""
        del node.metadata_props[:]
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = renamed.get(name, name)
    return bare
