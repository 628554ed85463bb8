"""Which tiles are worth measuring for a convolution: ranked by a model of waves, products and bytes.

As in linear_configs only the order that the model gives is used; the measurement decides. Its numbers are an H100's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitesse.backends.torch_cuda.kernels.geometry import Geometry, power_of_two
from vitesse.backends.torch_cuda.kernels.linear_configs import REGISTERS, SHARED_BYTES
from vitesse.backends.torch_cuda.kernels.stem_rows import ROWS_FILTERS, deepest, refusal, step_depth

TAPS, BOXES, STEM, ROWS = "taps", "boxes", "stem", "rows"

# Dense multiply-adds of one multiprocessor and cycle in 16 bits, and the bytes that L2 gives it meanwhile.
MULTIPLY_ADDS_16_BIT = 2048
L2_BYTES = 26.0
# Filling the pipeline, the epilogue and the launch, in cycles.
TILE_CYCLES = 1500.0
# Bytes of channels that a product takes at once: a line of shared memory, which wgmma reads without conflicts.
DEPTH_BYTES = 128
# Filters of a stem's product at once, and how deep it goes at once.
STEM_DEPTH = 32
MOST_TAPS, MOST_BOXES, MOST_STEMS = 8, 4, 2


@dataclass(frozen=True)
class ConvConfig:
    """One way to run the kernels of conv_program.py, stem_program.py and stem_rows_program.py.

    Args:
        program: TAPS (addresses computed), BOXES (loaded by the TMA unit, stride 1), STEM (few channels, in planes),
            ROWS (few channels, packed to pixels first).
        block_m, block_n, block_k: pixels, filters and channels of a tile; for BOXES block_m = rows · box_x, and for
            STEM and ROWS block_k counts channels of all taps.
        box_x: how many pixels of a BOXES tile lie side by side; 0 for the others.
        group: tiles of pixels that are walked before the next tile of filters.
    """

    program: str
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    box_x: int = 0
    group: int = 8

    def document(self) -> dict[str, Any]:
        """Return it as Tactic.config has it."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ConvConfig:
        """Read it back from Tactic.config."""
        return cls(**document)


# block_m, block_n, warps, stages of DEPTH_BYTES, the share of the tensor cores' peak that the inner loop reaches.
TILES: tuple[tuple[int, int, int, int, float], ...] = (
    (256, 128, 8, 3, 0.72),
    (128, 128, 8, 4, 0.62),
    (128, 128, 4, 3, 0.64),
    (256, 64, 8, 4, 0.55),
    (128, 64, 4, 4, 0.50),
    (64, 128, 4, 4, 0.50),
    (64, 64, 4, 6, 0.38),
)
# With a residual these do not fit the registers of sm_90; all others do (tests hold them to it).
SPILLING = ((256, 128),)
# For the first layer: pixels of a row and warps; where it is packed, pixels, depth of a step, warps and stages. With
# one stage loads go through the L1 cache, which has what neighbouring windows share; with more they are async copies.
STEM_TILES = ((128, 4), (128, 8), (64, 4))
ROWS_TILES = (
    (256, 32, 8, 3),
    (128, 32, 4, 4),
    (128, 64, 4, 3),
    (128, 256, 8, 1),
    (256, 32, 8, 1),
    (64, 256, 4, 1),
)
# How a box of that many pixels may lie: pixels side by side.
BOX_WIDTHS = {64: (8, 16), 128: (16, 8, 32), 256: (16, 32)}


