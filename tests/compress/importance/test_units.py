"""Groups are all the places where units can be cut, found in the modules as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from compress.importance.networks import cut, group_of, tiny_detr, tiny_map_vit, tiny_vit
from sources.detr_models import BASIC, TINY
from vitesse.compress.importance.units import Kind, groups
from vitesse.sources.trainable import Trainable


def sizes(trainable: Trainable, kind: Kind) -> dict[str, int]:
    return {group.name: group.size for group in groups(trainable) if group.kind is kind}


def test_the_channels_of_a_bottleneck_resnet_are_its_stem_and_two_convolutions_a_block() -> None:
    assert sizes(tiny_detr(), Kind.CHANNELS) == {
        "backbone.0.body.conv1": 8,
        **{
            f"backbone.0.body.layer{stage}.0.conv{number}": width
            for stage, width in zip((1, 2, 3, 4), TINY.widths, strict=True)
            for number in (1, 2)
        },
    }
    assert sizes(tiny_detr(), Kind.RESIDUAL) == {
        f"backbone.0.body.layer{stage}": 16 * 2 ** (stage - 1) for stage in (1, 2, 3, 4)
    }


def test_a_stem_that_the_first_stage_adds_into_is_no_group_of_its_own() -> None:
    found = tiny_detr(BASIC)
    assert "backbone.0.body.conv1" not in sizes(found, Kind.CHANNELS)
    assert sizes(found, Kind.RESIDUAL)["backbone.0.body.layer1"] == BASIC.stem


def test_a_detr_has_the_heads_of_all_its_attentions_layers_and_queries() -> None:
    found = tiny_detr()
    assert sizes(found, Kind.HEADS) == {
        "transformer.encoder.layers.0.self_attn": 4,
        **{
            f"transformer.decoder.layers.{layer}.{name}": 4
            for layer in range(3)
            for name in ("self_attn", "multihead_attn")
        },
    }
    assert sizes(found, Kind.LAYERS) == {"transformer.encoder.layers": 1, "transformer.decoder.layers": 3}
    assert sizes(found, Kind.QUERIES) == {"query_embed": 5}
    assert set(sizes(found, Kind.MLP).values()) == {48}


def test_a_vit_has_heads_mlps_and_layers_also_where_attention_pools() -> None:
    assert sizes(tiny_vit(), Kind.HEADS) == {f"blocks.{layer}.attention": 4 for layer in range(3)}
    assert sizes(tiny_vit(), Kind.MLP) == {f"blocks.{layer}.mlp.dense1": 24 for layer in range(3)}
    assert sizes(tiny_vit(), Kind.LAYERS) == {"blocks": 3}
    pooled = {group.name for group in groups(tiny_map_vit())}
    assert pooled - {group.name for group in groups(tiny_vit())} == {"pool.attention", "pool.mlp.dense1"}


def test_a_network_that_was_cut_is_described_as_it_is() -> None:
    whole = tiny_vit()
    smaller = replace(whole, module=cut(whole, "blocks.1.attention", [0, 2]))
    assert group_of(smaller, "blocks.1.attention").size == 2
