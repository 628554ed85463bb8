"""What the compiler makes of gemm.py for an H100: tensor core instructions, no spilled registers, memory that fits."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels are in Triton")

from sm90 import SHARED_BYTES, compiled
from vitesse.backends.torch_cuda.kernels.linear_configs import TILES, GemmConfig

PLACE = "vitesse.backends.torch_cuda.kernels.gemm:"
SIZES = ("M", "N", "K", "x_stride", "out_stride", "residual_stride", "residual_rows")
LARGE = GemmConfig(128, 256, 64, 8, 3)
BYTES = {"fp16": 2, "fp8e4nv": 1}
# name → (configuration, operands, output, activation, residual)
CASES: dict[str, tuple[GemmConfig, str, str, str, bool]] = {
    "large": (LARGE, "fp16", "fp16", "gelu", False),
    "large persistent": (dataclasses.replace(LARGE, persistent=True), "fp16", "fp16", "gelu", False),
    "large with residual": (LARGE, "fp16", "fp16", "", True),
    "large of e4m3": (dataclasses.replace(LARGE, block_k=128), "fp8e4nv", "fp8e4nv", "gelu", False),
    "promoted": (GemmConfig(128, 128, 128, 8, 4, fast_sum=False), "fp8e4nv", "fp16", "", True),
    "shares of K": (GemmConfig(64, 64, 64, 4, 4, split_k=4), "fp16", "fp16", "", True),
    "two at once": (GemmConfig(128, 128, 64, 4, 3), "fp16", "fp16", "gelu", False),
    "pointers": (GemmConfig(64, 128, 64, 4, 4, operands="pointers"), "fp16", "fp16", "relu", False),
}


def described(config: GemmConfig, operand: str, out: str, activation: str, residual: bool) -> dict[str, Any]:
    """The arguments of `sm90.compiled` for one configuration."""
    by_tma = config.operands == "descriptors"
    m, n, k = config.block_m, config.block_n, config.block_k
    signature = dict.fromkeys(SIZES, "i32") | {"inverse_scale": "fp32", "bias": "*fp32"}
    signature["x"] = f"tensordesc<{operand}[{m}, {k}]>" if by_tma else f"*{operand}"
    signature["weight"] = f"tensordesc<{operand}[{n}, {k}]>" if by_tma else f"*{operand}"
    signature["out"] = f"tensordesc<{out}[{m}, {n}]>" if by_tma else f"*{out}"
    constants: dict[str, Any] = {
        "ACTIVATION": activation,
        "APPROXIMATE": out == "fp8e4nv",
        "RESIDUAL_FIRST": False,
        "SHARED_ROWS": False,
        "DESCRIPTORS": by_tma,
        "OUT_DESCRIPTOR": by_tma,
        "DEPENDENT": True,
        "EVEN_K": True,
        "PROMOTED": None if config.fast_sum else k,
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_K": k,
        "GROUP": config.group,
    }
    for name, kind, there in (("scale", "*fp32", BYTES[operand] == 1), ("residual", "*fp16", residual)):
        (signature if there else constants)[name] = kind if there else None
    if config.persistent:
        constants |= {"PROGRAMS": 132}
    else:
        constants |= {"SPLIT": config.split_k, "column_sums": None}
        signature["epsilon"] = "fp32"
        split = config.split_k > 1
        (signature if split else constants).update({"partial": "*fp32" if split else None})
        (signature if split else constants).update({"arrived": "*i32" if split else None})
    return {
        "kernel": PLACE + ("persistent_gemm" if config.persistent else "gemm"),
        "signature": signature,
        "constants": constants,
        "even": [size for size in SIZES if size not in ("M", "residual_rows")],
        "options": {
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "launch_pdl": True,
        },
    }


@cache
def results() -> dict[str, dict[str, Any]]:
    return dict(zip(CASES, compiled([described(*one) for one in CASES.values()]), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_multiplies_on_hoppers_tensor_cores_without_spilling(name):
    made = results()[name]
    assert made["wgmma"] > 0
    assert made["spilled"] == 0
    assert made["shared"] <= SHARED_BYTES
    assert (made["tma"] > 0) == (CASES[name][0].operands == "descriptors")


def test_one_row_which_triton_takes_for_a_constant_compiles():
    for config in (GemmConfig(16, 64, 64, 4, 5, split_k=3), GemmConfig(128, 128, 64, 8, 4, persistent=True)):
        one = described(config, "fp16", "fp16", "gelu", True)
        one["constants"] |= {"M": 1, "residual_rows": 1}
        (made,) = compiled([one])
        assert made["spilled"] == 0


def test_a_tile_too_large_for_the_registers_is_seen_to_spill():
    (made,) = compiled(
        [described(GemmConfig(128, 256, 128, 8, 3, fast_sum=False), "fp8e4nv", "fp16", "gelu", False)]
    )
    assert made["spilled"] > 0


def test_what_is_left_out_beside_a_residual_is_seen_to_need_more_than_there_is():
    spilling = GemmConfig(64, 256, 64, 4, 2)
    large = dataclasses.replace(LARGE, persistent=True)
    first, second = compiled([described(one, "fp16", "fp16", "", True) for one in (spilling, large)])
    assert first["spilled"] > 0
    assert second["shared"] > SHARED_BYTES


def test_a_tile_too_low_for_wgmma_is_seen_to_lack_it():
    (made,) = compiled([described(GemmConfig(32, 64, 64, 4, 3), "fp16", "fp16", "", False)])
    assert made["wgmma"] == 0


def test_the_stages_that_are_promised_fit_shared_memory():
    for block_m, block_n, warps, stages, _ in TILES:
        for item_bytes in (1, 2):
            config = GemmConfig(block_m, block_n, 128 // item_bytes, warps, stages)
            assert config.shared_bytes(item_bytes) + block_m * block_n * 2 <= SHARED_BYTES
