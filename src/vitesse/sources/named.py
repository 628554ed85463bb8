"""Published models by name: where their weights lie, and what the weights do not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitesse.sources.download import Remote


@dataclass(frozen=True)
class Named:
    """Weights of a published model, and the settings (`--set`) that belong to them."""

    remote: Remote
    settings: Mapping[str, str] = field(default_factory=dict)


def _detr(file: str, **settings: str) -> Named:
    """A file of facebookresearch/detr; its name ends in the first digits of its sha256, as torch.hub has it."""
    digits = file.removesuffix(".pth").rpartition("-")[2]
    return Named(Remote(f"https://dl.fbaipublicfiles.com/detr/{file}", digits), settings)


def _vit(path: str) -> Named:
    """A file of google-research/vision_transformer, which publishes no hashes."""
    return Named(Remote(f"https://storage.googleapis.com/vit_models/{path}.npz"))


def _augreg(pretraining: str, learning_rate: str) -> Named:
    """The recommended ImageNet-1k fine-tuning of an architecture, at 384 pixels (table in the repository's README)."""
    return _vit(f"augreg/{pretraining}--imagenet2012-steps_20k-lr_{learning_rate}-res_384")


NAMED: Mapping[str, Named] = {
    "detr_resnet50": _detr("detr-r50-e632da11.pth"),
    "detr_resnet101": _detr("detr-r101-2c7b67e5.pth"),
    "detr_resnet50_dc5": _detr("detr-r50-dc5-f0fb7ef5.pth", dilation="true"),
    "detr_resnet101_dc5": _detr("detr-r101-dc5-a2e86def.pth", dilation="true"),
    "ViT-B_16-224": _vit("imagenet21k+imagenet2012/ViT-B_16-224"),
    "ViT-Ti_16-384": _augreg("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "0.03"),
    "ViT-S_16-384": _augreg("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", "0.03"),
    "ViT-S_32-384": _augreg("S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "ViT-B_16-384": _augreg("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "0.03"),
    "ViT-B_32-384": _augreg("B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "ViT-L_16-384": _augreg("L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "R-Ti_16-384": _augreg("R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "0.03"),
    "R26-S_32-384": _augreg("R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "R50-L_32-384": _augreg("R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1", "0.01"),
}
