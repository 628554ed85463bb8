"""Finished runs to serve in a benchmark: a model that does next to nothing, and a ViT-Ti/16 with random weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vitesse.export.torch_onnx import Network, trace
from vitesse.ledger import ArtifactRef, Ledger, Row, Verdict
from vitesse.metadata import read_spec, serialise
from vitesse.run import Run, open_run
from vitesse.sources.source import ExportOptions
from vitesse.sources.vit import ViT, ViTConfig
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

SIZE = (224, 224)
_HALF = (0.5, 0.5, 0.5)
SPEC = ModelSpec(
    Task.CLASSIFICATION,
    Decode.LOGITS,
    "images",
    {"logits": "logits"},
    Preprocessing(SIZE, mean=_HALF, std=_HALF),
)


def null_model(side: int = SIZE[0]) -> bytes:
    """images (batch, 3, side, side) float32 → logits (batch, 3), the pixel in the middle: the server is all."""
    constants = [
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (("from", [side // 2] * 2), ("to", [side // 2 + 1] * 2), ("axes", [2, 3]))
    ]
    nodes = [
        helper.make_node("Slice", ["images", "from", "to", "axes"], ["pixel"]),
        helper.make_node("Flatten", ["pixel"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, side, side])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "null", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return serialise(model, replace(SPEC, preprocessing=replace(SPEC.preprocessing, size=(side, side))))


def vit_ti() -> bytes:
    """ViT-Ti/16 of 1,000 classes, 5.7 million parameters."""
    torch.manual_seed(0)
    module = ViT(ViTConfig(SIZE, 16, 192, 12, 3, 768, 1000)).eval().requires_grad_(False)
    images = {"images": torch.zeros(2, 3, *SIZE)}
    network = Network(module, images, ("logits",), SPEC, {"images": {0: "batch"}})
    return serialise(trace(network, ExportOptions(size=SIZE)), SPEC)


def finished_run(folder: Path, content: bytes) -> Run:
    """Write a run that has chosen a copy of its own original: one session with one thread is how it was measured."""
    (folder / "artifacts").mkdir(parents=True)
    rows = []
    for stage in ("source", "fuse"):
        model = onnx.load_from_string(content)
        model.doc_string = stage  # two files, or the run would have chosen the original
        kept = folder / "artifacts" / f"{stage}.onnx"
        onnx.save(model, kept)
        ref = ArtifactRef(f"artifacts/{kept.name}", _sha256(kept), kept.stat().st_size)
        rows.append(
            Row(stage, Verdict.PASS, "made for a benchmark", artifact=ref, run_options={"threads": 1})
        )
    Ledger(f"{folder.name}.onnx", "cpu", tuple(rows), chosen=1).save(folder / "ledger.json")
    spec = read_spec(onnx.load_from_string(content))
    assert spec is not None
    source = hashlib.sha256(content).hexdigest()
    identity = {"source_sha256": source, "data_sha256": "0", "spec": json.loads(spec.to_json())}
    (folder / "run.json").write_text(json.dumps(identity))
    return open_run(folder)


def photo(path: Path, size: tuple[int, int] = (640, 480), quality: int = 90) -> Path:
    """Write a JPEG of (width, height) with the detail of a photograph: noise smoothed at several scales."""
    random = np.random.default_rng(0)
    picture = np.zeros((size[1], size[0], 3), np.float32)
    for cells, weight in ((8, 0.5), (40, 0.3), (200, 0.2)):
        coarse = random.integers(0, 256, (cells, cells, 3), np.uint8)
        layer = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        picture += weight * np.asarray(layer, np.float32)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=quality)
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