def choices(
    found: Geometry,
    item_bytes: int,
    sms: int,
    *,
    residual: bool = False,
    descriptors: bool = True,
) -> list[ConvConfig]:
    """Return what is worth measuring for a convolution of many channels, best guess first.

    Args:
        item_bytes: of an element of x and the weight: 2 or 1.
        sms: multiprocessors of the device.
        residual: whether one is added: it takes registers beside the sums.
        descriptors: whether the TMA unit is there and can read x: stride 1, pixels of a multiple of 16 bytes.
    """
    depth = block_k(found, item_bytes)
    ranked: list[tuple[float, ConvConfig]] = []
    for block_m, block_n, warps, stages, share in TILES:
        if block_n > max(64, power_of_two(found.filters)) or (residual and (block_m, block_n) in SPILLING):
            continue
        plain = ConvConfig(TAPS, block_m, block_n, depth, warps, stages)
        ranked.append((_cycles(plain, found, item_bytes, sms, share), plain))
        if descriptors and found.strides == (1, 1):
            for box_x in BOX_WIDTHS[block_m]:
                box = ConvConfig(BOXES, block_m, block_n, depth, warps, stages, box_x=box_x)
                # Threads that compute no addresses leave more of the peak; 5 % is a guess that puts boxes first.
                ranked.append((_cycles(box, found, item_bytes, sms, share * 1.05), box))
    ranked.sort(key=lambda entry: entry[0])
    first = [config for _, config in ranked if config.program == TAPS][:MOST_TAPS]
    second = [config for _, config in ranked if config.program == BOXES][:MOST_BOXES]
    return [config for _, config in ranked if config in first or config in second]


def stem_choices(found: Geometry) -> list[ConvConfig]:
    """Return what is worth measuring for the first layer: packed to pixels where it can be, and as it comes."""
    widest = max(64, power_of_two(found.out_width))
    block_n = max(16, min(64, power_of_two(found.filters)))
    fitting = [tile for tile in STEM_TILES if tile[0] <= widest][:MOST_STEMS]
    plain = [ConvConfig(STEM, block_m, block_n, STEM_DEPTH, warps, 2) for block_m, warps in fitting]
    if refusal(found):
        return plain
    packed = []
    for block_m, wanted, warps, stages in ROWS_TILES:
        depth = step_depth(found, wanted)
        if block_m <= widest:
            ahead = stages if depth < deepest(found) else 1
            packed.append(ConvConfig(ROWS, block_m, ROWS_FILTERS, depth, warps, ahead))
    return [*dict.fromkeys(packed), *plain]


def block_k(found: Geometry, item_bytes: int) -> int:
    """Return the channels of one product: DEPTH_BYTES of them, fewer where the input has fewer."""
    return min(DEPTH_BYTES // item_bytes, max(32, power_of_two(found.channels)))


def tiles_of(config: ConvConfig, found: Geometry) -> int:
    """Return how many tiles, and so programs, a configuration makes of a convolution."""
    across = math.ceil(found.filters / config.block_n)
    if config.program == TAPS:
        return math.ceil(found.pixels / config.block_m) * across
    if config.program in (STEM, ROWS):
        return math.ceil(found.out_width / config.block_m) * found.out_height * found.batch * across
    rows = config.block_m // config.box_x
    return (
        found.batch * math.ceil(found.out_height / rows) * math.ceil(found.out_width / config.box_x) * across
    )


def _cycles(config: ConvConfig, found: Geometry, item_bytes: int, sms: int, share: float) -> float:
    """Estimate the cycles of the whole kernel: full waves of what one multiprocessor does."""
    steps = found.taps * math.ceil(found.channels / config.block_k)
    products = (
        config.block_m * config.block_n * config.block_k / (MULTIPLY_ADDS_16_BIT * (2 / item_bytes) * share)
    )
    loaded = (config.block_m + config.block_n) * config.block_k * item_bytes / L2_BYTES
    threads = 32 * config.num_warps
    shared = config.num_stages * (config.block_m + config.block_n) * config.block_k * item_bytes
    registers = config.block_m * config.block_n // threads + 80
    resident = max(1, min(SHARED_BYTES // shared, REGISTERS // (registers * threads)))
    tiles = tiles_of(config, found)
    # Tiles of one multiprocessor share its tensor cores; what they overlap is filling and finishing.
    each = math.ceil(tiles / sms)
    return each * steps * max(products, loaded) + math.ceil(each / resident) * TILE_CYCLES
