"""Keeping k decoder layers must give the model's own auxiliary output k, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from compress.detr_levers import SIZE, copied, fused, made, outputs, situation, stored  # noqa: E402
from fashion import VIT, artifact_of, without_names  # noqa: E402
from fusing import ops  # noqa: E402
from shared_data import shared  # noqa: E402
from sources.detr_models import TINY, random_detr, save  # noqa: E402
from vitesse.artifact import Artifact, Store  # noqa: E402
from vitesse.compress import decoder  # noqa: E402
from vitesse.compress.lever import NotApplicable  # noqa: E402
from vitesse.sources.detr import DETR  # noqa: E402
from vitesse.sources.detr_checkpoint import load_detr  # noqa: E402
from vitesse.sources.onnx_file import load_onnx  # noqa: E402

pytestmark = pytest.mark.usefixtures("operators_listed_once")


def all_layers(model: DETR, images: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """Torch's predictions of every decoder layer, first layer first; eight heads, as the exporter assumes."""
    model.keep_aux = True
    model.fix_size(images.shape[2:])
    last_logits, last_boxes, logits, boxes = model(images)
    pairs = zip([*logits, last_logits], [*boxes, last_boxes], strict=True)
    return [{"logits": one.numpy(), "boxes": other.numpy()} for one, other in pairs]


