"""What the compiler makes of the kernels for an H100, at the sizes of real models: no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.compiling import SHARED_BYTES, compiled_by


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    return compiled_by("compiled_for_sm90.py")


def test_nothing_spills_and_everything_fits(compiled: dict[str, dict[str, Any]]) -> None:
    assert len(compiled) > 12
    for name, facts in compiled.items():
        assert facts["stack_bytes"] == facts["local_bytes"] == 0, (name, facts)
        assert facts["shared_bytes"] <= SHARED_BYTES, (name, facts)
        assert facts["registers"] <= 255


def test_launched_early_it_waits_for_what_it_reads(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert facts["waits"] == 1, (name, facts)


def test_large_products_use_the_tensor_cores_of_a_warpgroup(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        if name.startswith(("attention", "patches")):
            few_rows = "block_m=16" in name or "block_m=32" in name
            assert (facts["wgmma"] == 0) == few_rows, (name, facts)
            assert facts["wgmma"] + facts["mma"] > 0, (name, facts)


def test_keys_and_values_come_by_the_tensor_memory_accelerator(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert (facts["tma"] > 0) == ("tma=1" in name), (name, facts)


def test_rows_of_a_norm_are_read_16_bytes_at_a_time(compiled: dict[str, dict[str, Any]]) -> None:
    # Where a program takes several rows, the weight is spread over fewer threads and read in smaller pieces.
    norms = [facts for name, facts in compiled.items() if name.startswith("norm") and "rows=1 " in name]
    assert norms and all(facts["loads"] == facts["wide_loads"] for facts in norms)
