from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels import float64  # noqa: E402
from backends.torch_cuda.kernels.float64 import AMPERE, H100, TURING, facts, numbers  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.backends.torch_cuda.kernels import norm  # noqa: E402
from vitesse.backends.torch_cuda.kernels.norm import KERNEL  # noqa: E402
from vitesse.backends.torch_cuda.kernels.torch_norm import KERNEL as TORCH  # noqa: E402

EPSILON, SCALE = 1e-6, 0.02
TOLERANCES = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 1e-6}
KERNELS = pytest.mark.parametrize("kernel", [KERNEL, TORCH], ids=lambda kernel: str(kernel.name))


def inputs(
    device: Any, shape: tuple[int, ...], dtype: Any = torch.float16, residual: tuple[int, ...] = ()
) -> Any:
    random = torch.Generator().manual_seed(sum(shape))
    width = shape[-1]
    sizes = (shape, (width,), (width,), residual)
    made = [torch.randn(size, generator=random) if size else None for size in sizes]
    return tuple(None if x is None else x.to(device, dtype) for x in made)


def every(kernel: Any, tensors: Any, **attributes: Any) -> list[tuple[Tactic, Any]]:
    attributes = {"epsilon": EPSILON, **attributes}
    assert kernel.refuses(tensors, attributes, facts()) == ""
    found = kernel.tactics(tensors, attributes, facts())
    assert 0 < len(found) <= 12
    return [(tactic, kernel.prepare(tensors, attributes, tactic)(*tensors)) for tactic in found]


def right(tensors: Any, total: Any) -> float64.Array:
    return float64.norm(numbers(total), numbers(tensors[1]), numbers(tensors[2]), EPSILON)


@KERNELS
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 7, 200), (3, 5, 33), (11, 768), (1, 2, 4096)], ids=str)
def test_every_configuration_is_layer_norm_in_float64(
    device: Any, kernel: Any, shape: tuple[int, ...], dtype: Any
) -> None:
    tensors = inputs(device, shape, dtype)
    for tactic, (y, total, eight) in every(kernel, tensors):
        assert y.dtype == dtype and y.shape == shape and eight is None
        assert torch.equal(total, tensors[0])
        assert float64.error(y, right(tensors, tensors[0])) < TOLERANCES[dtype], tactic.text()


@KERNELS
@pytest.mark.parametrize(
    "residual",
    [(3, 7, 72), (7, 72), (1, 7, 72), (72,)],
    ids=["like x", "shared", "shared, batch of 1", "one row"],
)
def test_the_sum_is_rounded_once_and_then_normalised(
    device: Any, kernel: Any, residual: tuple[int, ...]
) -> None:
    tensors = inputs(device, (3, 7, 72), residual=residual)
    expected = (tensors[0].double() + tensors[3].double()).to(torch.float16)
    for tactic, (y, total, _) in every(kernel, tensors):
        assert torch.equal(total, expected), tactic.text()
        assert float64.error(y, right(tensors, expected)) < 5e-4, tactic.text()


def test_the_check_sees_a_residual_row_that_is_not_repeated(device: Any) -> None:
    tensors = inputs(device, (3, 7, 72), residual=(7, 72))
    wrong = tensors[0] + tensors[3].roll(1, 0)
    for _, (y, total, _) in every(KERNEL, tensors):
        assert not torch.equal(total, wrong)
        assert float64.error(y, right(tensors, wrong)) > 0.1


