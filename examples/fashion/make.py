"""Make the example models and data of this folder from the trained weights and the full image sets.

    python examples/fashion/make.py SOURCES

SOURCES holds `detr_fashion/` (detr_fashion.pth, config.json, val/, calib/, instances_*.json) and `vit_fashion/`
(vit_fashion.npz, val/CLASS/*.png, calib/CLASS/*.png). Needs `pip install 'vitesse[optimize,torch]'`.

Weights are stored as FP16 and cast to FP32 in the graph, so that the folder stays under 12 MB. For the DETR this
loses nothing (its checkpoint is FP16); for the ViT the rounding was measured, see README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from vitesse.export.exporting import export_source
from vitesse.sources.detr_checkpoint import open_detr
from vitesse.sources.source import ExportOptions, Given, Source
from vitesse.sources.spec_file import read_spec_file
from vitesse.sources.vit_checkpoint import open_vit

HERE = Path(__file__).resolve().parent
DETR_VAL, DETR_CALIB, VIT_VAL, VIT_CALIB = 100, 32, 500, 100


def main() -> None:
    """Export both models and copy the subsets of images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    make_detr(options.sources / "detr_fashion", options.out)
    make_vit(options.sources / "vit_fashion", options.out)


def make_detr(source: Path, out: Path) -> None:
    """Write detr_fashion.onnx and the first scenes of both splits."""
    given = Given(read_spec_file(HERE / "detr.toml"))
    export(open_detr(source / "detr_fashion.pth", given), out / "detr_fashion.onnx")
    for split, count in (("val", DETR_VAL), ("calib", DETR_CALIB)):
        copy_coco(source, out / "detr", split, count)


def make_vit(source: Path, out: Path) -> None:
    """Write vit_fashion.onnx and an even share of each class."""
    given = Given(read_spec_file(HERE / "vit.toml"))
    export(open_vit(source / "vit_fashion.npz", given), out / "vit_fashion.onnx")
    for split, count in (("val", VIT_VAL), ("calib", VIT_CALIB)):
        folders = sorted((source / split).iterdir())
        for folder in folders:
            chosen = sorted(folder.glob("*.png"))[: count // len(folders)]
            copy_images(chosen, out / "vit" / split / folder.name)


def export(source: Source, path: Path) -> None:
    """Export as FP32 opset 18, held against the model itself, and store the large weights as FP16."""
    graph = ir.from_proto(onnx.load_from_string(export_source(source, ExportOptions()).content))
    store_weights_as_fp16(graph)
    ir.save(graph, path)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


def store_weights_as_fp16(model: ir.Model, *, at_least: int = 1024) -> None:
    """Replace every float32 initialiser of `at_least` elements by an FP16 one and a Cast to FP32 before its users."""
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < at_least:
            continue
        half = ir.Value(name=f"{name}_fp16", const_value=ir.tensor(tensor.numpy().astype(np.float16)))
        half.shape, half.type = ir.Shape(tensor.shape), ir.TensorType(ir.DataType.FLOAT16)
        cast = ir.node("Cast", inputs=[half], attributes={"to": ir.DataType.FLOAT}, name=f"{name}_to_fp32")
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        cast.outputs[0].name = name
        cast.outputs[0].shape, cast.outputs[0].type = half.shape, ir.TensorType(ir.DataType.FLOAT)
        model.graph.initializers[half.name] = half
        model.graph.insert_before(model.graph[0], cast)


def copy_coco(source: Path, out: Path, split: str, count: int) -> None:
    """Copy the first `count` images of a COCO split with their annotations."""
    truth = json.loads((source / f"instances_{split}.json").read_text())
    truth["images"] = truth["images"][:count]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [note for note in truth["annotations"] if note["image_id"] in kept]
    copy_images([source / split / image["file_name"] for image in truth["images"]], out / split)
    (out / f"instances_{split}.json").write_text(json.dumps(truth, separators=(",", ":")) + "\n")


def copy_images(files: Sequence[Path], out: Path) -> None:
    """Copy `files` into `out`, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, out / file.name)


if __name__ == "__main__":
    main()
