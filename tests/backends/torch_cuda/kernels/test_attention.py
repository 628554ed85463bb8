from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels import float64  # noqa: E402
from backends.torch_cuda.kernels.float64 import AMPERE, H100, TURING, facts, numbers  # noqa: E402
from vitesse.backends.torch_cuda import steps  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.backends.torch_cuda.kernels import attention  # noqa: E402
from vitesse.backends.torch_cuda.kernels.attention import KERNEL  # noqa: E402
from vitesse.backends.torch_cuda.kernels.torch_attention import KERNEL as TORCH  # noqa: E402

# (images, heads, queries, keys, channels of a head, of a value): class token, whole blocks, odd lengths, odd sizes.
SHAPES = {
    "37 tokens like 197": (2, 3, 37, 37, 16, 16),
    "49 = 3 blocks and one key": (1, 2, 49, 49, 32, 32),
    "class token alone": (3, 2, 1, 67, 16, 16),
    "whole blocks": (1, 2, 64, 128, 16, 16),
    "one key": (2, 1, 5, 1, 16, 16),
    "cross attention": (1, 2, 20, 150, 16, 16),
    "80 channels": (1, 2, 17, 33, 80, 80),
    "values narrower than keys": (2, 2, 9, 40, 24, 8),
}
TOLERANCES = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [dtype for dtype in TOLERANCES if dtype != torch.bfloat16 or torch.cuda.is_available()]
Case = tuple[tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def packed(device: Any) -> Callable[..., Case]:
    """Queries behind 8 foreign channels; keys and values in one tensor, foreign channels behind. Foreign = NaN."""

    def made(shape: tuple[int, ...], dtype: Any = torch.float16, spread: float = 1.0) -> Case:
        images, heads, sq, sk, size, value_size = shape
        random = torch.Generator().manual_seed(sq * 1000 + sk)
        q = torch.full((images, sq, 8 + heads * size), torch.nan)
        q[..., 8:] = torch.randn(images, sq, heads * size, generator=random) * spread
        wide = heads * (size + value_size)
        kv = torch.full((images, sk, wide + 8), torch.nan)
        kv[..., :wide] = torch.randn(images, sk, wide, generator=random) * spread
        attributes = {
            **{"heads": heads, "head_size": size, "value_size": value_size, "scale": size**-0.5},
            **{"q_offset": 8, "v_offset": heads * size, "out_dtype": str(dtype).removeprefix("torch.")},
        }
        kv = kv.to(device, dtype)
        return (q.to(device, dtype), kv, kv), attributes

    return made


def expected(tensors: tuple[Any, ...], attributes: dict[str, Any], mask: Any = None) -> float64.Array:
    offsets = (attributes.get(f"{name}_offset", 0) for name in "qkv")
    q, k, v = (numbers(x)[..., offset:] for x, offset in zip(tensors[:3], offsets, strict=True))
    sizes = (attributes["heads"], attributes["head_size"], attributes["value_size"])
    return float64.attention(q, k, v, *sizes, attributes["scale"], mask)


def every(kernel: Any, tensors: tuple[Any, ...], attributes: dict[str, Any]) -> list[tuple[Tactic, Any]]:
    """Return what each configuration computes."""
    assert kernel.refuses(tensors, attributes, facts()) == ""
    found = kernel.tactics(tensors, attributes, facts())
    assert 0 < len(found) <= 12
    if kernel is TORCH and not torch.cuda.is_available():
        found = [
            Tactic(TORCH.name, {"backend": "math"})
        ]  # the one of its backends that runs on any processor
    made = []
    for tactic in found:
        run = kernel.prepare(tensors, attributes, tactic)
        try:
            made.append((tactic, run(*tensors)[0]))
        except (RuntimeError, UserWarning):
            # A backend of torch may still turn a mask or a stride down, and warn of it: choosing then drops it.
            if kernel is not TORCH:
                raise
    assert made
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_configuration_is_attention_in_float64(
    packed: Callable[..., Case], shape: tuple[int, ...], dtype: Any
) -> None:
    # bfloat16 is left out of DTYPES without a GPU: Triton's interpreter multiplies its bits as integers.
    tensors, attributes = packed(shape, dtype)
    right = expected(tensors, attributes)
    for tactic, found in every(KERNEL, tensors, attributes):
        assert found.dtype == dtype and found.is_contiguous()
        assert float64.error(found, right) < TOLERANCES[dtype], tactic.text()


def test_the_check_sees_one_forgotten_key(packed: Callable[..., Case]) -> None:
    tensors, attributes = packed(SHAPES["49 = 3 blocks and one key"])
    forgotten = expected((tensors[0], tensors[1][:, :-1], tensors[2][:, :-1]), attributes)
    for _, found in every(KERNEL, tensors, attributes):
        assert float64.error(found, forgotten) > 10 * TOLERANCES[torch.float16]


@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize("keys", [64, 161])
def test_split_keys_add_up(packed: Callable[..., Case], splits: int, keys: int) -> None:
    tensors, attributes = packed((1, 1, 18, keys, 16, 16))
    mask = torch.zeros(1, 1, 18, keys, device=tensors[0].device)
    mask[..., : keys // 2] = -torch.inf  # so that some splits see nothing at all
    config = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 2, "splits": splits, "tma": 0}
    run = KERNEL.prepare(tensors, attributes, Tactic(KERNEL.name, config))
    assert float64.error(run(*tensors)[0], expected(tensors, attributes)) < 1e-3
    assert float64.error(run(*tensors, mask)[0], expected(tensors, attributes, numbers(mask))) < 1e-3
    assert torch.equal(run(*tensors)[0], run(*tensors)[0])


MASKS: dict[str, Callable[[int, int, int, int], Any]] = {
    "additive, one for all": lambda b, h, q, k: torch.randn(q, k),
    "additive, by image, in float16": lambda b, h, q, k: torch.randn(b, 1, 1, k).half(),
    "additive, by head": lambda b, h, q, k: torch.randn(1, h, q, k),
    "padding of an image": lambda b, h, q, k: (
        torch.arange(k).expand(b, 1, 1, k) < torch.arange(k - b, k).view(b, 1, 1, 1)
    ),
    "all but one key": lambda b, h, q, k: torch.eye(k).bool()[torch.arange(q) % k].view(1, 1, q, k),
    "causal by float32's lowest": lambda b, h, q, k: torch.full((q, k), torch.finfo(torch.float32).min).triu(
        1
    ),
    "a whole row at float32's lowest": lambda b, h, q, k: torch.full((1, k), torch.finfo(torch.float32).min),
    "first keys at minus infinity": lambda b, h, q, k: torch.where(
        torch.arange(k) < k - 1, -torch.inf, 0.0
    ).view(1, k),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in multiply:RuntimeWarning")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kernel", [KERNEL, TORCH], ids=lambda kernel: str(kernel.name))
def test_masks_are_applied(packed: Callable[..., Case], mask: Callable[..., Any], kernel: Any) -> None:
    shape = (2, 2, 18, 75, 16, 16)
    tensors, attributes = packed(shape)
    given = mask(*shape[:4]).to(tensors[0].device)
    additive = (
        np.where(numbers(given.float()) > 0, 0.0, -np.inf) if given.dtype == torch.bool else numbers(given)
    )
    if kernel is TORCH and given.dtype != torch.bool:
        additive = numbers(given.half())  # library kernels take a mask of the queries' type
        if np.isinf(additive).all():
            pytest.skip("float16 has no number so low: torch makes the row NaN")
    # In float64 the lowest float32 still has room for a score; in float32 it swallows it, as in the definition.
    right = expected(tensors, attributes, additive)
    if "lowest" in next(name for name, made in MASKS.items() if made is mask) and kernel is KERNEL:
        right = numbers(steps.attention(*tensors, given, **{**attributes, "out_dtype": "float32"})[0])
    for tactic, found in every(kernel, (*tensors, given), attributes):
        assert float64.error(found, right) < 2e-3, tactic.text()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_row_without_any_key_is_nan_as_the_definition_says_and_no_other_row_is(
    packed: Callable[..., Case],
) -> None:
    tensors, attributes = packed((1, 2, 20, 40, 16, 16))
    mask = torch.ones(1, 1, 20, 40, dtype=torch.bool, device=tensors[0].device)
    mask[:, :, 7] = False
    plain = steps.attention(*tensors, mask, **attributes)[0].isnan()
    assert plain[:, 7].all() and plain.sum() == plain[:, 7].numel()
    for tactic, found in every(KERNEL, (*tensors, mask), attributes):
        assert torch.equal(found.isnan(), plain), tactic.text()


def test_large_scores_do_not_overflow(packed: Callable[..., Case]) -> None:
    tensors, attributes = packed((1, 2, 33, 70, 16, 16), spread=200.0)
    right = expected(tensors, attributes)
    for tactic, found in every(KERNEL, tensors, attributes):
        assert float64.error(found, right) < 2e-3, tactic.text()


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_an_image_full_of_nan_does_not_reach_its_neighbours(packed: Callable[..., Case]) -> None:
    tensors, attributes = packed((3, 2, 37, 37, 24, 24))
    right = expected(tensors, attributes)
    tensors[1][1] = torch.nan
    for tactic, found in every(KERNEL, tensors, attributes):
        assert found[1].isnan().all()
        assert float64.error(found[::2], right[::2]) < 1e-3, tactic.text()


def test_keys_and_values_of_a_constant_serve_the_whole_batch(packed: Callable[..., Case]) -> None:
    (q, kv, _), attributes = packed((3, 2, 20, 40, 16, 16))
    for tensors in ((q, kv[:1], kv), (q, kv[:1], kv[:1]), (q[:1], kv, kv)):
        right = expected(tensors, attributes)
        for kernel in (KERNEL, TORCH):
            for tactic, found in every(kernel, tensors, attributes):
                assert float64.error(found, right) < 1e-3, tactic.text()


def test_one_packed_tensor_serves_all_three(device: Any) -> None:
    qkv = torch.randn(2, 37, 3 * 32, generator=torch.Generator().manual_seed(5)).half().to(device)
    attributes = {
        **{"heads": 2, "head_size": 16, "value_size": 16, "scale": 0.25},
        **{"k_offset": 32, "v_offset": 64},
    }
    for kernel in (KERNEL, TORCH):
        for tactic, found in every(kernel, (qkv, qkv, qkv), attributes):
            assert float64.error(found, expected((qkv, qkv, qkv), attributes)) < 1e-3, tactic.text()


@pytest.mark.parametrize("splits", [1, 2])
def test_an_e4m3_output_is_on_the_grid_beside_the_exact_value(
    packed: Callable[..., Case], splits: int
) -> None:
    tensors, attributes = packed((2, 2, 37, 150, 16, 16))
    attributes["out_scale"] = 0.003  # 0.1 / 0.003 lies well inside; the largest values saturate at 448
    config = {"block_m": 16, "block_n": 32, "num_warps": 4, "num_stages": 2, "splits": splits, "tma": 1}
    found = KERNEL.prepare(tensors, attributes, Tactic(KERNEL.name, config))(*tensors)[0]
    # The shares are float16 in the product, so that values that nearly cancel are off by more than their own step.
    off = float64.e4m3_steps(found, expected(tensors, attributes), 0.003, least=1.0)
    assert found.dtype == torch.float8_e4m3fn and off.size > 1000
    assert off.max() <= 1 and (off > 0).mean() < 0.02


def test_every_place_of_the_output_is_written(
    packed: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, attributes = packed((2, 3, 37, 75, 24, 8))

    def poisoned(*sizes: Any, **options: Any) -> Any:
        return torch.full(*sizes, torch.nan, **options)

    monkeypatch.setattr(attention.torch, "empty", poisoned)
    for tactic, found in every(KERNEL, tensors, attributes):
        assert not found.isnan().any(), tactic.text()


def test_what_it_cannot_do_is_refused_with_the_reason() -> None:
    x = torch.empty(1, 37, 96, dtype=torch.float16, device="meta")
    attributes = {"heads": 2, "head_size": 16, "value_size": 16, "scale": 0.25}

    def said(tensors: Any = (x, x, x), device: Any = H100, **changed: Any) -> str:
        return KERNEL.refuses(tensors, {**attributes, **changed}, device)

    assert said() == ""
    assert said(device=TURING) == "compute capability 7.5: needs 8.0"
    assert said(device=AMPERE, out_scale=0.1) == "E4M3 output on compute capability 8.0: needs 8.9"
    assert said(scale=-0.25) == "scale -0.25: needs a positive one"
    assert said(head_size=512) == "heads of 512 and 16 channels: at most 256"
    assert "torch.float32" in said((x, x.float(), x)) and "float16 or bfloat16 for all" in said(
        (x, x.float(), x)
    )
    assert "float16 or bfloat16 for all" in said((x.float(),) * 3)
    assert said((x, x, x, torch.empty(37, 37, dtype=torch.int64, device="meta"))).startswith(
        "mask of type torch.int64"
    )
    assert said((x.transpose(1, 2), x, x)) == "channels do not lie side by side in memory"


def test_few_queries_split_their_keys_and_unaligned_or_narrow_heads_come_by_pointers() -> None:
    def configs(images: int, sq: int, sk: int, **changed: int) -> list[Any]:
        q, kv = (torch.empty(images, n, 512, dtype=torch.float16, device="meta") for n in (sq, sk))
        attributes = {"heads": 8, "head_size": 32, "value_size": 32, "scale": 0.2, "v_offset": 256, **changed}
        return [tactic.config for tactic in KERNEL.tactics((q, kv, kv), attributes, H100)]

    assert any(config["splits"] > 1 for config in configs(1, 100, 1050))
    assert all(config["splits"] == 1 for config in configs(32, 197, 197))
    assert all(config["tma"] for config in configs(1, 100, 1050))
    assert not any(config["tma"] for config in configs(1, 100, 1050, v_offset=252))
    assert not any(config["tma"] for config in configs(1, 100, 1050, value_size=8))


def test_torch_is_held_to_backends_that_take_the_node() -> None:
    def backends(dtype: Any, size: int, masked: bool = False, device: Any = H100) -> list[str]:
        x = torch.empty(1, 37, 2 * size, dtype=dtype, device="meta")
        tensors = (x, x, x, torch.empty(37, 37, dtype=dtype, device="meta") if masked else None)
        attributes = {"heads": 2, "head_size": size, "value_size": size, "scale": 0.25}
        return [tactic.config["backend"] for tactic in TORCH.tactics(tensors, attributes, device)]

    if torch.cuda.is_available():
        assert backends(torch.float16, 64) == ["flash", "cudnn", "efficient"]
        assert backends(torch.float16, 64, masked=True) == ["cudnn", "efficient"]
    assert "flash" not in backends(torch.float32, 64)
