"""What is known to be dead scores 0, what changes nothing changes no score, and Taylor is activation × gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from compress.importance.networks import (  # noqa: E402
    answers,
    group_of,
    noise,
    tiny_detr,
    tiny_vit,
)
from sources.detr_models import TINY  # noqa: E402
from vitesse.compress.importance.masking import masked  # noqa: E402
from vitesse.compress.importance.scores import scores  # noqa: E402
from vitesse.compress.importance.units import Kind, groups  # noqa: E402
from vitesse.errors import ModelError, UsageError  # noqa: E402
from vitesse.sources.trainable import Trainable  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402

CONV = "backbone.0.body.layer2.0.conv1"
ATTENTION = "transformer.decoder.layers.1.multihead_attn"
DEAD = 2


def outputs_loss(module: nn.Module, batch: Batch) -> Tensor:
    """A mean over images that every output takes part in."""
    outputs = module(batch.images)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs[:2]
    return torch.stack([one.square().flatten(1).sum(1) for one in outputs]).sum(0).mean()


def class_loss(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch.images), batch.labels)


def taylor(trainable: Trainable, images: Tensor | None = None) -> dict[str, np.ndarray]:
    batch = Batch(noise(trainable) if images is None else images)
    return dict(scores(trainable, "taylor", [batch], outputs_loss))


def is_gone(trainable: Trainable, name: str, unit: int) -> bool:
    """Whether masking the unit changes nothing at all."""
    images = noise(trainable)
    before = answers(trainable.module, images)
    with masked(trainable, group_of(trainable, name), [unit]):
        after = answers(trainable.module, images)
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def changed(trainable: Trainable, change: Callable[[nn.Module], None]) -> Trainable:
    module = copy.deepcopy(trainable.module)
    with torch.no_grad():
        change(module)
    return replace(trainable, module=module)


def silent_channel(module: nn.Module) -> None:
    """No weights, and nothing added behind them: ReLU of 0."""
    module.get_submodule(CONV).get_parameter("weight")[DEAD] = 0
    norm = module.get_submodule(CONV.replace("conv", "bn"))
    norm.get_buffer("bias")[DEAD] = norm.get_buffer("running_mean")[DEAD] = 0


def closed_channel(module: nn.Module) -> None:
    """Its ReLU never opens."""
    module.get_submodule(CONV.replace("conv", "bn")).get_buffer("bias")[DEAD] = -1e4


def unread_head(module: nn.Module) -> None:
    module.get_submodule(f"{ATTENTION}.out_proj").get_parameter("weight")[:, 8 * DEAD : 8 * DEAD + 8] = 0


def test_a_channel_without_weights_matters_by_no_method() -> None:
    trainable = changed(tiny_detr(), silent_channel)
    assert is_gone(trainable, CONV, DEAD)
    assert scores(trainable, "l1")[CONV][DEAD] == taylor(trainable)[CONV][DEAD] == 0
    assert all(scores(trainable, "l1")[CONV][[0, 1, 3]] > 0)


def test_a_channel_that_never_passes_its_relu_matters_by_its_weights_alone() -> None:
    trainable = changed(tiny_detr(), closed_channel)
    assert is_gone(trainable, CONV, DEAD)
    assert taylor(trainable)[CONV][DEAD] == 0
    assert scores(trainable, "l1")[CONV][DEAD] > 0 and scores(trainable, "bn")[CONV][DEAD] > 0
    whole = tiny_detr()
    assert not is_gone(whole, CONV, DEAD) and taylor(whole)[CONV][DEAD] > 0


def test_a_head_that_the_output_does_not_read_matters_by_no_method() -> None:
    trainable = changed(tiny_detr(), unread_head)
    assert is_gone(trainable, ATTENTION, DEAD)
    assert scores(trainable, "l1")[ATTENTION][DEAD] == taylor(trainable)[ATTENTION][DEAD] == 0
    assert all(taylor(trainable)[ATTENTION][[0, 1, 3]] > 0)


def test_a_channel_that_never_varied_has_no_spread_behind_its_batch_norm() -> None:
    def still(module: nn.Module) -> None:
        module.get_submodule(CONV.replace("conv", "bn")).get_buffer("running_var")[DEAD] = 0

    found = scores(changed(tiny_detr(), still), "bn")
    assert found[CONV][DEAD] == 0 and found[CONV].max() > 0
    assert set(found) == {
        one.name for one in groups(tiny_detr()) if one.kind in (Kind.CHANNELS, Kind.RESIDUAL)
    }


@pytest.mark.parametrize("network", [tiny_detr, tiny_vit])
@pytest.mark.parametrize("method", ["taylor", "l1"])
def test_every_group_is_scored_unit_by_unit(network: Callable[[], Trainable], method: str) -> None:
    trainable = network()
    found = taylor(trainable) if method == "taylor" else scores(trainable, method)
    assert {name: (len(one), one.dtype) for name, one in found.items()} == {
        group.name: (group.size, np.float64) for group in groups(trainable)
    }
    assert all(np.isfinite(one).all() and one.min() >= 0 for one in found.values())


def test_taylor_is_the_sum_of_activation_times_gradient_of_each_image() -> None:
    """Taken apart by hand: what the second layer of an MLP reads, and the gradient of an image's loss by it."""
    trainable = tiny_vit()
    images = noise(trainable)
    read: list[Tensor] = []
    layer = trainable.module.get_submodule("blocks.1.mlp.dense2")
    handle = layer.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    wanted = torch.zeros(24, dtype=torch.float64)
    for image in images:
        value = outputs_loss(trainable.module, Batch(image[None]))
        (gradient,) = torch.autograd.grad(value, read[-1])
        wanted += (read[-1] * gradient).sum((0, 1)).abs()
    handle.remove()
    np.testing.assert_allclose(taylor(trainable, images)["blocks.1.mlp.dense1"], wanted.detach(), rtol=1e-4)


