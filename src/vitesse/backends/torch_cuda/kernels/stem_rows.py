"""How an image of few channels is packed for stem_rows_program.py, and which convolutions can read it so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.kernels.geometry import Geometry, power_of_two

# Values of a pixel, the missing channels zero.
PIXEL = 4
# Pixels that one program packs.
PACKED_AT_ONCE = 512
# Filters of a product at once: the rows of a warpgroup's.
ROWS_FILTERS = 64
# The most taps of a row: as many pixels are as deep as one product goes.
MOST_TAPS_X = 16
# Offsets have 32 bits.
MOST_VALUES = 2**31 - 1


@dataclass(frozen=True)
class Rows:
    """The packed image of one convolution: [batch, height, pixels, PIXEL], with zeros for the pads of its rows.

    Args:
        window: pixels that the taps of a row are read as: a power of two, at least what a product needs.
        pixels: of a row: the pads, the image, and what the last window reads beyond its taps; a multiple of 4, so
            that every row begins at a multiple of 32 bytes.
    """

    window: int
    pixels: int

    @classmethod
    def of(cls, found: Geometry) -> Rows:
        """Return the packed image that a convolution reads."""
        window = max(4, power_of_two(found.kernel[1]))
        read = found.strides[1] * (found.out_width - 1) + window
        return cls(window, read + -read % 4)

    @property
    def depth(self) -> int:
        """Values of a window: how deep the product over the taps of one row is."""
        return self.window * PIXEL


def deepest(found: Geometry) -> int:
    """Return how deep a product over all taps is: as deep as this, it is one step, with nothing to load ahead."""
    return Rows.of(found).depth * power_of_two(found.kernel[0])


def step_depth(found: Geometry, wanted: int) -> int:
    """Return how deep one step of the product goes: as wanted, but a whole row of taps at least, and all at most."""
    return max(Rows.of(found).depth, min(wanted, deepest(found)))


def refusal(found: Geometry) -> str:
    """Return "" or why a convolution cannot be computed from packed rows."""
    if found.channels > PIXEL:
        return f"{found.channels} channels, a packed pixel has {PIXEL}"
    if found.strides[1] % 2:
        return f"stride {found.strides[1]}: pixels of 8 bytes are read 16 bytes at a time, which needs an even one"
    if found.dilations[1] != 1:
        return f"dilation {found.dilations[1]}: the taps of a row have to be neighbours"
    if found.kernel[1] > MOST_TAPS_X:
        return f"{found.kernel[1]} taps in a row, at most {MOST_TAPS_X}"
    values = found.batch * found.height * Rows.of(found).pixels * PIXEL
    return "" if values <= MOST_VALUES else f"{values} values in the packed image"


def packed_filters(weight: Tensor, found: Geometry, block_k: int) -> Tensor:
    """[O, C, KH, KW] → [O padded to ROWS_FILTERS, (KH padded to whole steps of block_k) · window · PIXEL].

    Raises:
        ValueError: the convolution cannot be computed from packed rows.
    """
    reason = refusal(found)
    if reason:
        raise ValueError(reason)
    filters, channels, taps_y, taps_x = weight.shape
    rows = Rows.of(found)
    more = (
        *(0, PIXEL - channels),
        *(0, rows.window - taps_x),
        *(0, -taps_y % (block_k // rows.depth)),
        *(0, -filters % ROWS_FILTERS),
    )
    return F.pad(weight.permute(0, 2, 3, 1), more).flatten(1).contiguous()
