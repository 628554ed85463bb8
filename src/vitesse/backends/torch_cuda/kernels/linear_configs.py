"""Which tiles are worth measuring for a matrix product: ranked by a model of waves, tiles and bytes.

The last wave decides: 132 multiprocessors take 133 equal tiles in twice the time of 132. Numbers of the model are those
of an H100; only the order that it gives is used, and the measurement decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHARED_BYTES = 227 * 1024
REGISTERS = 65536
# Dense multiply-adds of one multiprocessor and cycle in 16 bits; E4M3 has twice as many.
MULTIPLY_ADDS_16_BIT = 2048
BYTES_PER_CYCLE = 1900.0
# Filling the pipeline and storing the tile; the epilogue's instructions for each element. In cycles.
TILE_CYCLES = 900.0
ELEMENT_CYCLES = 0.11
SPLIT_CYCLES = 1800.0
MOST = 12


@dataclass(frozen=True)
class GemmConfig:
    """One way to run the kernels of gemm.py.

    Args:
        block_m, block_n, block_k: the tile, elements.
        num_warps, num_stages: Triton's.
        split_k: programs that share the K range of a tile.
        group: rows of tiles that go column by column.
        operands: "descriptors" (TMA; rows of a multiple of 16 bytes) or "pointers".
        persistent: a program for each multiprocessor walks over the tiles; not with split_k.
        fast_sum: sums of E4M3 products stay in the tensor core's shorter accumulator instead of going to float32
            after every block_k.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    group: int = 8
    operands: str = "descriptors"
    persistent: bool = False
    fast_sum: bool = True

    def document(self) -> dict[str, Any]:
        """Return it as Tactic.config has it."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> GemmConfig:
        """Read it back from Tactic.config."""
        return cls(**document)

    def shared_bytes(self, item_bytes: int) -> int:
        """Shared memory of the operands' stages."""
        return self.num_stages * (self.block_m + self.block_n) * self.block_k * item_bytes

    def resident(self, item_bytes: int) -> int:
        """Programs that fit one multiprocessor at once, by shared memory and by the accumulator's registers."""
        by_shared = SHARED_BYTES // self.shared_bytes(item_bytes)
        threads = 32 * self.num_warps
        registers = min(255, self.block_m * self.block_n // threads + 64)
        return max(1, min(by_shared, REGISTERS // (registers * threads), 8))


# block_m, block_n, warps, stages of 128 bytes of K, the share of the tensor cores' peak that the inner loop reaches.
TILES: tuple[tuple[int, int, int, int, float], ...] = (
    (128, 256, 8, 3, 0.80),
    (256, 128, 8, 3, 0.78),
    (128, 128, 8, 4, 0.66),
    (128, 128, 4, 3, 0.70),
    (64, 256, 4, 2, 0.66),
    (64, 128, 4, 4, 0.55),
    (128, 64, 4, 4, 0.55),
    (64, 64, 4, 4, 0.38),
    (64, 32, 4, 5, 0.22),
    (32, 64, 4, 5, 0.16),
    (16, 64, 4, 5, 0.09),
)


def choices(
    m: int,
    n: int,
    k: int,
    item_bytes: int,
    sms: int,
    *,
    descriptors: bool,
    residual: bool = False,
) -> list[GemmConfig]:
    """Return at most 12 configurations for [m, k] · [k, n], the one that should be fastest first.

    Args:
        item_bytes: of an element of the operands: 2, or 1 for E4M3.
        sms: multiprocessors of the device.
        descriptors: whether x and weight can be read by TMA.
        residual: whether one is added: it needs registers and shared memory beside the sums.
    """
    fitting = [one for one in _all(m, n, k, item_bytes, descriptors) if not residual or _holds_residual(one)]
    found = sorted(fitting, key=lambda one: cycles(one, m, n, k, item_bytes, sms))
    best = found[: MOST - 3]
    # What the model does not see is tried on its favourites.
    first = best[0]
    others = []
    if item_bytes == 1:
        others += [GemmConfig(**(one.document() | {"fast_sum": False})) for one in best[:2] if _promotes(one)]
    if descriptors:
        stages = {"operands": "pointers", "persistent": False}
        others.append(GemmConfig(**(first.document() | stages)))
    return [*best, *others][:MOST]


def cycles(config: GemmConfig, m: int, n: int, k: int, item_bytes: int, sms: int) -> float:
    """Estimate the clock cycles of a launch: waves of tiles on the tensor cores, or the bytes of the operands."""
    share = next(one[4] for one in TILES if one[:3] == (config.block_m, config.block_n, config.num_warps))
    tiles = math.ceil(m / config.block_m) * math.ceil(n / config.block_n)
    resident = config.resident(item_bytes)
    steps = math.ceil(math.ceil(k / config.block_k) / config.split_k)
    product = config.block_m * config.block_n * config.block_k * steps
    inner = product * item_bytes / 2 / (MULTIPLY_ADDS_16_BIT * share)
    per_multiprocessor = math.ceil(tiles * config.split_k / sms)
    # Programs that are resident together hide each other's ends; a walk over the tiles hides only the loads.
    seen = 0.35 if resident > 1 else 0.75 if config.persistent else 1.0
    end = TILE_CYCLES + ELEMENT_CYCLES * config.block_m * config.block_n
    ends = end * (1 + (per_multiprocessor - 1) * seen)
    operands = (m * k + n * k) * item_bytes + 2 * m * n
    split = SPLIT_CYCLES + 8 * m * n * config.split_k / BYTES_PER_CYCLE if config.split_k > 1 else 0.0
    return max(per_multiprocessor * inner + ends, operands / BYTES_PER_CYCLE) + split


def _all(m: int, n: int, k: int, item_bytes: int, descriptors: bool) -> list[GemmConfig]:
    block_k = 128 // item_bytes
    operands = "descriptors" if descriptors else "pointers"
    made = []
    for block_m, block_n, warps, stages, _ in TILES:
        # The lowest tiles are 64 columns wide: without them few rows of few columns would have none.
        if block_m > _padded(m) or block_n > _padded(n):
            continue
        for split in _splits(k, block_k):
            made.append(GemmConfig(block_m, block_n, block_k, warps, stages, split, operands=operands))
        if descriptors and warps == 8:
            made.append(
                GemmConfig(block_m, block_n, block_k, warps, stages, operands=operands, persistent=True)
            )
    return made


def _splits(k: int, block_k: int) -> list[int]:
    steps = math.ceil(k / block_k)
    return [split for split in (1, 2, 3, 4, 6, 8) if steps // split >= 3 or split == 1]


def _padded(length: int) -> int:
    """The largest side of a tile that is worth trying: the next power of two, and 64 at least."""
    return max(64, 1 << (length - 1).bit_length())


def _holds_residual(config: GemmConfig) -> bool:
    """Compiled for compute capability 9.0, the others spill registers or take more than 227 KiB of shared memory."""
    if config.persistent:
        return config.block_m * config.block_n <= 128 * 128
    return (config.block_m, config.block_n) != (64, 256)


def _promotes(config: GemmConfig) -> bool:
    """A second accumulator fits the registers."""
    return config.block_m * config.block_n // (32 * config.num_warps) <= 64
