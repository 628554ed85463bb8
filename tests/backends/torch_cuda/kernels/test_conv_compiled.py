"""What the compiler makes of convolutions and pooling for an H100, at a real model's sizes: no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.compiling import SHARED_BYTES, compiled_by


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    return compiled_by("conv_compiled_for_sm90.py")


def is_rows(name: str) -> bool:
    """Whether it reads packed rows, alone or with the pooling behind it."""
    return name.startswith("conv") and ("program=rows" in name or "stem_pool" in name)


def test_nothing_spills_and_everything_fits(compiled: dict[str, dict[str, Any]]) -> None:
    assert len(compiled) > 25
    for name, facts in compiled.items():
        assert facts["stack_bytes"] == facts["local_bytes"] == 0, (name, facts)
        assert facts["shared_bytes"] <= SHARED_BYTES, (name, facts)


def test_launched_early_it_waits_for_what_it_reads(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert facts["waits"] == 1, (name, facts)


def test_every_convolution_uses_the_tensor_cores_of_a_warpgroup(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert (facts["wgmma"] > 0) == name.startswith("conv"), (name, facts)


def test_boxes_come_by_the_tensor_memory_accelerator(compiled: dict[str, dict[str, Any]]) -> None:
    for name, facts in compiled.items():
        assert (facts["tma"] > 0) == ("program=boxes" in name), (name, facts)


def test_windows_of_packed_rows_are_read_16_bytes_at_a_time(compiled: dict[str, dict[str, Any]]) -> None:
    found = {name: facts for name, facts in compiled.items() if is_rows(name)}
    assert {"num_stages=1 " in name for name in found} == {True, False}
    for name, facts in found.items():
        # What else is loaded are the offsets of two filters, and the weight where it is not copied.
        assert facts["loads"] - facts["wide_loads"] <= 2, (name, facts)
        assert facts["copies"] == facts["wide_copies"], (name, facts)
        assert (facts["copies"] == 0) == ("num_stages=1 " in name), (name, facts)


def test_the_image_is_packed_once_for_each_call_and_stored_8_bytes_at_a_time(
    compiled: dict[str, dict[str, Any]],
) -> None:
    before = {name: facts for name, facts in compiled.items() if name.startswith("before")}
    assert {name.removeprefix("before ") for name in before} == {name for name in compiled if is_rows(name)}
    for name, facts in before.items():
        assert facts["stores"] == facts["wide_stores"] > 0, (name, facts)


def test_pixels_of_a_pool_are_read_16_bytes_at_a_time(compiled: dict[str, dict[str, Any]]) -> None:
    pools = [facts for name, facts in compiled.items() if name.startswith("pool")]
    assert pools and all(facts["loads"] == facts["wide_loads"] for facts in pools)
