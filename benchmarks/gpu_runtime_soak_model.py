"""The model of the soak: FP16, built for ONNX Runtime's CUDA provider, with free batch, height and width.

vitesse export detr_fashion.pth --spec examples/fashion/detr.toml --dynamic batch,height,width -o exported.onnx
python benchmarks/gpu_runtime_soak_model.py exported.onnx examples/fashion/detr soak.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse import stages
from vitesse.artifact import Store
from vitesse.backends import backend
from vitesse.data.dataset import open_calibration
from vitesse.precision.half import to_half
from vitesse.recipe import HalfOptions

IMAGES = 8


def make(exported: Path, images: Path, out: Path) -> None:
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        cleaned = stages.clean(stages.open_model(exported), store).artifact
        fused = stages.fuse(cleaned, store).artifact
        feeds = stages.CalibrationFeeds(open_calibration(images).spread(IMAGES), fused.spec)
        half = to_half(fused, store, feeds, HalfOptions(images=IMAGES)).artifact
        built = backend("cuda").build(half, store)
        print(dict(built.changes), *built.notes)
        out.write_bytes(built.artifact.path.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exported", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    make(given.exported, given.images, given.out)
