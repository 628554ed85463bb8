"""A smaller input: which sizes are offered, how they are made, and that boxes stay those of the original image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.detr_levers import SIZE, made, outputs, situation
from deimv2 import deimv2
from fusing import graph
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact
from vitesse.compress import size
from vitesse.compress.lever import NotApplicable
from vitesse.data.preprocess import feeds
from vitesse.errors import ModelError
from vitesse.metadata import read_spec
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

CLASSIFIER = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((64, 96)))


def classifier(folder: Path, shape: str, spec: ModelSpec = CLASSIFIER, body: str = "") -> Artifact:
    body = body or "mean = GlobalAveragePool (x) y = Flatten (mean)"
    path = folder / "classifier.onnx"
    onnx.save(graph(body, inputs=f"float[{shape}] x", outputs="float[N,3] y"), path)
    return replace(as_artifact(path), spec=spec)


@pytest.mark.parametrize(
    ("whole", "unit", "wanted"),
    [
        # by hand: 7/8, 3/4, 5/8, 1/2 of 256 are 224, 192, 160, 128
        ((256, 256), 32, [(224, 224), (192, 192), (160, 160), (128, 128)]),
        # of 56: 49, 42, 35, 28, to the nearest multiple of 8 (halves up): 48, 40, 32, 32
        ((56, 56), 8, [(48, 48), (40, 40), (32, 32)]),
        # 700 × 1166.4, 600 × 999.75, 500 × 833.1, 400 × 666.5
        ((800, 1333), 32, [(704, 1152), (608, 992), (512, 832), (416, 672)]),
        # one patch is the least
        ((32, 32), 32, []),
    ],
)
def test_sizes_are_parts_of_the_original_in_multiples_of_the_unit(
    whole: tuple[int, int], unit: int, wanted: list[tuple[int, int]]
) -> None:
    assert size.smaller_sizes(whole, unit) == wanted


@pytest.mark.parametrize(
    ("kernel", "stride", "sides", "unit"),
    [
        (8, 8, (56, 56), 8),  # a ViT of patch 8: 56 would leave one step
        (16, 16, (224, 224), 16),  # 32 divides 224, too, and would leave seven steps
        (14, 14, (560, 560), 70),  # 70 divides 560, and leaves eight steps
        (7, 2, (640, 640), 64),  # a ResNet
        (7, 2, (800, 1066), 32),  # nothing divides 1066
    ],
)
def test_the_unit_is_the_patch_or_the_stride_and_what_of_it_divides_the_sides(
    kernel: int, stride: int, sides: tuple[int, int], unit: int
) -> None:
    weights = np.zeros((1, 3, kernel, kernel), np.float32)
    attributes = f"kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}]"
    model = graph(f"y = Conv <{attributes}> (x, w)", "float[N,3,H,W] x", "float[N,1,R,C] y", w=weights)
    spec = replace(CLASSIFIER, preprocessing=Preprocessing(sides))
    assert size.unit_of(model.graph, spec) == unit


def test_a_graph_of_open_size_keeps_its_nodes_and_gets_another_spec(tmp_path: Path) -> None:
    artifact = classifier(tmp_path, "N,3,H,W", replace(CLASSIFIER, preprocessing=Preprocessing((256, 320))))
    variants = size.variants(situation(artifact))
    assert [one.stage for one in variants] == ["size:224x288", "size:192x256", "size:160x192", "size:128x160"]
    built = made(variants, "size:192x256")
    changed = onnx.load(built.artifact.path)
    assert list(changed.graph.node) == list(onnx.load(artifact.path).graph.node)
    assert read_spec(changed) == built.artifact.spec
    assert built.artifact.spec.preprocessing == Preprocessing((192, 256))
    prepared = feeds([np.zeros((50, 60, 3), np.uint8)], built.artifact.spec)
    assert prepared["x"].shape == (1, 3, 192, 256)


def test_images_that_had_to_fit_are_stretched_to_another_size(tmp_path: Path) -> None:
    rules = Preprocessing((256, 256), resize=Resize.NONE)
    artifact = classifier(tmp_path, "N,3,H,W", replace(CLASSIFIER, preprocessing=rules))
    built = made(size.variants(situation(artifact)), "size:224x224")
    assert built.artifact.spec.preprocessing == Preprocessing((224, 224), resize=Resize.STRETCH)
    assert "images are stretched to the new size; the original took them as they are" in built.notes


def test_one_open_side_is_not_any_size(tmp_path: Path) -> None:
    artifact = classifier(tmp_path, "N,3,64,W")
    with pytest.raises(NotApplicable, match="the graph takes images of 64×96 only"):
        size.variants(situation(artifact))


def test_a_fixed_graph_without_its_checkpoint_is_refused_with_the_way_out() -> None:
    path, spec = deimv2()
    artifact = replace(as_artifact(path), spec=spec)
    for model in (None, path):
        with pytest.raises(NotApplicable, match="the graph takes images of 320×320 only") as caught:
            size.variants(situation(artifact, model=model))
        assert caught.value.fix == (
            "optimize the checkpoint itself, or export with --dynamic batch,height,width"
        )


def test_one_patch_cannot_become_smaller(tmp_path: Path) -> None:
    spec = replace(CLASSIFIER, preprocessing=Preprocessing((32, 32)))
    with pytest.raises(NotApplicable, match="images of 32×32 have too few patches for a smaller size"):
        size.variants(situation(classifier(tmp_path, "N,3,H,W", spec)))


def test_a_checkpoint_is_exported_again_and_answers_as_torch_does_at_that_size(
    tiny_detr: tuple[Artifact, Path],
) -> None:
    import torch

    from vitesse.sources.detr_checkpoint import load_detr

    artifact, checkpoint = tiny_detr
    assert artifact.spec.preprocessing.size == SIZE == (75, 110)
    variants = size.variants(situation(artifact, model=checkpoint))
    assert [one.stage for one in variants] == ["size:64x96", "size:32x64"]
    built = made(variants, "size:64x96")
    spec = built.artifact.spec
    assert spec == replace(artifact.spec, preprocessing=replace(artifact.spec.preprocessing, size=(64, 96)))
    picture = np.random.default_rng(3).integers(0, 256, (120, 90, 3), np.uint8)
    prepared = feeds([picture], spec)
    model = load_detr(checkpoint)
    model.fix_size((64, 96))
    with torch.no_grad():
        logits, boxes = model(torch.from_numpy(prepared["images"]))
    found = outputs(built.artifact, prepared)
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=3e-4)
    np.testing.assert_allclose(found["boxes"], boxes.numpy(), atol=3e-5)
    operators = {node.op_type for node in onnx.load(built.artifact.path).graph.node}
    assert "Attention" in operators  # it was fused, too


def test_a_size_that_the_model_cannot_have_is_an_error_that_says_so(
    tiny_detr: tuple[Artifact, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "SCALES", (size.Fraction(1, 8),))
    artifact, checkpoint = tiny_detr
    (variant,) = size.variants(situation(artifact, model=checkpoint))
    with pytest.raises(ModelError, match="cannot be exported for images of 32×32"):
        monkeypatch.setattr("vitesse.sources.detr_checkpoint._LEAST_SIDE", 64)
        variant.make()
