"""Our DETR against DetrForObjectDetection of transformers, on the same random weights and a padded batch."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'vitesse[huggingface]'"
)

from sources.detr_models import padded, save  # noqa: E402
from vitesse.sources.detr import DETR, FrozenBatchNorm  # noqa: E402
from vitesse.sources.detr_checkpoint import infer_config, load_detr  # noqa: E402

# 333×517 and two smaller images, all at a third: odd, and no multiples of 32.
CANVAS = (111, 173)
SIZES = [(111, 99), (64, 173), (87, 140)]

# The name in transformers → the name in facebookresearch/detr; query, key and value are packed afterwards.
_NAMES = (
    (r"^model\.backbone\.model\.embedder\.embedder\.convolution\.", "backbone.0.body.conv1."),
    (r"^model\.backbone\.model\.embedder\.embedder\.normalization\.", "backbone.0.body.bn1."),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.", "backbone.0.body.layer{1}.{0}."),
    (r"\.layer\.(\d)\.convolution\.", ".conv{0}."),
    (r"\.layer\.(\d)\.normalization\.", ".bn{0}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.(encoder|decoder)\.layers\.", r"transformer.\1.layers."),
    (r"^model\.decoder\.layernorm\.", "transformer.decoder.norm."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.mlp\.fc(\d)\.", r".linear\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
)


def originals_name(name: str) -> str:
    """Rename one key; stages and convolutions count from 0 there, from 1 here."""
    for pattern, wanted in _NAMES:
        found = re.search(pattern, name)
        if found is None:
            continue
        if "{" in wanted:
            numbers = [int(number) for number in found.groups()]
            counted = {1: [numbers[-1] + 1], 2: [numbers[-1], numbers[0] + 1]}[len(numbers)]
            wanted = wanted.format(*counted)
        name = re.sub(pattern, wanted, name)
    return name


def originals_state(state: dict[str, Any]) -> dict[str, Any]:
    """Rename all keys and pack query, key and value into one projection."""
    renamed = {originals_name(name): tensor for name, tensor in state.items()}
    packed = {name: tensor for name, tensor in renamed.items() if not re.search(r"\.[qkv]_proj\.", name)}
    for name in renamed:
        if ".q_proj." in name:
            parts = [renamed[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            packed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return packed


def random_transformers_detr(layer_type: str) -> Any:
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 2], layer_type=layer_type,
        out_features=["stage4"],
    )  # fmt: skip
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=32, num_queries=7, num_labels=5,
        encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    # Not with auxiliary_loss=True: there transformers normalises the state that goes into the next layer, too.
    model = transformers.DetrForObjectDetection(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if "normalization" in name:
            tensor.copy_(0.5 + torch.rand_like(tensor))
        elif tensor.ndim > 1 and "query" not in name:
            tensor.copy_(1.5 * torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
        elif name.endswith("bias"):
            tensor.copy_(0.2 * torch.randn_like(tensor))
    return model


def everything(model: DETR, images: Any, sizes: Any) -> tuple[Any, Any]:
    model.keep_aux = True
    logits, boxes, aux_logits, aux_boxes = model(images, sizes)
    return torch.cat([aux_logits, logits[None]]), torch.cat([aux_boxes, boxes[None]])


@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_transformers_gives_the_same_logits_and_boxes_of_all_layers_on_a_padded_batch(
    tmp_path: Any, layer_type: str
) -> None:
    theirs = random_transformers_detr(layer_type)
    state = originals_state(theirs.state_dict())
    model = DETR(infer_config(tmp_path, state, heads=4, dilation=False)).eval().requires_grad_(False)
    model.load_state_dict(state)
    images, sizes = padded(SIZES, CANVAS), torch.tensor(SIZES)
    mask = torch.zeros(3, *CANVAS, dtype=torch.long)
    for row, (height, width) in zip(mask, SIZES, strict=True):
        row[:height, :width] = 1
    wanted = theirs(images, pixel_mask=mask, output_hidden_states=True)
    logits, boxes = everything(model, images, sizes)
    assert float((logits[-1] - wanted.logits).abs().max()) < 1e-4
    assert float((boxes[-1] - wanted.pred_boxes).abs().max()) < 1e-4
    assert (
        len(wanted.decoder_hidden_states) == 4
    )  # what goes in, what comes out of two layers, and the normed end
    for index, state in enumerate(wanted.decoder_hidden_states[1:3]):
        normed = theirs.model.decoder.layernorm(state)
        assert float((logits[index] - theirs.class_labels_classifier(normed)).abs().max()) < 1e-4
        assert float((boxes[index] - theirs.bbox_predictor(normed).sigmoid()).abs().max()) < 1e-4
    # The comparison can fail: another number of heads, or no mask, is another answer.
    assert float((everything(model, images, None)[0] - logits).abs().max()) > 1e-2
    other_heads = load_detr(save(tmp_path / "a.pth", model), {"heads": "8"})
    assert float((everything(other_heads, images, sizes)[0] - logits).abs().max()) > 1e-2
    assert any(isinstance(module, FrozenBatchNorm) for module in model.modules())
