from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("torch_pruning", reason="needs torch_pruning: pip install 'vitesse[compress]'")

from compress.pruning.pruned_networks import (  # noqa: E402
    NETWORKS,
    VITS,
    answers,
    close,
    network,
    random_importance,
)
from vitesse.compress.importance.masking import masked  # noqa: E402
from vitesse.compress.importance.units import Kind, groups  # noqa: E402
from vitesse.compress.pruning.flops import flops, parameters  # noqa: E402
from vitesse.compress.pruning.prune import Importance, Pruned, prune, rebuilt  # noqa: E402
from vitesse.errors import ModelError, UsageError  # noqa: E402
from vitesse.sources.detr_checkpoint import read_checkpoint  # noqa: E402
from vitesse.sources.source import Given  # noqa: E402
from vitesse.sources.trainable import Trainable, open_trainable, save_trainable  # noqa: E402
from vitesse.sources.vit_resnet import StemConfig  # noqa: E402

SHARE = 0.6
# Most of what a small hybrid costs is its stem, which is not cut.
HYBRID_SHARE = 0.985


@pytest.fixture(params=NETWORKS)
def original(request: pytest.FixtureRequest) -> Trainable:
    return network(request.param)


def least(importance: Importance, name: str, count: int) -> list[int]:
    return np.argsort(importance[name], kind="stable")[:count].tolist()


@contextmanager
def without(trainable: Trainable, pruned: Pruned, importance: Importance) -> Iterator[None]:
    """The whole network with the units masked that pruning should have cut."""
    by_name = {group.name: group for group in groups(trainable)}
    with ExitStack() as stack:
        for name, (left, before) in pruned.kept.items():
            stack.enter_context(masked(trainable, by_name[name], least(importance, name, before - left)))
        yield


def test_a_pruned_network_answers_as_the_whole_one_without_those_units(
    original: Trainable, tmp_path: Path
) -> None:
    importance = random_importance(original)
    share = HYBRID_SHARE if getattr(original.config, "stem", None) == StemConfig(32, (1, 1)) else SHARE
    pruned = prune(original, share, importance, multiple=2)
    assert share - 0.02 < pruned.share <= share
    assert sum(left < before for left, before in pruned.kept.values()) > 3
    with without(original, pruned, importance):
        assert close(answers(pruned.trainable), answers(original))
    assert not close(answers(pruned.trainable), answers(original))

    again = open_trainable(save_trainable(pruned.trainable, tmp_path / "run"))
    assert again.config == pruned.trainable.config and again.spec == original.spec
    assert all(torch.equal(a, b) for a, b in zip(answers(again), answers(pruned.trainable), strict=True))


def test_masking_other_units_is_noticed() -> None:
    original = network("bottleneck")
    importance = random_importance(original)
    pruned = prune(original, SHARE, importance, multiple=2)
    with without(original, pruned, random_importance(original, seed=1)):
        assert not close(answers(pruned.trainable), answers(original))


@pytest.mark.parametrize("kind", ["basic", "map"])
def test_the_argument_is_left_as_it_is(kind: str) -> None:
    original = network(kind)
    before = copy.deepcopy(original.module.state_dict())
    pruned = prune(original, SHARE, random_importance(original), multiple=2)
    with torch.no_grad():
        for weight in pruned.trainable.module.parameters():
            weight.zero_()
    after = original.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["bottleneck", "token"])
def test_a_pruned_network_is_pruned_again(kind: str) -> None:
    original = network(kind)
    once = prune(original, 0.8, random_importance(original), multiple=2).trainable
    importance = random_importance(once)
    twice = prune(once, 0.8, importance, multiple=2)
    with without(once, twice, importance):
        assert close(answers(twice.trainable), answers(once))


def test_what_is_left_is_a_multiple_and_no_group_is_emptied() -> None:
    original = network("resnet50")
    pruned = prune(original, 0.35, random_importance(original), multiple=4)
    kinds = {group.name: group.kind for group in groups(original)}
    for name, (left, before) in pruned.kept.items():
        heads = kinds[name] is Kind.HEADS
        assert left == before or (left >= 1 and left % (1 if heads else 4) == 0), name


def test_the_unit_known_to_be_dead_is_the_first_to_go() -> None:
    original = network("bottleneck")
    importance = {name: np.ones_like(scores) for name, scores in random_importance(original).items()}
    name = "transformer.encoder.layers.0.linear1"
    importance[name][[3, 17, 18, 40]] = 0
    pruned = prune(original, 0.9999, importance, multiple=4)
    given = {group for group, (left, before) in pruned.kept.items() if left < before}
    assert given == {name}
    kept = pruned.trainable.module.get_submodule(name).weight
    whole = original.module.get_submodule(name).weight
    assert torch.equal(kept, whole[[unit for unit in range(48) if unit not in (3, 17, 18, 40)]])


def test_groups_without_scores_stay_whole() -> None:
    original = network("bottleneck")
    importance = {k: v for k, v in random_importance(original).items() if k.startswith("backbone")}
    pruned = prune(original, 0.8, importance, multiple=2)
    assert set(pruned.kept) == set(importance)
    assert pruned.trainable.module.get_submodule("transformer.encoder.layers.0.linear1").out_features == 48


