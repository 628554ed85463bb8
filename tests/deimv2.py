"""The real detector of the shared data, fed by hand: not through the presets that are tested with it."""

import json
from pathlib import Path

import onnxruntime

from shared_data import shared
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task


def deimv2() -> tuple[Path, ModelSpec]:
    """Return DEIMv2-Atto's file and spec; skips where the shared data is absent."""
    categories = json.loads((shared("coco_ccby") / "annotations.json").read_text())["categories"]
    return shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx", ModelSpec(
        Task.DETECTION,
        Decode.POSTPROCESSED,
        "images",
        {"labels": "labels", "boxes": "boxes", "scores": "scores"},
        Preprocessing((320, 320)),
        size_input="orig_target_sizes",
        labels=tuple(entry["name"] for entry in categories),
    )


def runtime(path):
    """Return a function feeds → outputs: plain ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, dict(inputs)), strict=True))
