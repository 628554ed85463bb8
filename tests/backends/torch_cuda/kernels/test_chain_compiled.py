"""What the compiler makes of chained convolutions for an H100, at a real model's sizes: no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.compiling import SHARED_BYTES, compiled_by


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    return compiled_by("chain_compiled_for_sm90.py")


def test_no_configuration_spills_and_all_fit(compiled: dict[str, dict[str, Any]]) -> None:
    assert len(compiled) > 25
    for name, facts in compiled.items():
        assert facts["stack_bytes"] == facts["local_bytes"] == 0, (name, facts)
        assert facts["shared_bytes"] <= SHARED_BYTES, (name, facts)


def test_both_products_use_the_tensor_cores_of_a_warpgroup(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert facts["wgmma"] > 0 and facts["mma"] == 0, (name, facts)


def test_launched_early_it_waits_for_what_it_reads(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert facts["waits"] == 1, (name, facts)
