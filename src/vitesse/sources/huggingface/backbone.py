"""ResNets that a config takes from timm → the same ResNets of transformers, so that timm need not be installed.

Most DETRs of the hub were saved with timm's ResNet inside. Its blocks are those of transformers under other names,
so the weights are renamed while they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import ResNetConfig

from vitesse.errors import MissingExtra

# Blocks per stage; He et al. 2015 (arXiv:1512.03385), table 1. timm strides in the 3×3 convolution.
_BASIC: Mapping[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_BOTTLENECK: Mapping[str, tuple[int, ...]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_WIDTHS = (64, 128, 256, 512)


def native_backbone(config: Any) -> Mapping[str, str] | None:
    """Replace a ResNet of timm in `config`, in place, by the one of transformers.

    Returns:
        what to rename in the checkpoint: regular expression → replacement; None where the backbone is left as it is.

    Raises:
        MissingExtra: the backbone is of timm and is no plain ResNet (a DC5, for example), and timm is not here.
    """
    backbone: Any = getattr(config, "backbone_config", None)
    if backbone is None or backbone.model_type != "timm_backbone":
        return None
    name = str(backbone.backbone).partition(".")[0]
    stages = _BOTTLENECK.get(name) or _BASIC.get(name)
    if stages is None or getattr(config, "dilation", False):
        _require_timm(name, dilated=getattr(config, "dilation", False))
        return None
    bottleneck = name in _BOTTLENECK
    config.backbone_config = ResNetConfig(
        num_channels=backbone.num_channels,
        embedding_size=64,
        hidden_sizes=[width * 4 if bottleneck else width for width in _WIDTHS],
        depths=list(stages),
        layer_type="bottleneck" if bottleneck else "basic",
        out_indices=list(backbone.out_indices),
    )
    return _names(convolutions=3 if bottleneck else 2)


def _names(convolutions: int) -> dict[str, str]:
    """timm's names of a ResNet's tensors, after `….model.`, → those of transformers."""
    body = r"(?<=\.model\.)(?:_backbone\.)?"
    names = {
        rf"{body}conv1\.": "embedder.embedder.convolution.",
        rf"{body}bn1\.": "embedder.embedder.normalization.",
    }
    for stage in range(4):
        block, into = rf"{body}layer{stage + 1}\.(\d+)\.", rf"encoder.stages.{stage}.layers.\1"
        for index in range(convolutions):
            names[rf"{block}conv{index + 1}\."] = f"{into}.layer.{index}.convolution."
            names[rf"{block}bn{index + 1}\."] = f"{into}.layer.{index}.normalization."
        names[rf"{block}downsample\.0\."] = f"{into}.shortcut.convolution."
        names[rf"{block}downsample\.1\."] = f"{into}.shortcut.normalization."
    return names


def _require_timm(name: str, *, dilated: bool) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise MissingExtra(
            f"the backbone {name}{' with dilation (DC5)' if dilated else ''} is one of timm, which cannot be imported",
            expected=f"timm, or a plain {', '.join([*_BASIC, *_BOTTLENECK])}",
            fix="pip install 'vitesse[timm]'",
        ) from error
