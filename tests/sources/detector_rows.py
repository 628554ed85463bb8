"""Tiny random detectors of transformers, and what must come out of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sources.model_rows import ModelRow
from vitesse.sources.source import Source

LABELS = ("ant", "bee", "cat", "dog", "elk")
QUERIES = 7
ANY_SIZE = frozenset({"batch", "height", "width"})

# Processor files as the models on the hub have them.
DETR_FILE = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DetrFeatureExtractor",
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 1333,
    "size": 800,
}
RT_DETR_FILE = {
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "RTDetrImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 640, "width": 640},
}
RF_DETR_FILE = {
    "do_normalize": True,
    "do_resize": True,
    "image_processor_type": "RfDetrImageProcessor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 64, "width": 64},
}

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
DETR = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": QUERIES,
}
RT_DETR = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "encoder_layers": 1,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "hidden_expansion": 0.5,
    "d_model": 32,
    "num_queries": QUERIES,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 48,
    "decoder_n_points": 2,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
}
HGNET = {
    "stem_channels": [3, 8, 8],
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "stage_in_channels": [8, 8, 16, 24],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [8, 16, 24, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
}
WINDOWED_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 64,
    "patch_size": 16,
    "out_indices": [1, 3],
}
LW_DETR = {
    "d_model": 32,
    "decoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "decoder_n_points": 2,
    "num_queries": QUERIES,
    "num_feature_levels": 1,
    "group_detr": 3,
    "projector_scale_factors": [1.0],
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 1,
}
YOLOS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": [64, 96],
    "patch_size": 16,
    "num_detection_tokens": QUERIES,
    "use_mid_position_embeddings": True,
}
TWO_STAGE = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": QUERIES}
DEFORMABLE = {**DETR, "d_model": 32, "num_feature_levels": 2}
SAMPLED = "deformable attention samples by GridSample and is no Attention; it is not counted"
FIXED = f"{SAMPLED}; the sizes of the feature maps are fixed in the code of transformers"

Backbone = tuple[str, Mapping[str, Any]]
LAST = ("ResNetConfig", {**RESNET, "out_features": ["stage4"]})
RT_RESNET = ("RTDetrResNetConfig", {**RESNET, "out_features": ["stage2", "stage3", "stage4"]})


def tiny_model(loader: str, arguments: Mapping[str, Any], backbone: Backbone | None) -> Any:
    """Make the model `loader` names, with random weights and five classes of animals."""
    import torch
    import transformers

    torch.manual_seed(0)
    given = dict(arguments)
    if backbone is not None:
        kind, sizes = backbone
        given["backbone_config"] = getattr(transformers, kind)(**sizes)
    model = getattr(transformers, loader)
    config = model.config_class(
        id2label=dict(enumerate(LABELS)), label2id={label: at for at, label in enumerate(LABELS)}, **given
    )
    return randomise(model(config))


def randomise(model: Any) -> Any:
    """Give every tensor values as after training: outputs of order 1, no two scores alike, no norm an identity."""
    import torch

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, tensor in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ):
                noise = torch.randn(tensor.shape, generator=random)
                if name == "running_var":
                    tensor.copy_(0.5 + 0.1 * noise.abs())
                elif is_norm and tensor.dtype == torch.float32:
                    tensor.copy_((1.0 if name == "weight" else 0.0) + 0.1 * noise)
                elif isinstance(tensor, torch.nn.Parameter):
                    embeds = isinstance(module, torch.nn.Embedding)
                    scale = 1.0 if embeds else tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.1
                    tensor.copy_(scale * noise)
    return model.eval()


def save(model: Any, folder: Path, processor: Mapping[str, Any]) -> Path:
    """Write what a folder of the hub holds: config, weights as safetensors, processor file."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def opened(make: Callable[[], Any], processor: Mapping[str, Any], folder: Path) -> Source:
    """Save a model and open the folder as a user would."""
    from vitesse.sources.huggingface.loading import open_huggingface

    return open_huggingface(str(save(make(), folder, processor)))


