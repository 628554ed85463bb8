"""Every node has a part and a module: by its name, by its neighbours, by the structure of the graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from deimv2 import deimv2
from fashion import DETR, VIT, without_names
from fusing import graph
from vitesse.backends.onnxruntime_lowering import lower
from vitesse.fusion import clean_model, fuse_model
from vitesse.profile.costs import costs_of
from vitesse.profile.modules import WORK, Found, Place, modules_of
from vitesse.profile.parts import Part, part_by_name


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("backbone.0.body.layer1.0.conv1", Part.BACKBONE),
        ("input_proj", Part.NECK),
        ("transformer.encoder.layers.0.self_attn", Part.ENCODER),
        ("transformer.decoder.layers.0.multihead_attn", Part.DECODER),
        ("bbox_embed.layers.2", Part.HEADS),
        ("model.backbone.conv_encoder.model.encoder.stages.0", Part.BACKBONE),
        ("model.encoder_input_proj.0", Part.NECK),
        ("model.decoder.bbox_embed.0", Part.HEADS),
        ("model.enc_score_head", Part.DECODER),
        ("class_labels_classifier", Part.HEADS),
        ("model.decoder.decoder.pre_bbox_head", Part.HEADS),
        ("model.decoder.decoder.query_pos_head", Part.DECODER),
        ("postprocessor", Part.POST),
        ("DetrDecoder.DetrDecoderLayer", Part.DECODER),
        ("something.unheard_of", None),
    ],
)
def test_the_names_of_the_detr_family_are_known(module: str, part: Part | None) -> None:
    assert part_by_name(tuple(module.split(".")), decoder=True) is part


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("patch_embed.proj", Part.EMBEDDING),
        ("vit.embeddings.patch_embeddings", Part.EMBEDDING),
        ("vit.encoder.layer.0.layernorm_before", Part.BLOCKS),
        ("blocks.3.attn.qkv", Part.BLOCKS),
        ("Transformer.encoderblock_0.LayerNorm_0", Part.BLOCKS),
        ("Transformer.encoder_norm", Part.HEADS),
        ("norm", Part.HEADS),
        ("head", Part.HEADS),
        ("classifier", Part.HEADS),
    ],
)
def test_the_names_of_vits_are_known_where_there_is_no_decoder(module: str, part: Part) -> None:
    assert part_by_name(tuple(module.split(".")), decoder=False) is part


def test_every_node_of_our_detr_is_placed_by_names_and_neighbours() -> None:
    found = modules_of(onnx.load(DETR))
    counts = Counter(place.part for place in found.places)
    assert set(counts) == {Part.BACKBONE, Part.NECK, Part.ENCODER, Part.DECODER, Part.HEADS}
    assert found.found()[Found.NAME] > 0.8 * len(found.places)
    assert found.found()[Found.STRUCTURE] == 0
    boxes = found.place_of("boxes")  # the sigmoid outside every module
    assert boxes == Place(Part.HEADS, boxes.path, Found.NEIGHBOURS)


def test_a_foreign_detector_is_placed_by_the_scopes_in_its_node_names() -> None:
    path, _ = deimv2()
    found = modules_of(onnx.load(path))
    assert {place.part for place in found.places} == {
        Part.BACKBONE,
        Part.ENCODER,
        Part.DECODER,
        Part.HEADS,
        Part.POST,
    }
    top = found.place_of("/postprocessor/TopK")
    assert top is not None
    assert (top.part, top.path) == (Part.POST, ("postprocessor",))


@pytest.mark.parametrize(("path", "most_wrong"), [(DETR, 1), (VIT, 0)])
def test_without_any_name_the_structure_tells_the_same(path: object, most_wrong: int) -> None:
    model = onnx.load(path)
    named, bare = modules_of(model), modules_of(without_names(model))
    assert bare.found()[Found.STRUCTURE] == len(bare.places)
    pairs = [
        (one.part, other.part)
        for one, other, node in zip(named.places, bare.places, model.graph.node, strict=True)
        if node.op_type in WORK
    ]
    # Only the input projection, a convolution like any other, cannot be told from the backbone.
    wrong = Counter(pair for pair in pairs if pair[0] is not pair[1])
    assert wrong.total() <= most_wrong
    assert set(wrong) <= {(Part.NECK, Part.BACKBONE)}


@pytest.mark.slow
@pytest.mark.parametrize("path", [DETR, VIT])
def test_cleaning_fusing_and_lowering_leave_every_module_its_work(path: object) -> None:
    model = onnx.load(path)
    cleaned = clean_model(model).model
    fused = fuse_model(cleaned).model
    lowered, _ = lower(fused)
    assert len(_layers(cleaned)) > 20
    assert _layers(fused) == _layers(cleaned)
    assert _layers(lowered) == _layers(cleaned)
    assert _parameters(fused) == _parameters(cleaned) == _parameters(model)


def _layers(model: onnx.ModelProto) -> set[tuple[Part, tuple[str, ...]]]:
    """Modules that hold a layer with weights; inside attention, fusing joins them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        (place.part, tuple(name for name in place.path if "att" not in name))
        for place, node in zip(modules_of(model).places, model.graph.node, strict=True)
        if node.op_type in WORK and constants & set(node.input)
    }