def test_decoder_layers_are_cut_from_the_end_and_count() -> None:
    original = network("bottleneck")
    importance = random_importance(original)
    pruned = prune(original, 0.8, importance, multiple=2, decoder_layers=2)
    assert pruned.kept["transformer.decoder.layers"] == (2, 3) and pruned.share <= 0.8
    stack = next(group for group in groups(original) if group.name == "transformer.decoder.layers")
    rest = replace(pruned, kept={k: v for k, v in pruned.kept.items() if k != stack.name})
    with masked(original, stack, [2]), without(original, rest, importance):
        assert close(answers(pruned.trainable), answers(original))


def test_a_pruned_state_dict_alone_shows_its_sizes(tmp_path: Path) -> None:
    pruned = prune(
        network("bottleneck"), SHARE, random_importance(network("bottleneck")), multiple=2
    ).trainable
    path = tmp_path / "pruned.pth"
    torch.save({"model": pruned.module.state_dict()}, path)
    found = open_trainable(path, Given(settings={"heads": "4"}))
    wanted = read_checkpoint(path, {"heads": "4"}).config
    assert (
        wanted.uneven
        and wanted.feedforward
        == pruned.module.get_submodule("transformer.decoder.layers.0.linear1").out_features
    )
    assert (
        found.module.get_submodule("input_proj").weight.shape
        == pruned.module.get_submodule("input_proj").weight.shape
    )


def test_a_residual_group_cut_in_one_block_only_is_refused() -> None:
    original = network("resnet50")
    state = dict(original.module.state_dict())
    block = "backbone.0.body.layer2.1"
    state[f"{block}.conv3.weight"] = state[f"{block}.conv3.weight"][:-2]
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"{block}.bn3.{name}"] = state[f"{block}.bn3.{name}"][:-2]
    with pytest.raises(
        ModelError, match=r"cut tensors fit no network: size mismatch for .*layer2\.1\.conv3\.weight"
    ):
        rebuilt(original, original.config, state)


def test_flops_are_those_of_a_hand_count() -> None:
    original = network("token")
    tokens, hidden, mlp, layers, classes = 17, 16, 32, 3, 5
    linear = layers * (4 * tokens * hidden**2 + 2 * tokens * hidden * mlp)
    products = layers * 2 * tokens * tokens * hidden
    # Behind the last attention only the class token goes on.
    spared = (tokens - 1) * (2 * hidden**2 + 2 * hidden * mlp) + 2 * (tokens - 1) * tokens * hidden
    patches = 16 * 4 * 4 * 3 * hidden
    assert flops(original) == 2 * (linear + products - spared + patches + hidden * classes)
    assert parameters(original) == sum(weight.numel() for weight in original.module.parameters())


def test_auxiliary_outputs_cost_nothing() -> None:
    original = network("bottleneck")
    assert flops(original) == flops(replace(original, module=without_auxiliary(original)))


def without_auxiliary(trainable: Trainable) -> torch.nn.Module:
    module = copy.deepcopy(trainable.module)
    module.keep_aux = False
    return module


def test_a_share_below_the_floor_is_refused_with_the_floor() -> None:
    original = network("token")
    with pytest.raises(UsageError, match=r"--flops 0.05 cannot be reached: 0\.\d+ is left") as caught:
        prune(original, 0.05, random_importance(original), multiple=8)
    floor = float(caught.value.expected.split()[0])
    assert prune(original, floor, random_importance(original), multiple=8).share <= floor


@pytest.mark.parametrize(
    ("share", "options", "text"),
    [
        (0.0, {}, "--flops 0\n.*above 0 and at most 1"),
        (1.5, {}, "--flops 1.5\n"),
        (0.5, {"multiple": 0}, "--multiple 0\n.*16 for INT8"),
        (0.5, {"decoder_layers": 4}, "--decoder-layers 4\n.*1 to 3"),
    ],
)
def test_values_out_of_range_are_refused(share: float, options: Mapping[str, int], text: str) -> None:
    original = network("bottleneck")
    with pytest.raises(UsageError, match=text):
        prune(original, share, random_importance(original), **options)


def test_importance_of_another_network_is_refused() -> None:
    original, name = network("token"), "blocks.0.mlp.dense1"
    for wrong, text in (
        ({"blocks.9.attention": np.ones(4)}, "no such group"),
        ({name: np.ones(31)}, r"shape \(31,\); the network has 32 units"),
        ({name: np.full(32, np.nan)}, "not finite or below 0"),
        ({name: np.full(32, -1.0)}, "not finite or below 0"),
        ({}, "names no group that pruning can cut"),
    ):
        with pytest.raises(UsageError, match=text):
            prune(original, 0.5, wrong)


def test_a_vit_has_no_decoder() -> None:
    with pytest.raises(UsageError, match="--decoder-layers for a ViT"):
        prune(network(next(iter(VITS))), 0.5, {}, decoder_layers=2)
