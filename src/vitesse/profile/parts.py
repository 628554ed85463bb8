"""The parts of a vision transformer, and which one a module is by its name.

The names are those of facebookresearch/detr, Hugging Face's DETR family, RT-DETR, D-FINE and DEIMv2, timm, and the
ViTs of google-research and Hugging Face.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from vitesse.scopes import Path


class Part(StrEnum):
    """A part of the network, in the order in which an image passes through."""

    PRE = "pre-processing"
    BACKBONE = "backbone"
    EMBEDDING = "patch embedding"
    NECK = "input projection"
    ENCODER = "encoder"
    BLOCKS = "blocks"
    DECODER = "decoder"
    HEADS = "heads"
    POST = "post-processing"
    OTHER = "other"


FLOW = tuple(Part)

# Inside whatever module: RT-DETR keeps its heads in the decoder, RF-DETR its projector in the backbone.
_ANYWHERE = (
    (Part.POST, r"post_?process(or|ing)?"),
    (Part.PRE, r"pre_?process(or|ing)?|normalize_images?"),
    (Part.DECODER, r"enc_(output|score_head|bbox_head|out_class_embed|out_bbox_embed)s?|query_pos_head"),
    (Part.HEADS, r"(dec_|pre_)?(class|bbox|box|score|cls|mask)_(embed|head|predictor)s?(_classifier)?"),
    (Part.HEADS, r"class_labels_classifier|lqe_layers?|integral|encoder_norm|fc_norm|pre_logits"),
    (Part.NECK, r"projector"),
)
# The outermost module with a known name decides.
_OUTERMOST = (
    (Part.BACKBONE, r"backbone|conv_encoder|resnet"),
    (Part.NECK, r"(en|de)?(coder_)?input_proj(ection)?|neck|fpn|level_embed"),
    (Part.ENCODER, r"(\w+_)?encoder(_layer)?"),
    (
        Part.DECODER,
        r"(\w+_)?decoder(_layer)?|query_(embed|position_embedding|feat)s?|refpoint_embed|tgt_embed",
    ),
)
# Only where no decoder was found: what a detector calls encoder is then the body of a ViT.
_VIT = (
    (
        Part.EMBEDDING,
        r"(patch_|token_)?embed(ding|der)?s?|patch_embeddings?|conv_proj|norm_pre|pos_drop|root",
    ),
    (
        Part.BLOCKS,
        r"(\w+_)?encoder(_layer)?|blocks?|layers?|stages?|transformer|encoder_?block(_\d+)?|resblocks",
    ),
    (Part.HEADS, r"head(_dist|_drop|s)?|classifier|cls_classifier|distillation_classifier|fc|pooler"),
    (Part.HEADS, r"norm|layer_?norm|final_layer_?norm|ln_post|global_pool|attn_pool"),
)


def part_by_name(path: Path, *, decoder: bool) -> Part | None:
    """Return the part a module belongs to; None when none of its names is known.

    Args:
        path: the module, from the outside in.
        decoder: whether the network has a decoder, as `has_decoder` says.
    """
    names = [_plain(name) for name in path]
    for part, pattern in _ANYWHERE:
        if any(re.fullmatch(pattern, name) for name in names):
            return part
    vocabulary = _OUTERMOST if decoder else (_OUTERMOST[0], *_VIT)
    for name in names:
        for part, pattern in vocabulary:
            if re.fullmatch(pattern, name):
                return part
    return None


def has_decoder(paths: Iterable[Path]) -> bool:
    """Say whether any module is a decoder by its name."""
    return any("decoder" in _plain(name) for path in paths for name in path)


def _plain(name: str) -> str:
    """Write `DetrDecoder.3` or `pkg.DetrDecoder` as names of attributes are: without index, in snake case."""
    word = re.sub(r"(\.\d+)+$", "", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word.rpartition(".")[2]).lower()