@KERNELS
@pytest.mark.parametrize("wanted", ["100", "010", "001", "110", "101", "011", "111"])
@pytest.mark.parametrize("residual", [(), (7, 72)], ids=["alone", "with a residual"])
def test_only_the_outputs_that_are_read_are_made(
    device: Any, kernel: Any, wanted: str, residual: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = inputs(device, (3, 7, 72), residual=residual)
    total = tensors[0] if not residual else (tensors[0].double() + tensors[3].double()).half()
    expected = right(tensors, total)
    poisoned = []

    def empty_like(x: Any, dtype: Any = None) -> Any:
        poisoned.append(torch.full(x.shape, torch.nan, device=x.device).to(dtype or x.dtype))
        return poisoned[-1]

    monkeypatch.setattr(norm.torch, "empty_like", empty_like)
    found = every(kernel, tensors, wanted=wanted, out_scale=SCALE)
    if kernel is KERNEL:
        own = wanted.count("1") - (
            wanted[1] == "1" and not residual
        )  # without a residual the sum is x itself
        assert len(poisoned) == own * len(found)
    for tactic, made in found:
        assert [x is not None for x in made] == [digit == "1" for digit in wanted]
        if made[0] is not None:
            assert float64.error(made[0], expected) < 5e-4, tactic.text()
        if made[1] is not None:
            assert torch.equal(made[1], total)
        if made[2] is not None:
            off = float64.e4m3_steps(made[2], expected, SCALE)
            assert off.max() <= 1 and (off > 0).mean() < 0.01, tactic.text()


def test_rows_far_from_zero_lose_nothing_to_cancellation(device: Any) -> None:
    tensors = inputs(device, (5, 256), torch.float32)
    tensors[0].add_(torch.tensor([0.0, 1e2, -1e3, 1e4, 0.0], device=device).view(5, 1))
    tensors[0][4] = 7.0  # no variance at all: epsilon keeps it finite
    for tactic, (y, *_) in every(KERNEL, tensors):
        assert y.isfinite().all()
        # float32 resolves 1e-3 at 1e4; a variance as E[x²] − E[x]² would be off by more than all of it.
        assert float64.error(y, right(tensors, tensors[0])) < 1e-3, tactic.text()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_one_row_of_infinity_or_nan_stays_in_its_row(device: Any) -> None:
    tensors = inputs(device, (6, 96))
    tensors[0][1, 5], tensors[0][4, 2] = torch.nan, torch.inf
    for tactic, (y, *_) in every(KERNEL, tensors):
        assert y.isnan().any(1).tolist() == [False, True, False, False, True, False], tactic.text()


@KERNELS
def test_the_bias_may_be_absent(device: Any, kernel: Any) -> None:
    x, weight, _, _ = inputs(device, (4, 48))
    for tensors in ((x, weight), (x, weight, None), (x, weight, None, None)):
        for tactic, (y, *_) in every(kernel, tensors):
            expected = float64.norm(numbers(x), numbers(weight), None, EPSILON)
            assert float64.error(y, expected) < 5e-4, tactic.text()


def test_values_beyond_e4m3_saturate(device: Any) -> None:
    x, weight, bias, _ = inputs(device, (4, 64))
    for kernel in (KERNEL, TORCH):
        for _, (_, _, eight) in every(kernel, (x, weight * 1000, bias), out_scale=0.5, wanted="001"):
            assert eight.float().abs().max() == 448


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    def said(
        shape: tuple[int, ...] = (2, 7, 64),
        residual: tuple[int, ...] = (),
        dtype: Any = torch.float16,
        **more: Any,
    ) -> str:
        x, weight = (torch.empty(size, dtype=dtype, device="meta") for size in (shape, shape[-1:]))
        other = torch.empty(residual, dtype=dtype, device="meta") if residual else None
        return KERNEL.refuses(
            (x, weight, weight, other), more.get("attributes", {}), more.get("device", H100)
        )

    assert said() == said(residual=(7, 64)) == ""
    assert said(device=TURING) == "compute capability 7.5: needs 8.0"
    assert said(device=AMPERE, attributes={"out_scale": 0.1}) == "compute capability 8.0: needs 8.9"
    assert said((2, 9000)) == "9000 channels: at most 8192"
    assert said(residual=(2, 1, 64)) == "residual (2, 1, 64): needs a suffix of (2, 7, 64)"
    assert said(dtype=torch.float64).endswith("needs float16, bfloat16 or float32")
