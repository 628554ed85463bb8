"""Passes recorded as CUDA graphs give what passes launched one by one give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("scipy", reason="needs scipy: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs Fabric: pip install 'vitesse[compress]'")
from torch import Tensor, nn  # noqa: E402

from compress.distillation.networks import SIDE, detr, vit  # noqa: E402
from vitesse.compress.distillation.hints import Observed  # noqa: E402
from vitesse.training.live_norm import live_norms  # noqa: E402
from vitesse.training.recorded import Recorded  # noqa: E402

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
NETWORKS = {"detr": (detr, SIDE, "transformer.encoder"), "vit": (vit, 16, "blocks.0")}


def observed(kind: str, device: str = "cuda") -> tuple[Observed, Callable[[int], Tensor]]:
    """A network that tells its outputs and tokens, and what makes images for it."""
    make, side, place = NETWORKS[kind]
    network = make().module.to(device).train()
    return Observed(network, [place]), lambda count: torch.randn(count, 3, side, side, device=device)


def gradients(
    call: Callable[[Tensor], tuple[Tensor, ...]], module: nn.Module, images: Tensor
) -> list[Tensor]:
    module.zero_grad()
    torch.stack([one.float().square().sum() for one in call(images)]).sum().backward()
    return [one.grad.clone() for one in module.parameters() if one.grad is not None]


@pytest.mark.parametrize("kind", NETWORKS)
def test_without_a_gpu_the_network_is_called(kind: str) -> None:
    module, images = observed(kind, "cpu")
    some = images(2)
    for one, other in zip(Recorded(module)(some), module(some), strict=True):
        assert torch.equal(one, other)


@GPU
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_replays_give_the_outputs_and_gradients_of_the_network(kind: str, half: bool) -> None:
    torch.manual_seed(0)
    module, images = observed(kind)
    recorded = Recorded(module)
    tolerance = {"atol": 0.05, "rtol": 0.05} if half else {"atol": 1e-3, "rtol": 1e-3}
    for _ in range(3):  # the first call records; batches and weights change from call to call
        some = images(4)
        with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
            found = [one.clone() for one in recorded(some)]
            replayed, launched = (gradients(call, module, some) for call in (recorded, module))
            expected = module(some)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **tolerance)
        assert len(replayed) == len(launched) > 10
        largest = max(float(one.abs().max()) for one in launched)
        for one, other in zip(replayed, launched, strict=True):
            torch.testing.assert_close(one / largest, other / largest, **tolerance)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.01)


@GPU
def test_batches_of_another_shape_are_computed_one_by_one() -> None:
    module, images = observed("detr")
    recorded = Recorded(module)
    recorded(images(4))
    some = images(3)
    for one, other in zip(recorded(some), module(some), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@GPU
def test_recording_leaves_running_statistics_and_a_teacher_needs_no_gradients() -> None:
    module, images = observed("detr")
    with live_norms(module.network):
        before = [one.clone() for one in module.buffers()]
        recorded, some = Recorded(module), images(4)
        recorded._recorded(some)
        assert all(torch.equal(one, old) for one, old in zip(module.buffers(), before, strict=True))
        recorded(some)
        assert not all(torch.equal(one, old) for one, old in zip(module.buffers(), before, strict=True))
    module.eval().requires_grad_(False)
    with torch.no_grad():
        teacher = Recorded(module)
        for _ in range(2):
            some = images(4)
            for one, other in zip(teacher(some), module(some), strict=True):
                torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
