"""A masked unit is as good as gone: the outputs are those of a network it was cut from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from compress.detr_levers import SIZE as LEVER_SIZE  # noqa: E402
from compress.detr_levers import outputs, situation  # noqa: E402
from compress.importance.networks import (  # noqa: E402
    answers,
    cut,
    group_of,
    noise,
    tiny_detr,
    tiny_map_vit,
    tiny_vit,
)
from sources.detr_models import BASIC, TINY  # noqa: E402
from vitesse.artifact import Artifact  # noqa: E402
from vitesse.compress import queries  # noqa: E402
from vitesse.compress.importance.masking import masked  # noqa: E402
from vitesse.compress.importance.units import Group, Kind, groups  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.sources.trainable import Trainable  # noqa: E402

BODY, DECODER = "backbone.0.body", "transformer.decoder.layers"
PRE_NORM = replace(TINY, pre_norm=True)


def basic_detr() -> Trainable:
    return tiny_detr(BASIC)


def pre_norm_detr() -> Trainable:
    return tiny_detr(PRE_NORM)


CUTS = [
    (tiny_detr, f"{BODY}.conv1", [0, 5]),
    (tiny_detr, f"{BODY}.layer2.0.conv1", [1, 6]),
    (tiny_detr, f"{BODY}.layer4.0.conv2", [0, 30]),
    (tiny_detr, f"{BODY}.layer1", [3, 4]),
    (tiny_detr, f"{BODY}.layer4", list(range(0, 128, 3))),
    (tiny_detr, "transformer.encoder.layers.0.linear1", [2, 40]),
    (tiny_detr, "transformer.encoder.layers.0.self_attn", [1]),
    (tiny_detr, f"{DECODER}.1.self_attn", [0, 3]),
    (tiny_detr, f"{DECODER}.2.multihead_attn", [2]),
    (tiny_detr, "transformer.encoder.layers", [0]),
    (basic_detr, f"{BODY}.layer1", [0, 2]),
    (basic_detr, f"{BODY}.layer2", [5]),
    (basic_detr, f"{BODY}.layer4.1.conv1", [1, 2, 3]),
    (pre_norm_detr, f"{DECODER}.0.linear1", [0, 47]),
    (pre_norm_detr, f"{DECODER}.1.multihead_attn", [0]),
    (tiny_vit, "blocks.0.mlp.dense1", [0, 11, 23]),
    (tiny_vit, "blocks.2.attention", [1, 2]),
    (tiny_vit, "blocks", [0]),
    (tiny_vit, "blocks", [2]),
    (tiny_map_vit, "pool.attention", [3]),
    (tiny_map_vit, "pool.mlp.dense1", [4, 5]),
]


@pytest.mark.parametrize(
    ("network", "name", "gone"),
    CUTS,
    ids=[f"{network.__name__}-{name}-{len(gone)}" for network, name, gone in CUTS],
)
def test_masked_units_leave_the_outputs_of_a_network_they_were_cut_from(
    network: Callable[[], Trainable], name: str, gone: list[int]
) -> None:
    trainable = network()
    images = noise(trainable)
    with masked(trainable, group_of(trainable, name), gone):
        found = answers(trainable.module, images)
    whole = answers(trainable.module, images)
    for one, other in zip(found, answers(cut(trainable, name, gone), images), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert (found[0] - whole[0]).abs().max() > 1e-4, "the cut changes something, else this test says nothing"


def test_a_masked_decoder_layer_leaves_the_outputs_of_a_decoder_without_it() -> None:
    """Auxiliary outputs are those of each layer: the masked one repeats the layer before it."""
    trainable = tiny_detr()
    images = noise(trainable)
    with masked(trainable, group_of(trainable, DECODER), [1]):
        logits, boxes, others, _ = answers(trainable.module, images)
    smaller = answers(cut(trainable, DECODER, [1]), images)
    torch.testing.assert_close(logits, smaller[0])
    torch.testing.assert_close(boxes, smaller[1])
    torch.testing.assert_close(others[0], smaller[2][0])
    torch.testing.assert_close(others[1], others[0])


@pytest.mark.parametrize("config", [TINY, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_the_other_queries_answer_as_if_a_masked_one_did_not_exist(config: object) -> None:
    trainable = tiny_detr(config)  # type: ignore[arg-type]
    images, kept = noise(trainable), [0, 2, 3]
    with masked(trainable, group_of(trainable, "query_embed"), [1, 4]):
        logits, boxes, *_ = answers(trainable.module, images)
    smaller = answers(cut(trainable, "query_embed", [1, 4]), images)
    torch.testing.assert_close(logits[:, kept], smaller[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(boxes[:, kept], smaller[1], atol=1e-5, rtol=1e-4)
    assert bool((logits[:, [1, 4]] == -torch.inf).all())
    whole = answers(trainable.module, images)[0]
    assert (whole[:, kept] - smaller[0]).abs().max() > 1e-3, "the others had attended to the masked ones"


def test_masked_queries_answer_as_the_lever_that_drops_them_from_a_graph(
    tiny_detr: tuple[Artifact, Path],
) -> None:
    from compress.importance import networks
    from vitesse.sources.detr_checkpoint import load_detr

    artifact, checkpoint = tiny_detr
    kept = (0, 2, 3)
    exported = load_detr(checkpoint)  # its heads are not in the file, so that it has other ones than TINY
    trainable = networks.tiny_detr(exported.config, LEVER_SIZE)
    trainable.module.load_state_dict(exported.state_dict())
    images = torch.randn(2, 3, *LEVER_SIZE, generator=torch.Generator().manual_seed(0))
    dropped = outputs(queries._make(situation(artifact), kept).artifact, {"images": images.numpy()})
    with masked(trainable, group_of(trainable, "query_embed"), [1, 4]):
        logits, boxes, *_ = answers(trainable.module, images)
    np.testing.assert_allclose(logits[:, kept].numpy(), dropped["logits"], atol=2e-4)
    np.testing.assert_allclose(boxes[:, kept].numpy(), dropped["boxes"], atol=2e-5)


@pytest.mark.parametrize("network", [tiny_detr, tiny_vit])
def test_nothing_masked_changes_not_one_bit_and_nothing_stays_behind(
    network: Callable[[], Trainable],
) -> None:
    trainable = network()
    images = noise(trainable)
    before = answers(trainable.module, images)
    for group in groups(trainable):
        with masked(trainable, group, []):
            inside = answers(trainable.module, images)
        assert all(torch.equal(one, other) for one, other in zip(inside, before, strict=True)), group.name
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in trainable.module.modules())


def test_masks_of_several_groups_add_up() -> None:
    trainable = tiny_vit()
    images = noise(trainable)
    heads, units = group_of(trainable, "blocks.0.attention"), group_of(trainable, "blocks.1.mlp.dense1")
    with masked(trainable, heads, [0]), masked(trainable, units, [3, 4]):
        (found,) = answers(trainable.module, images)
    once = replace(trainable, module=cut(trainable, heads.name, [0]))
    (wanted,) = answers(cut(once, units.name, [3, 4]), images)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_a_group_of_another_network_and_units_that_do_not_exist_are_refused() -> None:
    trainable = tiny_detr()
    with (
        pytest.raises(UsageError, match="no group 'blocks' of 12 layers"),
        masked(trainable, Group("blocks", Kind.LAYERS, 12), [0]),
    ):
        pass
    attention = group_of(trainable, f"{DECODER}.0.self_attn")
    with pytest.raises(UsageError, match=r"masking \[4\] of 4") as raised, masked(trainable, attention, [4]):
        pass
    assert "numbers from 0 to 3" in str(raised.value)
    everything = group_of(trainable, "query_embed")
    with pytest.raises(UsageError, match="at least one query left"), masked(trainable, everything, range(5)):
        pass
