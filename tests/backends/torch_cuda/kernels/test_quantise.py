"""`triton.quantise` against NumPy: sums, layouts, sizes that fill no block."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import poisoned  # noqa: E402
from backends.torch_cuda.kernels.float64 import AMPERE, H100, facts, numbers  # noqa: E402
from vitesse.backends.torch_cuda.comparing import disagreement  # noqa: E402
from vitesse.backends.torch_cuda.kernels.quantise import KERNEL  # noqa: E402

SCALE = {"out_scale": 0.01}
E4M3 = torch.float8_e4m3fn


def noise(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def outputs(x: Any, other: Any, monkeypatch: Any) -> list[Any]:
    assert KERNEL.refuses((x, other), SCALE, facts()) == ""
    found = []
    for tactic in KERNEL.tactics((x, other), SCALE, facts()):
        run = KERNEL.prepare((x, other), SCALE, tactic)
        with poisoned(monkeypatch):
            found += run(x, other)
    return found


def nearest(values: Any, device: Any) -> Any:
    return torch.from_numpy(values / 0.01).clamp(-448, 448).float().to(E4M3).to(device)


@pytest.mark.parametrize("other", [None, (3, 25, 40), (1, 25, 40), (25, 40), (40,), (1,)])
def test_a_sum_is_rounded_once_to_the_nearest_of_the_grid(other: Any, device: Any, monkeypatch: Any) -> None:
    x = noise(3, 25, 40).to(device)
    added = None if other is None else noise(*other, seed=1).to(device)
    wide = numbers(x) + (0.0 if added is None else numbers(added))
    for made in outputs(x, added, monkeypatch):
        assert made.shape == x.shape
        assert disagreement((made,), (nearest(wide, device),)) == ""
        assert disagreement((made,), (nearest(wide + 0.1, device),)) != ""


def test_pixels_keep_their_order_in_memory(device: Any, monkeypatch: Any) -> None:
    x = noise(2, 24, 9, 7).to(device).contiguous(memory_format=torch.channels_last)
    for made in outputs(x, None, monkeypatch):
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert disagreement((made,), (nearest(numbers(x), device),)) == ""
    for made in outputs(x, noise(9, 7, seed=2).to(device), monkeypatch):
        wide = numbers(x) + numbers(noise(9, 7, seed=2))
        assert disagreement((made,), (nearest(wide, device),)) == ""


def test_a_transposed_input_is_laid_out_again(device: Any, monkeypatch: Any) -> None:
    x = noise(2, 16, 9).to(device).transpose(1, 2)
    for made in outputs(x, noise(9, 16, seed=3).to(device), monkeypatch):
        wide = numbers(x) + numbers(noise(9, 16, seed=3))
        assert disagreement((made,), (nearest(wide, device),)) == ""


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    x = noise(2, 8)
    assert "not torch.float32" in KERNEL.refuses((x.float(),), SCALE, H100)
    assert "8.9" in KERNEL.refuses((x,), SCALE, AMPERE)
    assert "no multiple of 3" in KERNEL.refuses((x, noise(3)), SCALE, H100)
