"""The configurations that are measured for a convolution: few, different, and such as fit the machine."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")
import torch

from vitesse.backends.torch_cuda.kernels.conv_configs import (
    BOXES,
    ROWS,
    STEM,
    TAPS,
    ConvConfig,
    choices,
    stem_choices,
    tiles_of,
)
from vitesse.backends.torch_cuda.kernels.geometry import Geometry
from vitesse.backends.torch_cuda.kernels.linear_configs import SHARED_BYTES
from vitesse.backends.torch_cuda.kernels.stem_rows import Rows

# Of DETR-R50 at 800 × 1333: channels, height and width of the input, stride.
LAYERS = [(64, 200, 334, 1), (128, 200, 334, 2), (128, 100, 167, 1), (256, 50, 84, 1), (512, 25, 42, 1)]


def geometry(channels: int, height: int, width: int, stride: int, batch: int = 1) -> Geometry:
    x = torch.empty(batch, channels, height, width, device="meta")
    weight = torch.empty(channels, channels, 3, 3, device="meta")
    return Geometry.of((x, weight), {"strides": (stride, stride), "pads": (1, 1, 1, 1)})


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("item_bytes", [2, 1])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_what_is_offered_is_bounded_different_and_fits_shared_memory(
    layer: tuple[int, int, int, int], item_bytes: int, batch: int
) -> None:
    found = choices(geometry(*layer, batch), item_bytes, 132)
    assert 4 <= len(found) <= 12
    assert len(set(found)) == len(found)
    for config in found:
        assert (
            config.num_stages * (config.block_m + config.block_n) * config.block_k * item_bytes
            <= SHARED_BYTES
        )
        assert ConvConfig.of(config.document()) == config


def test_boxes_are_offered_where_the_tma_unit_can_read_them() -> None:
    programs = {config.program for config in choices(geometry(128, 100, 167, 1), 2, 132)}
    assert programs == {TAPS, BOXES}
    assert {config.program for config in choices(geometry(128, 200, 334, 2), 2, 132)} == {TAPS}
    assert {config.program for config in choices(geometry(128, 100, 167, 1), 2, 132, descriptors=False)} == {
        TAPS
    }


def test_a_tile_that_would_spill_beside_a_residual_is_not_offered() -> None:
    large = geometry(256, 50, 84, 1, 8)
    assert any((config.block_m, config.block_n) == (256, 128) for config in choices(large, 2, 132))
    beside = choices(large, 2, 132, residual=True)
    assert beside
    assert all((config.block_m, config.block_n) != (256, 128) for config in beside)


def test_a_small_layer_gets_small_tiles_and_a_large_one_large_ones() -> None:
    small, large = (
        choices(geometry(512, 25, 42, 1), 2, 132)[0],
        choices(geometry(256, 50, 84, 1, 8), 2, 132)[0],
    )
    assert small.block_m * small.block_n < large.block_m * large.block_n


def test_tiles_cover_every_pixel_once() -> None:
    found = geometry(128, 50, 84, 1, batch=2)
    assert tiles_of(ConvConfig(TAPS, 128, 64, 64, 4, 4), found) == 66 * 2  # 8400 pixels
    assert tiles_of(ConvConfig(BOXES, 128, 128, 64, 4, 4, box_x=16), found) == 2 * 7 * 6


def stem(size: int, taps: int = 7, stride: int = 2, channels: int = 3) -> Geometry:
    x = torch.empty(1, channels, size, size, device="meta")
    weight = torch.empty(64, channels, taps, taps, device="meta")
    return Geometry.of((x, weight), {"strides": (stride, stride), "pads": (taps // 2,) * 4})


def test_a_stem_is_not_cut_wider_than_its_rows() -> None:
    found = stem_choices(stem(64))
    assert {config.program for config in found} == {STEM, ROWS}
    assert all(config.block_m <= 64 for config in found)


def test_a_large_stem_is_tried_in_few_ways_packed_ones_first() -> None:
    assert [config.program for config in stem_choices(stem(800))] == [ROWS] * 6 + [STEM] * 2


@pytest.mark.parametrize(("taps", "channels"), [(3, 1), (5, 4), (7, 3), (11, 4), (15, 2)])
def test_what_is_offered_for_packed_rows_differs_and_fits_shared_memory(taps: int, channels: int) -> None:
    shape = stem(800, taps, channels=channels)
    found = [config for config in stem_choices(shape) if config.program == ROWS]
    assert len(set(found)) == len(found) >= 4
    for config in found:
        assert config.block_k % Rows.of(shape).depth == 0
        assert config.num_stages * (config.block_m + config.block_n) * config.block_k * 2 <= SHARED_BYTES
        one_step = config.block_k >= Rows.of(shape).depth * taps
        assert config.num_stages == 1 or not one_step


def test_an_odd_stride_is_not_packed() -> None:
    assert {config.program for config in stem_choices(stem(800, stride=3))} == {STEM}
