from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("torch_pruning", reason="needs torch_pruning: pip install 'vitesse[compress]'")

from compress.pruning.pruned_networks import network  # noqa: E402
from vitesse.compress.pruning.statistics import remeasured  # noqa: E402
from vitesse.sources.detr import FrozenBatchNorm  # noqa: E402
from vitesse.sources.trainable import Trainable  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402


def images(trainable: Trainable, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return 3 + 2 * torch.randn(count, 3, *trainable.spec.preprocessing.size)


def normalised(trainable: Trainable, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each FrozenBatchNorm makes of its inputs before weight and bias: mean and variance by channel."""
    found = {}

    def look(name: str, norm: FrozenBatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        mean, variance = (norm.get_buffer(one)[:, None, None] for one in ("running_mean", "running_var"))
        given = (inputs[0] - mean) / variance.sqrt()
        found[name] = torch.stack([given.mean((0, 2, 3)), given.var((0, 2, 3), correction=0)])

    norms = [
        (name, one) for name, one in trainable.module.named_modules() if isinstance(one, FrozenBatchNorm)
    ]
    handles = [
        norm.register_forward_pre_hook(lambda norm, inputs, name=name: look(name, norm, inputs))
        for name, norm in norms
    ]
    with torch.no_grad():
        trainable.module(batch)
    for handle in handles:
        handle.remove()
    return found


def test_every_norm_sees_mean_0_and_variance_1_on_the_images_it_was_measured_on() -> None:
    detr = network("basic")
    batch = images(detr, 4)
    before = normalised(detr, batch)
    after = normalised(remeasured(detr, [Batch(batch)]), batch)
    wanted = torch.tensor([[0.0], [1.0]])
    assert any((one - wanted).abs().max() > 0.5 for one in before.values())
    for name, one in after.items():
        alive = one[1] > 0.01  # a channel of one value has no variance to bring to 1
        assert alive.any(), name
        assert torch.allclose(one[:, alive], wanted.expand(-1, int(alive.sum())), atol=1e-2), name


def test_batches_of_other_sizes_count_by_their_images() -> None:
    detr = network("basic")
    batch = images(detr, 3)
    whole = remeasured(detr, [Batch(batch)]).module.state_dict()
    parts = remeasured(detr, [Batch(batch[:2]), Batch(batch[2:])]).module.state_dict()
    first = "backbone.0.body.bn1.running_"
    assert torch.allclose(parts[f"{first}mean"], whole[f"{first}mean"], atol=1e-5)
    assert torch.allclose(parts[f"{first}var"], whole[f"{first}var"], rtol=1e-4)


def test_the_argument_and_a_network_without_such_norms_stay_as_they_are() -> None:
    detr, vit = network("basic"), network("token")
    kept = {name: tensor.clone() for name, tensor in detr.module.state_dict().items()}
    remeasured(detr, [Batch(images(detr, 2))])
    assert all(torch.equal(kept[name], tensor) for name, tensor in detr.module.state_dict().items())
    copy = remeasured(vit, [Batch(images(vit, 2))])
    pairs = zip(copy.module.state_dict().values(), vit.module.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