def furthest(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    return max(float(np.abs(found[role] - wanted[role]).max()) for role in wanted)


def pre_norm_detr(folder: Path) -> tuple[Artifact, Path]:
    checkpoint = save(folder / "pre_norm.pth", random_detr(replace(TINY, pre_norm=True)))
    return fused(checkpoint, Store(folder)), checkpoint


@pytest.mark.parametrize("form", ["post-norm", "pre-norm"])
def test_the_heads_behind_layer_k_are_torchs_own_auxiliary_heads(
    tiny_detr: tuple[Artifact, Path], tmp_path: Path, form: str
) -> None:
    artifact, checkpoint = tiny_detr if form == "post-norm" else pre_norm_detr(tmp_path)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    wanted = all_layers(load_detr(checkpoint), images)
    variants = decoder.variants(situation(artifact))
    assert [one.stage for one in variants] == ["decoder:2", "decoder:1"]
    for kept in (1, 2):
        built = made(variants, f"decoder:{kept}")
        found = outputs(built.artifact, {artifact.spec.image_input: images.numpy()})
        # two frameworks round logits of order 2 to about 1e-5; any other layer is a thousand times further away
        assert furthest(found, wanted[kept - 1]) < 3e-5
        assert all(furthest(found, other) > 0.03 for at, other in enumerate(wanted) if at != kept - 1)


def test_a_dropped_layer_takes_its_operators_and_weights_along(fashion_detr: Artifact) -> None:
    variants = decoder.variants(situation(fashion_detr))
    assert [one.stage for one in variants] == [f"decoder:{kept}" for kept in (5, 4, 3, 2, 1)]
    built = made(variants, "decoder:4")
    before, after = ops(load_onnx(fashion_detr.path)), ops(load_onnx(built.artifact.path))
    # by hand: a layer of a post-norm DETR has two attentions and three norms
    assert before["Attention"] - after["Attention"] == 4
    assert before["LayerNormalization"] - after["LayerNormalization"] == 6
    assert built.changes["dropped_decoder_layers"] == 2
    # 2 · (8 · 128 · 128 + 2 · 128 · 512) weights of four bytes, and their biases and norms
    assert fashion_detr.bytes - built.artifact.bytes > 2 * 4 * (8 * 128 * 128 + 2 * 128 * 512)
    assert built.notes == (
        "the heads read layer 4 of 6 of transformer.decoder.layers, as auxiliary heads do in training",
    )
    assert built.artifact.spec == fashion_detr.spec


@pytest.mark.slow
def test_the_trained_model_gives_its_published_predictions_of_every_layer(tmp_path: Path) -> None:
    """Against the outputs of facebookresearch/detr's own code on all six layers, float32 on another machine."""
    folder = shared("detr_fashion")
    with np.load(folder / "reference_outputs.npz", allow_pickle=False) as reference:
        names, logits, boxes = reference["files"], reference["logits"], reference["boxes"]
    pixels = np.stack([np.asarray(Image.open(folder / "val" / str(name)).convert("RGB")) for name in names])
    images = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    feeds = {"images": images.transpose(0, 3, 1, 2).astype(np.float32)}
    variants = decoder.variants(situation(fused(folder / "detr_fashion.pth", Store(tmp_path), (256, 256))))
    assert len(variants) == 5
    for variant in variants:
        kept = int(variant.stage.partition(":")[2])
        found = outputs(variant.make().artifact, feeds)
        np.testing.assert_allclose(found["boxes"], boxes[kept - 1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["logits"], logits[kept - 1], rtol=0, atol=2e-4)


def test_modules_are_still_known_after_layers_are_gone(fashion_detr: Artifact) -> None:
    shorter = made(decoder.variants(situation(fashion_detr)), "decoder:3").artifact
    again = decoder.variants(situation(shorter))
    assert [one.stage for one in again] == ["decoder:2", "decoder:1"]


def test_a_classifier_has_no_decoder() -> None:
    with pytest.raises(NotApplicable, match="the model is a classifier: it has no decoder layers"):
        decoder.variants(situation(artifact_of(VIT)))


def test_a_graph_without_names_is_refused(fashion_detr: Artifact) -> None:
    bare = stored(fashion_detr, without_names(load_onnx(fashion_detr.path)))
    with pytest.raises(NotApplicable, match="no decoder layers are to be seen in the graph"):
        decoder.variants(situation(bare))


def test_a_single_layer_cannot_be_dropped(fashion_detr: Artifact) -> None:
    one = made(decoder.variants(situation(fashion_detr)), "decoder:1").artifact
    with pytest.raises(NotApplicable, match="the decoder has a single layer"):
        decoder.variants(situation(one))


def _node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def _last_states(model: onnx.ModelProto) -> list[str]:
    """What decoder layers 5 and 6 hand on: the input of the last norm, and that of the norm's third before it."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    return [norms[-5].output[0], norms[-1].input[0]]


def test_boxes_that_build_on_an_earlier_layer_are_refused(fashion_detr: Artifact) -> None:
    """As in iterative refinement: the offsets of the last layer are added to what an inner layer predicts."""
    model = copied(fashion_detr)
    fifth, _ = _last_states(model)
    sigmoid = _node(model, "boxes")
    weight = onnx.numpy_helper.from_array(np.zeros((128, 4), np.float32), "inner_head")
    model.graph.initializer.append(weight)
    nodes = [
        onnx.helper.make_node("MatMul", [fifth, "inner_head"], ["inner_boxes"], name="/head/inner/MatMul"),
        onnx.helper.make_node("Add", [sigmoid.input[0], "inner_boxes"], ["refined"], name="/head/refine/Add"),
    ]
    sigmoid.input[0] = "refined"
    at = list(model.graph.node).index(sigmoid)
    for node in reversed(nodes):
        model.graph.node.insert(at, node)
    with pytest.raises(
        NotApplicable, match="the predictions are built on `inner_boxes`, which earlier"
    ) as caught:
        decoder.variants(situation(stored(fashion_detr, model)))
    assert "refined from layer to layer" in caught.value.cause


def test_heads_of_their_own_for_every_layer_are_refused(fashion_detr: Artifact) -> None:
    model = copied(fashion_detr)
    for node in model.graph.node:
        for entry in node.metadata_props:
            entry.value = entry.value.replace("class_embed", "class_embed.5")
    with pytest.raises(NotApplicable, match="of class_embed the graph holds the last only"):
        decoder.variants(situation(stored(fashion_detr, model)))


def test_a_layer_that_reads_past_its_neighbour_is_refused(fashion_detr: Artifact) -> None:
    model = copied(fashion_detr)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    second, fourth = norms[-20 + 3].output[0], norms[-20 + 9].output[0]
    readers = [node for node in model.graph.node if fourth in node.input]
    assert len(readers) == 3  # queries and keys, values, and the residual connection
    readers[0].input[list(readers[0].input).index(fourth)] = second
    with pytest.raises(NotApplicable, match=r"hands on|of other layers"):
        decoder.variants(situation(stored(fashion_detr, model)))


def test_a_decoder_without_residual_connections_is_refused(fashion_detr: Artifact) -> None:
    model = copied(fashion_detr)
    fifth, _ = _last_states(model)
    add = next(
        node
        for node in model.graph.node
        if node.op_type == "Add" and fifth in node.input and "linear" in "".join(node.input)
    )
    add.op_type = "Mul"
    with pytest.raises(NotApplicable, match="does not add to what layer 5 hands on"):
        decoder.variants(situation(stored(fashion_detr, model)))
