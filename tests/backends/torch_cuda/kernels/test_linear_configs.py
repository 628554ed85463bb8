from __future__ import annotations

import pytest

from vitesse.backends.torch_cuda.kernels.linear_configs import SHARED_BYTES, GemmConfig, choices, cycles

# m, n, k of ViT-B/16 at batch 1 and 32, of the class token's rows, of ViT-L and ViT-H at 32, of DETR at 1 and 8.
SHAPES = [
    (197, 2304, 768),
    (197, 3072, 768),
    (197, 768, 3072),
    (6304, 2304, 768),
    (6304, 768, 768),
    (6304, 3072, 768),
    (6304, 768, 3072),
    (32, 3072, 768),
    (32, 1000, 768),
    (1, 1000, 768),
    (6304, 4096, 1024),
    (8224, 5120, 1280),
    (1050, 256, 256),
    (1050, 2048, 256),
    (8400, 256, 2048),
    (100, 256, 256),
    (800, 92, 256),
    (100, 4, 256),
    (1, 1, 8),
    (1, 24, 5),
]


@pytest.mark.parametrize("m, n, k", SHAPES)
@pytest.mark.parametrize("item_bytes", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_every_shape_gets_a_few_distinct_configurations_that_fit(m, n, k, item_bytes, residual):
    found = choices(m, n, k, item_bytes, 132, descriptors=True, residual=residual)
    assert 3 <= len(found) <= 12
    assert len(set(found)) == len(found)
    for one in found:
        assert one.shared_bytes(item_bytes) <= SHARED_BYTES
        assert not (one.persistent and one.split_k > 1)
        assert one.block_k * item_bytes == 128, "a row of a tile fills the 128 bytes of the swizzle"


def test_large_products_get_large_tiles_and_no_split():
    best = choices(6304, 3072, 768, 2, 132, descriptors=True)[0]
    assert best.block_m * best.block_n >= 128 * 128 and best.split_k == 1


def test_few_rows_with_a_long_sum_are_split_or_get_small_tiles():
    best = choices(197, 768, 3072, 2, 132, descriptors=True)[0]
    tiles = -(-197 // best.block_m) * -(-768 // best.block_n) * best.split_k
    assert tiles > 66, "most of the multiprocessors work"


def test_one_tile_more_than_there_are_multiprocessors_costs_a_wave():
    config = GemmConfig(128, 256, 64, 8, 3)
    full = cycles(config, 128 * 132, 256, 4096, 2, 132)
    assert cycles(config, 128 * 133, 256, 4096, 2, 132) > 1.8 * full
    assert cycles(config, 128 * 131, 256, 4096, 2, 132) == pytest.approx(full, rel=0.01)


def test_a_residual_leaves_out_what_has_no_room_for_it():
    without = choices(6304, 3072, 768, 2, 132, descriptors=True)
    beside = choices(6304, 3072, 768, 2, 132, descriptors=True, residual=True)
    assert any(one.persistent and one.block_n == 256 for one in without)
    assert not any(one.persistent and one.block_m * one.block_n > 128 * 128 for one in beside)
    assert not any((one.block_m, one.block_n) == (64, 256) for one in beside)


def test_a_configuration_survives_its_document():
    config = GemmConfig(64, 128, 64, 4, 4, split_k=3, operands="pointers", fast_sum=False)
    assert GemmConfig.of(config.document()) == config


def test_without_tma_or_early_launch_nothing_asks_for_them():
    for one in choices(1050, 256, 256, 2, 108, descriptors=False):
        assert one.operands == "pointers" and not one.persistent
