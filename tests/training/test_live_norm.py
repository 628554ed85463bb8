"""Norms of a ResNet that learn while a network is trained, and are frozen again afterwards."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("lightning_fabric", reason="needs Fabric: pip install 'vitesse[compress]'")
from torch import nn  # noqa: E402

from compress.distillation.networks import detr  # noqa: E402
from vitesse.sources.detr import FrozenBatchNorm  # noqa: E402
from vitesse.training.live_norm import LiveNorm, live_norms  # noqa: E402


def kinds(network: nn.Module) -> set[type[nn.Module]]:
    return {type(one) for one in network.modules()} & {FrozenBatchNorm, LiveNorm}


def frozen(channels: int = 3) -> FrozenBatchNorm:
    norm = FrozenBatchNorm(channels)
    for name in ("weight", "bias", "running_mean"):
        norm.get_buffer(name).copy_(torch.randn(channels))
    norm.get_buffer("running_var").copy_(torch.rand(channels) + 0.5)
    return norm


def test_outside_of_training_a_live_norm_computes_what_the_frozen_one_does() -> None:
    torch.manual_seed(0)
    norm, images = frozen(), torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(LiveNorm(norm).eval()(images), norm(images))


def test_in_training_the_batch_is_normalised_by_itself_and_remembered() -> None:
    torch.manual_seed(0)
    norm, images = frozen(), 3 * torch.randn(8, 3, 5, 4) + 2
    live = LiveNorm(norm).train()
    found = live(images)
    weight, bias = (norm.get_buffer(name) for name in ("weight", "bias"))
    torch.testing.assert_close(found.mean((0, 2, 3)), bias, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.std((0, 2, 3), correction=0), weight.abs(), atol=1e-4, rtol=1e-4)
    expected = 0.9 * norm.get_buffer("running_mean") + 0.1 * images.mean((0, 2, 3))
    torch.testing.assert_close(live.get_buffer("running_mean"), expected)
    found.square().sum().backward()
    assert live.get_parameter("weight").grad is not None and live.get_parameter("bias").grad is not None


def test_all_norms_of_a_detector_learn_within_the_block_and_none_behind_it() -> None:
    network = detr().module
    before, size = network.state_dict(), len(list(network.parameters()))
    assert kinds(network) == {FrozenBatchNorm}
    with live_norms(network):
        assert kinds(network) == {LiveNorm}
        assert network.state_dict().keys() == before.keys()
        assert len(list(network.parameters())) > size
        network.train()(torch.randn(4, 3, 64, 64))
    assert kinds(network) == {FrozenBatchNorm}
    after = network.state_dict()
    assert len(list(network.parameters())) == size and after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.endswith(("running_mean", "running_var")) for name in changed)


def test_an_error_within_the_block_leaves_frozen_norms() -> None:
    network = detr().module
    with pytest.raises(ZeroDivisionError), live_norms(network):
        raise ZeroDivisionError
    assert kinds(network) == {FrozenBatchNorm}