def _parameters(model: onnx.ModelProto) -> dict[Part, int]:
    shapes = {
        value.name: [one.dim_value or 1 for one in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    found: Counter[Part] = Counter()
    for place, cost in zip(modules_of(model).places, costs_of(model, shapes), strict=True):
        found[place.part] += cost.parameters
    return {part: count for part, count in found.items() if count}


def test_quantisers_belong_to_what_they_feed() -> None:
    model = graph(
        """a = Conv(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z)
           k = DequantizeLinear(wq, s, zi) y = Conv(d, k)""",
        "float[N,4,8,8] x",
        "float[N,4,8,8] y",
        w=np.zeros((4, 4, 1, 1), np.float32),
        wq=np.zeros((4, 4, 1, 1), np.int8),
        s=0.1,
        z=np.uint8(0),
        zi=np.int8(0),
    )
    for node, name in zip(model.graph.node, ("/backbone/a", "", "", "", "/encoder/y"), strict=True):
        node.name = name
    model.graph.node.extend([onnx.helper.make_node("Relu", ["y"], ["r"], name="/decoder/r")])
    parts = [place.part for place in modules_of(model).places]
    assert parts == [Part.BACKBONE, Part.ENCODER, Part.ENCODER, Part.ENCODER, Part.ENCODER, Part.DECODER]


def test_what_works_on_the_pixels_first_is_preprocessing_and_a_top_k_behind_the_heads_postprocessing() -> (
    None
):
    model = graph(
        """p = Div(x, c) a = Conv(p, w) s = Sigmoid(a)
           f = Reshape(s, n) t, i = TopK<axis=1>(f, k) y = Add(t, c)""",
        "float[N,4,8,8] x",
        "float[N,5] y",
        w=np.zeros((4, 4, 1, 1), np.float32),
        c=2.0,
        n=np.array([0, 256]),
        k=np.array([5]),
    )
    model.graph.node[1].name = "/class_embed/Conv"
    found = modules_of(model)
    assert [place.part for place in found.places] == [
        Part.PRE,
        Part.HEADS,
        Part.HEADS,
        Part.HEADS,
        Part.POST,
        Part.POST,
    ]
    assert found.place_of("nowhere") is None


def test_a_fused_kernel_belongs_to_its_layer_and_not_to_what_follows() -> None:
    model = graph(
        "a = Conv(x, w) y = Relu(a)",
        "float[N,4,8,8] x",
        "float[N,4,8,8] y",
        w=np.zeros((4, 4, 1, 1), np.float32),
    )
    model.graph.node[0].name, model.graph.node[1].name = "/backbone/conv1/Conv", "/backbone/Relu"
    found = modules_of(model)
    assert found.place_of("y", "Conv").path == ("backbone", "conv1")
    assert found.place_of("y", "Relu").path == ("backbone",)