def test_taylor_foresees_what_a_nearly_closed_gate_changes() -> None:
    """A unit whose weights are made small stands where the first order holds: score = |change of the loss|."""

    def faint(module: nn.Module) -> None:
        module.get_submodule("blocks.1.mlp.dense2").get_parameter("weight")[:, DEAD] *= 1e-3

    trainable = changed(tiny_vit(), faint)
    trainable.module.double()  # small differences are lost in float32
    image = noise(trainable, 1).double()
    estimate = taylor(trainable, image)["blocks.1.mlp.dense1"][DEAD]
    whole = outputs_loss(trainable.module, Batch(image))
    with masked(trainable, group_of(trainable, "blocks.1.mlp.dense1"), [DEAD]):
        without = outputs_loss(trainable.module, Batch(image))
    assert estimate == pytest.approx(abs((whole - without).item()), rel=0.01)


def test_taylor_does_not_depend_on_how_images_are_batched() -> None:
    trainable = tiny_detr()
    images = noise(trainable, 4)
    whole = scores(trainable, "taylor", [Batch(images)], outputs_loss)
    parts = [Batch(images[:1]), Batch(images[1:4])]
    for name, found in scores(trainable, "taylor", parts, outputs_loss).items():
        np.testing.assert_allclose(found, whole[name], rtol=2e-3, atol=1e-5 * whole[name].max())


def test_scaling_that_changes_no_output_changes_no_score() -> None:
    """A ReLU lets a factor through: 4 before it and 1/4 behind it; and BatchNorm undoes the scale of its weights."""
    linear = "transformer.encoder.layers.0.linear1"

    def scaled(module: nn.Module) -> None:
        first = module.get_submodule(linear)
        first.get_parameter("weight")[1] *= 4
        first.get_parameter("bias")[1] *= 4
        module.get_submodule(linear.replace("linear1", "linear2")).get_parameter("weight")[:, 1] /= 4
        module.get_submodule(CONV).get_parameter("weight")[1] *= 4
        norm = module.get_submodule(CONV.replace("conv", "bn"))
        norm.get_buffer("running_mean")[1] *= 4
        norm.get_buffer("running_var")[1] = 16 * (norm.get_buffer("running_var")[1] + 1e-5) - 1e-5

    whole, same = tiny_detr(), changed(tiny_detr(), scaled)
    torch.testing.assert_close(
        answers(same.module, noise(same))[0], answers(whole.module, noise(whole))[0], atol=1e-4, rtol=1e-4
    )
    for name in (linear, CONV):
        np.testing.assert_allclose(scores(same, "l1")[name], scores(whole, "l1")[name], rtol=1e-4)
        np.testing.assert_allclose(taylor(same)[name], taylor(whole)[name], rtol=1e-2, atol=1e-4)


def test_a_grouped_convolution_reads_each_channel_in_one_of_its_groups() -> None:
    trainable = tiny_detr(replace(TINY, groups=2))
    read = trainable.module.get_submodule(CONV.replace("conv1", "conv2")).get_parameter("weight").detach()
    made = trainable.module.get_submodule(CONV).get_parameter("weight").detach().flatten(1).abs().sum(1)
    scale = trainable.module.get_submodule(CONV.replace("conv", "bn")).affine()[0].abs()
    halves = [read[:4].abs().sum((0, 2, 3)), read[4:].abs().sum((0, 2, 3))]
    np.testing.assert_allclose(scores(trainable, "l1")[CONV], made * scale * torch.cat(halves), rtol=1e-5)


def test_a_query_counts_with_the_objects_that_it_claims() -> None:
    trainable = tiny_detr()
    images = noise(trainable)
    claims = 1 - answers(trainable.module, images)[0].softmax(2)[:, :, -1]
    np.testing.assert_allclose(taylor(trainable, images)["query_embed"], claims.sum(0), rtol=1e-4)


def test_what_cannot_be_scored_is_refused() -> None:
    detr, vit = tiny_detr(), tiny_vit()
    with pytest.raises(UsageError, match="by taylor without images") as raised:
        scores(detr, "taylor")
    assert "--method l1" in str(raised.value)
    with pytest.raises(UsageError, match="by taylor without a loss"):
        scores(detr, "taylor", [Batch(noise(detr))])
    with pytest.raises(UsageError, match="this vit has no BatchNorm"):
        scores(vit, "bn")
    with pytest.raises(UsageError, match="importance by 'l2'") as raised:
        scores(vit, "l2")
    assert "taylor, l1, bn" in str(raised.value)


def test_a_loss_that_is_not_finite_is_no_ground_for_scores() -> None:
    trainable = tiny_vit()
    batch = Batch(noise(trainable) * torch.inf, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ModelError, match="the loss on images is nan"):
        scores(trainable, "taylor", [batch], class_loss)
    assert not any(part._forward_hooks for part in trainable.module.modules())
