"""Cleaning and fusing whole models: what exporters write, not what a test author would."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from fusing import ops, run
from shared_data import shared
from vitesse.fusion import Fused, clean_model, fuse_model

SIZE = 320
# Raising GridSample to opset 20 alone moves boxes of this model by 0.009 px in ONNX Runtime, its default
# optimisations by 0.03 px.
PIXELS = 0.05


@pytest.fixture(scope="module")
def deim() -> tuple[onnx.ModelProto, Fused, Fused]:
    model = onnx.load(shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx")
    cleaned = clean_model(model)
    return model, cleaned, fuse_model(cleaned.model)


def photos(count: int) -> dict[str, np.ndarray[Any, Any]]:
    pixels, sizes = [], []
    for path in sorted((shared("coco_ccby") / "images").iterdir())[:count]:
        with Image.open(path) as photo:
            image = photo.convert("RGB")
            sizes.append(image.size)
            resized = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)
            pixels.append(resized.transpose(2, 0, 1) / 255)
    return {"images": np.stack(pixels), "orig_target_sizes": np.array(sizes, np.int64)}


@pytest.mark.parametrize("batch", [1, 2])
def test_cleaning_deimv2_changes_no_bit_of_its_outputs(deim: Any, batch: int) -> None:
    model, cleaned, _ = deim
    feeds = photos(batch)
    for before, after in zip(run(model, feeds), run(cleaned.model, feeds), strict=True):
        np.testing.assert_array_equal(before, after)
    assert len(cleaned.model.graph.node) < len(model.graph.node) - 100


@pytest.mark.parametrize("batch", [1, 2])
def test_fusing_deimv2_keeps_its_detections(deim: Any, batch: int) -> None:
    model, _, fused = deim
    feeds = photos(batch)
    before, after = run(model, feeds), run(fused.model, feeds)
    np.testing.assert_allclose(after[2], before[2], atol=1e-4)
    compared = 0
    for image in range(batch):
        for label, box, score in zip(*(array[image] for array in before), strict=True):
            if score < 0.05:  # hundreds of near-equal scores below change places in the sorted list
                continue
            near = (np.abs(after[2][image] - score) < 1e-4) & (after[0][image] == label)
            assert np.abs(after[1][image][near] - box).max(axis=1).min() < PIXELS
            compared += 1
    assert compared >= 5 * batch


def test_all_nine_norms_of_deimv2_are_found(deim: Any) -> None:
    _, _, fused = deim
    assert (fused.changes["layer_norm"], fused.changes["rms_norm"]) == (0, 9)
    assert fused.changes["attention"] == 3
    assert {"Pow", "Sqrt"}.isdisjoint(ops(fused.model))
    assert len(fused.model.graph.node) <= 660


def test_surviving_tensors_of_deimv2_keep_name_and_value(deim: Any) -> None:
    model, _, fused = deim
    shared_names = {o for n in model.graph.node for o in n.output} & {
        o for n in fused.model.graph.node for o in n.output
    }
    probes = sorted(name for name in shared_names if name.endswith("norm3/Mul_1_output_0"))
    assert len(shared_names) > 500 and len(probes) == 3
    feeds = photos(1)
    traced = []
    for proto in (model, fused.model):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in probes)
        traced.append(run(copy, feeds)[3:])
    for before, after in zip(*traced, strict=True):
        np.testing.assert_allclose(after, before, atol=1e-3)


def exported_vit(approximate: str, opset: int) -> onnx.ModelProto:
    """A small ViT as the TorchScript exporter writes it, with BatchNorm behind the patch embedding."""
    torch = pytest.importorskip("torch", reason="writes the model with torch")

    class Block(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(32, eps=1e-6) for _ in range(2)])
            self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(32, 64), torch.nn.GELU(approximate=approximate), torch.nn.Linear(64, 32)
            )

        def forward(self, x: Any) -> Any:
            n, t, d = x.shape
            q, k, v = self.qkv(self.norms[0](x)).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
            weights = (q @ k.transpose(-2, -1) * (d // 2) ** -0.5).softmax(-1)
            x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
            return x + self.mlp(self.norms[1](x))

    class ViT(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = torch.nn.Conv2d(3, 32, 8, 8, bias=False), torch.nn.BatchNorm2d(32)
            self.position = torch.nn.Parameter(torch.randn(1, 16, 32))
            self.blocks = torch.nn.Sequential(Block(), Block())
            self.head = torch.nn.Linear(32, 10)

        def forward(self, x: Any) -> Any:
            x = self.norm(self.patches(x)).flatten(2).transpose(1, 2) + self.position
            return self.head(self.blocks(x).mean(1))

    torch.manual_seed(0)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ViT().eval(),
            (torch.randn(2, 3, 32, 32),),
            stream,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            do_constant_folding=False,
        )
    return onnx.load_from_string(stream.getvalue())


@pytest.mark.parametrize(("approximate", "opset"), [("none", 17), ("tanh", 17), ("none", 13)])
def test_a_vit_exported_by_torch_is_cleaned_and_fused_without_loss(approximate: str, opset: int) -> None:
    model = exported_vit(approximate, opset)
    cleaned = clean_model(model)
    fused = fuse_model(cleaned.model)
    assert fused.changes["gelu"] == 2
    assert fused.changes["batch_norm"] == 1
    assert fused.changes["attention"] == 2
    assert fused.changes["layer_norm"] == (4 if opset < 17 else 0)
    assert ops(fused.model)["LayerNormalization"] == 4
    assert {"Erf", "Tanh", "Pow", "Sqrt", "Shape", "Identity", "Softmax"}.isdisjoint(ops(fused.model))
    assert len(fused.model.graph.node) * 3 < len(model.graph.node)
    for batch in (1, 3):
        feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)}
        (before,), (kept,), (after,) = (run(m, feeds) for m in (model, cleaned.model, fused.model))
        np.testing.assert_allclose(kept, before, atol=1e-6)
        np.testing.assert_allclose(after, before, atol=5e-6)
