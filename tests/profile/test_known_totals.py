"""Operations and parameters of two published models, exported with random weights: the counts are in their papers."""

from __future__ import annotations

import pytest

from vitesse.profile.costs import costs_of, total
from vitesse.profile.modules import Found, modules_of
from vitesse.profile.parts import Part

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("operators_listed_once")]


def test_vit_b16_has_17_5_billion_multiply_adds_and_86_6_million_parameters() -> None:
    from vitesse.export.torch_onnx import Network, trace
    from vitesse.sources.source import ExportOptions
    from vitesse.sources.vit import ViT, ViTConfig
    from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

    spec = ModelSpec(
        Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, Preprocessing((224, 224))
    )
    vit = ViT(ViTConfig((224, 224), 16, 768, 12, 12, 3072, 1000))
    network = Network(
        vit, {"images": torch.zeros(2, 3, 224, 224)}, ("logits",), spec, {"images": {0: "batch"}}
    )
    model = trace(network, ExportOptions())
    cost = total(costs_of(model, {"images": (1, 3, 224, 224)}))
    # Dosovitskiy et al. 2021, table 1: 86 M; multiply-adds as commonly published, 17.5 to 17.6 G.
    assert cost.parameters == pytest.approx(86.6e6, rel=0.002)
    # Our ViT computes the last block for the class token only: queries, output, MLP and attention of 196 tokens less.
    left_out = 2 * 196 * (2 * 768 * 768 + 2 * 768 * 3072) + 196 * 197 * 12 * (4 * 64 + 5)
    assert cost.flops + left_out == pytest.approx(2 * 17.6e9, rel=0.005)
    assert cost.unknown == 0
    found = modules_of(model)
    assert {place.part for place in found.places} == {Part.EMBEDDING, Part.BLOCKS, Part.HEADS}
    assert found.found()[Found.STRUCTURE] == 0


def test_detr_r50_has_41_5_million_parameters_most_of_its_operations_in_the_backbone() -> None:
    from vitesse.export.torch_onnx import Network, trace
    from vitesse.sources.detr import DETR, DETRConfig, fold_batch_norm
    from vitesse.sources.source import ExportOptions
    from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

    config = DETRConfig(
        64, (64, 128, 256, 512), (256, 512, 1024, 2048), (3, 4, 6, 3), 256, 8, 2048, 6, 6, 100, 92
    )
    detr = fold_batch_norm(DETR(config))
    detr.fix_size((800, 1066))
    spec = ModelSpec(
        Task.DETECTION,
        Decode.DETR_SOFTMAX,
        "images",
        {"logits": "logits", "boxes": "boxes"},
        Preprocessing((800, 1066)),
    )
    network = Network(
        detr, {"images": torch.zeros(1, 3, 800, 1066)}, ("logits", "boxes"), spec, {"images": {0: "batch"}}
    )
    model = trace(network, ExportOptions(dynamic=frozenset()))
    costs = costs_of(model, {"images": (1, 3, 800, 1066)})
    cost = total(costs)
    # Carion et al. 2020, table 1: 41 M parameters, 86 G multiply-adds on the sizes of COCO's validation images.
    assert cost.parameters == pytest.approx(41.5e6, rel=0.02)
    assert 150e9 < cost.flops < 200e9
    assert cost.unknown == 0
    places = modules_of(model).places
    by_part = {
        part: total([one for one, place in zip(costs, places, strict=True) if place.part is part])
        for part in Part
    }
    assert 0.7 < by_part[Part.BACKBONE].flops / cost.flops < 0.95
    assert by_part[Part.ENCODER].flops > 2 * by_part[Part.DECODER].flops > 0
    assert by_part[Part.HEADS].parameters == 92 * 256 + 92 + 2 * (256 * 256 + 256) + 256 * 4 + 4
    assert by_part[Part.OTHER].flops == 0