def row(
    name: str,
    how: str,
    loader: str,
    arguments: Mapping[str, Any],
    backbone: Backbone | None = None,
    *,
    processor: Mapping[str, Any] = DETR_FILE,
    size: tuple[int, int] = (64, 96),
    counts: tuple[int, int, int],
    **expected: Any,
) -> ModelRow:
    """A row; `counts` are parameters, LayerNorms and attention blocks, all of which are fused."""
    parameters, layer_norms, blocks = counts
    source = partial(opened, partial(tiny_model, loader, arguments, backbone), processor)
    return ModelRow(
        name, f"hf:{how}", source, size, parameters, layer_norms, blocks, blocks, loader=loader, **expected
    )


ROWS: tuple[ModelRow, ...] = (
    row(
        "DETR",
        "facebook/detr-resnet-50",
        "DetrForObjectDetection",
        {**DETR, "d_model": 32},
        LAST,
        counts=(66706, 9, 5),
    ),
    row(
        "DETR at any size",
        "facebook/detr-resnet-50",
        "DetrForObjectDetection",
        {**DETR, "d_model": 32},
        LAST,
        counts=(66706, 9, 5),
        dynamic=ANY_SIZE,
    ),
    row(
        "Conditional DETR",
        "microsoft/conditional-detr-resnet-50",
        "ConditionalDetrForObjectDetection",
        {**DETR, "d_model": 32},
        LAST,
        counts=(79411, 9, 5),
        dynamic=ANY_SIZE,
    ),
    row(
        "DAB-DETR",
        "IDEA-Research/dab-detr-resnet-50",
        "DabDetrForObjectDetection",
        {**DETR, "hidden_size": 32},
        LAST,
        counts=(84466, 9, 5),
        dynamic=ANY_SIZE,
    ),
    row(
        "Table Transformer",
        "microsoft/table-transformer-detection",
        "TableTransformerForObjectDetection",
        {**DETR, "d_model": 32},
        LAST,
        counts=(66770, 10, 5),
        note="height and width can be open, too; attention with a padding mask is then fused in 2 of 5",
    ),
    row(
        "Deformable DETR",
        "SenseTime/deformable-detr",
        "DeformableDetrForObjectDetection",
        DEFORMABLE,
        LAST,
        counts=(79507, 8, 2),
        note=FIXED,
    ),
    row(
        "Deformable DETR, two-stage",
        "SenseTime/deformable-detr-with-box-refine-two-stage",
        "DeformableDetrForObjectDetection",
        {**DEFORMABLE, **TWO_STAGE},
        LAST,
        counts=(89219, 10, 2),
        note=FIXED,
    ),
    row(
        "LW-DETR",
        "AnnaZhang/lwdetr_small_60e_coco",
        "LwDetrForObjectDetection",
        LW_DETR,
        (
            "LwDetrViTConfig",
            {**WINDOWED_VIT, "num_windows": 4, "window_block_indices": [0, 2], "pretrain_image_size": 64},
        ),
        size=(64, 64),
        counts=(97224, 15, 5),
        note=FIXED,
    ),
    row(
        "RF-DETR",
        "Roboflow/rf-detr-base",
        "RfDetrForObjectDetection",
        LW_DETR,
        ("RfDetrDinov2Config", {**WINDOWED_VIT, "num_windows": 2, "window_block_indexes": [0, 2]}),
        processor=RF_DETR_FILE,
        size=(64, 64),
        counts=(97448, 21, 5),
        note=FIXED,
    ),
    row(
        "RT-DETR",
        "PekingU/rtdetr_r50vd",
        "RTDetrForObjectDetection",
        RT_DETR,
        RT_RESNET,
        processor=RT_DETR_FILE,
        counts=(142551, 9, 3),
        note=FIXED,
    ),
    row(
        "RT-DETR v2",
        "PekingU/rtdetr_v2_r50vd",
        "RTDetrV2ForObjectDetection",
        RT_DETR,
        RT_RESNET,
        processor=RT_DETR_FILE,
        counts=(142551, 9, 3),
        note=FIXED,
    ),
    row(
        "D-FINE",
        "ustc-community/dfine-xlarge-coco",
        "DFineForObjectDetection",
        {**RT_DETR, "decoder_n_points": [2, 2, 2], "depth_mult": 0.34},
        ("HGNetV2Config", {**HGNET, "out_features": ["stage2", "stage3", "stage4"]}),
        processor=RT_DETR_FILE,
        counts=(113979, 9, 3),
        note=FIXED,
    ),
    row("YOLOS", "hustvl/yolos-tiny", "YolosForObjectDetection", YOLOS, counts=(55066, 7, 3)),
)
