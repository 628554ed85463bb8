"""Tiny random classifiers of transformers and timm, and what must come out of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sources.model_rows import ModelRow
from vitesse.sources.source import Given, Source

CLASSES = 10
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": CLASSES,
}
PLAIN = {**VIT, "intermediate_size": 64}
DINO = {**VIT, "mlp_ratio": 2}
# A stage with a plain and a shifted window, and one whose image is one window.
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": CLASSES,
}
ANY_SIZE = frozenset({"batch", "height", "width"})
TIMM_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8}
TIMM_SWIN = {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
COSINE = "cosine attention: the scale of the scores is one learnt number a head, which an Attention operator has not"
SHIFTED = "of a shifted window the mask is added on five axes, between two reshapes; windows without a shift are fused"


def randomise(model: Any) -> Any:
    """Move every parameter away from where training starts, so that no norm, scale or bias is without effect."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def transformers_source(loader: str, arguments: dict[str, Any], folder: Path) -> Source:
    """Save a random model as `save_pretrained` does, with a processor file, and open the folder."""
    import torch
    import transformers

    from vitesse.sources.huggingface.loading import open_huggingface

    torch.manual_seed(0)
    kind = getattr(transformers, loader)
    model = randomise(kind(kind.config_class(initializer_range=0.2, **arguments)))
    model.save_pretrained(folder)
    side = arguments["image_size"]
    processor = {**PROCESSOR, "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return open_huggingface(str(folder))


def timm_source(name: str, arguments: dict[str, Any], side: int, folder: Path) -> Source:
    """Save the weights of a random model, and open them under the architecture's name."""
    from vitesse.sources.timm_models import open_timm  # says what is missing where timm cannot be imported

    import timm  # isort: skip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = randomise(timm.create_model(name, img_size=side, num_classes=CLASSES, **arguments))
    path = folder / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    settings = {key: str(value) for key, value in arguments.items()}
    return open_timm(name, Given(settings=settings), weights=path)


def hf(name: str, how: str, loader: str, arguments: dict[str, Any], **expected: Any) -> ModelRow:
    """A row of transformers."""
    source: Callable[[Path], Source] = partial(transformers_source, loader, arguments)
    size = (arguments["image_size"],) * 2
    return ModelRow(name, f"hf:{how}", source, size, loader=loader, **expected)


def of_timm(name: str, model: str, arguments: dict[str, Any], side: int = 32, **expected: Any) -> ModelRow:
    """A row of timm."""
    source: Callable[[Path], Source] = partial(timm_source, model, arguments, side)
    return ModelRow(f"{name} (timm)", f"timm:{model}", source, (side, side), **expected)


def counts(parameters: int, layer_norms: int, blocks: int, fused: int | None = None) -> dict[str, int]:
    """Expectations by position; `fused` where not every attention block is."""
    return {
        "parameters": parameters,
        "layer_norms": layer_norms,
        "attention_blocks": blocks,
        "attention_fused": blocks if fused is None else fused,
    }


ROWS: tuple[ModelRow, ...] = (
    hf(
        "ViT (HF), one size",
        "google/vit-base-patch16-224",
        "ViTForImageClassification",
        PLAIN,
        **counts(24234, 5, 2),
    ),
    hf(
        "ViT (HF), any size",
        "google/vit-base-patch16-224",
        "ViTForImageClassification",
        PLAIN,
        **counts(24234, 5, 2),
        dynamic=ANY_SIZE,
    ),
    hf(
        "DeiT",
        "facebook/deit-base-patch16-224",
        "DeiTForImageClassification",
        PLAIN,
        **counts(24298, 5, 2),
        dynamic=ANY_SIZE,
    ),
    hf(
        "DeiT with distillation",
        "facebook/deit-base-distilled-patch16-224",
        "DeiTForImageClassificationWithTeacher",
        PLAIN,
        **counts(24628, 5, 2),
        dynamic=ANY_SIZE,
    ),
    hf(
        "DINOv2",
        "facebook/dinov2-small-imagenet1k-1-layer",
        "Dinov2ForImageClassification",
        DINO,
        **counts(24714, 5, 2),
        dynamic=ANY_SIZE,
    ),
    hf(
        "DINOv2 with registers",
        "facebook/dinov2-with-registers-small-imagenet1k-1-layer",
        "Dinov2WithRegistersForImageClassification",
        {**DINO, "num_register_tokens": 2},
        **counts(24778, 5, 2),
    ),
    hf(
        "BEiT",
        "microsoft/beit-base-patch16-224",
        "BeitForImageClassification",
        {**PLAIN, "use_relative_position_bias": True},
        **counts(24170, 5, 2),
    ),
    hf(
        "ViT-MSN",
        "./vit_msn_folder",
        "ViTMSNForImageClassification",
        PLAIN,
        **counts(24234, 5, 2),
        dynamic=ANY_SIZE,
    ),
    hf(
        "Swin",
        "microsoft/swin-tiny-patch4-window7-224",
        "SwinForImageClassification",
        SWIN,
        **counts(23042, 9, 3),
    ),
    hf(
        "Swin v2",
        "microsoft/swinv2-tiny-patch4-window8-256",
        "Swinv2ForImageClassification",
        SWIN,
        **counts(31234, 9, 3, 0),
        note=COSINE,
    ),
    of_timm("ViT", "vit_tiny_patch16_224", TIMM_VIT, **counts(32554, 5, 2)),
    of_timm("DeiT with distillation", "deit_tiny_distilled_patch16_224", TIMM_VIT, **counts(32948, 5, 2)),
    of_timm("DeiT III", "deit3_small_patch16_224", TIMM_VIT, **counts(32650, 5, 2)),
    of_timm("DINOv2 with registers", "vit_small_patch14_reg4_dinov2", TIMM_VIT, **counts(32778, 5, 2)),
    of_timm("BEiT", "beit_base_patch16_224", TIMM_VIT, **counts(32490, 5, 2)),
    of_timm("BEiT v2", "beitv2_base_patch16_224", TIMM_VIT, **counts(32490, 5, 2)),
    of_timm("EVA-02", "eva02_tiny_patch14_224", TIMM_VIT, **counts(32510, 5, 2)),
    of_timm("Swin", "swin_tiny_patch4_window7_224", TIMM_SWIN, 32, **counts(23042, 9, 3, 2), note=SHIFTED),
    of_timm("Swin v2", "swinv2_tiny_window8_256", TIMM_SWIN, 32, **counts(31234, 9, 3, 0), note=COSINE),
)
