from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels import float64  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100, TURING, facts, numbers  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.backends.torch_cuda.kernels import patches  # noqa: E402
from vitesse.backends.torch_cuda.kernels.patches import KERNEL  # noqa: E402
from vitesse.backends.torch_cuda.kernels.torch_patches import KERNEL as TORCH  # noqa: E402

KERNELS = pytest.mark.parametrize("kernel", [KERNEL, TORCH], ids=lambda kernel: str(kernel.name))
TOLERANCES = {torch.float16: 1e-3, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def inputs(
    device: Any,
    patch: int,
    grid: tuple[int, int],
    tokens: int,
    size: int = 40,
    dtype: Any = torch.float16,
    images: int = 2,
) -> Any:
    """A float32 image with channels of different weight, so that an exchanged order is seen; 3 of them."""
    random = torch.Generator().manual_seed(patch)
    down, across = grid
    image = torch.randn(images, 3, patch * down, patch * across, generator=random)
    weight = (
        torch.randn(size, 3, patch, patch, generator=random)
        * 0.05
        * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    )
    rest = (torch.randn(tokens, size, generator=random), torch.randn(down * across, size, generator=random))
    return (image.to(device), *(x.to(device, dtype) for x in (weight, *rest)))


def every(kernel: Any, tensors: Any, patch: int, dtype: Any) -> list[tuple[Tactic, Any]]:
    attributes = {"patch": patch, "out_dtype": str(dtype).removeprefix("torch.")}
    assert kernel.refuses(tensors, attributes, facts()) == ""
    found = kernel.tactics(tensors, attributes, facts())
    assert 0 < len(found) <= 12
    return [(tactic, kernel.prepare(tensors, attributes, tactic)(*tensors)[0]) for tactic in found]


def right(tensors: Any) -> float64.Array:
    image = tensors[0].to(
        tensors[1].dtype
    )  # both kernels round it to the type of the weight, as the definition says
    return float64.patches(*(numbers(x) for x in (image, *tensors[1:])))


@KERNELS
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("patch", "grid", "tokens"),
    [(16, (3, 3), 1), (14, (2, 3), 5), (7, (3, 5), 1), (32, (1, 2), 0), (8, (1, 1), 2)],
    ids=["16", "14, five tokens", "7, wide", "32, no token", "one patch"],
)
def test_every_configuration_embeds_patches_as_in_float64(
    device: Any, kernel: Any, patch: int, grid: tuple[int, int], tokens: int, dtype: Any
) -> None:
    tensors = inputs(device, patch, grid, tokens, dtype=dtype)
    for tactic, found in every(kernel, tensors, patch, dtype):
        assert found.dtype == dtype and found.is_contiguous()
        assert float64.error(found, right(tensors)) < TOLERANCES[dtype], tactic.text()


@KERNELS
def test_an_image_in_16_bits_is_taken_too(device: Any, kernel: Any) -> None:
    image, *rest = inputs(device, 16, (2, 2), 1)
    for tactic, found in every(kernel, (image.half(), *rest), 16, torch.float16):
        assert float64.error(found, right((image.half(), *rest))) < 1e-3, tactic.text()


def test_the_check_sees_exchanged_rows_and_columns_of_a_patch(device: Any) -> None:
    image, weight, *rest = inputs(device, 8, (2, 2), 1)
    for _, found in every(KERNEL, (image, weight, *rest), 8, torch.float16):
        assert float64.error(found, right((image, weight.transpose(2, 3), *rest))) > 0.1
        assert float64.error(found, right((image.transpose(2, 3), weight, *rest))) > 0.1


def test_every_place_of_the_output_is_written_and_tokens_are_copied_exactly(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = inputs(device, 8, (3, 5), 3, images=3)

    def poisoned(size: Any, **options: Any) -> Any:
        return torch.full(size, torch.nan, **options)

    monkeypatch.setattr(patches.torch, "empty", poisoned)
    for kernel in (KERNEL, TORCH):
        for tactic, found in every(kernel, tensors, 8, torch.float16):
            assert not found.isnan().any(), tactic.text()
            assert all(torch.equal(one[:3], tensors[2]) for one in found), tactic.text()


def test_one_image_of_nan_stays_alone(device: Any) -> None:
    tensors = inputs(device, 8, (3, 3), 1, images=3)
    expected = right(tensors)
    tensors[0][1] = torch.nan
    for tactic, found in every(KERNEL, tensors, 8, torch.float16):
        assert found[1, 1:].isnan().all() and not found[1, 0].isnan().any()
        assert float64.error(found[::2], expected[::2]) < 1e-3, tactic.text()


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    image, weight, tokens, positions = (
        torch.empty(size, dtype=torch.float16, device="meta")
        for size in ((1, 3, 32, 32), (8, 3, 16, 16), (1, 8), (4, 8))
    )

    def said(image: Any = image, weight: Any = weight, device: Any = H100) -> str:
        return KERNEL.refuses((image, weight, tokens, positions), {"patch": 16}, device)

    assert said() == ""
    assert said(device=TURING) == "compute capability 7.5: needs 8.0"
    assert said(image.contiguous(memory_format=torch.channels_last)) == "the image is not contiguous"
    assert (
        said(image[:, :, :31]) != ""
        and said(image.new_empty(1, 3, 31, 32)) == "image of 31 × 32: needs multiples of 16"
    )
    assert "torch.float8_e4m3fn" in said(weight=weight.to(torch.float8_e4m3fn))
