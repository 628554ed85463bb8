"""Where a cell of DETR's feature map lies: its position embedding, and which cells show the image.

Both are closed forms of the size of each image: the original's running sums over a mask of pixels are what TensorRT
miscompiles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePosition(nn.Module):
    """Fixed position embedding (DETR, appendix A.4).

    Cell i of an axis whose first n cells show the image sits at 2π · (i + 1) / (n + 1e-6); temperature 10000.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        features = hidden // 2
        exponents = 2 * torch.arange(features // 2, dtype=torch.float32) / features
        self.register_buffer("frequencies", 10000**exponents, persistent=False)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return (images, rows · columns, hidden), the features of y first.

        `rows` and `columns`: bool (images, cells of the axis), whether they show the image; those that do are first.
        """
        return torch.cat(on_grid(self._axis(rows), self._axis(columns)), dim=3).flatten(1, 2)

    def _axis(self, covered: Tensor) -> Tensor:
        cells = torch.arange(1, covered.shape[1] + 1, dtype=torch.float32, device=covered.device)
        place = cells / (covered.float().sum(1, keepdim=True) + 1e-6) * (2 * math.pi)
        angle = place[:, :, None] / self.get_buffer("frequencies")
        return torch.stack([angle.sin(), angle.cos()], dim=3).flatten(2)


class LearnedPosition(nn.Module):
    """One learned vector a row and one a column, counted over the padding too."""

    def __init__(self, hidden: int, cells: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(cells, hidden // 2)
        self.col_embed = nn.Embedding(cells, hidden // 2)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return (1, rows · columns, hidden), the features of x first; arguments as in SinePosition."""
        y, x = (
            embedding(torch.arange(covered.shape[1], device=covered.device))[None]
            for embedding, covered in ((self.row_embed, rows), (self.col_embed, columns))
        )
        return torch.cat(on_grid(y, x)[::-1], dim=3).flatten(1, 2)


def on_grid(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat (images, rows, n) along the columns and (images, columns, n) along the rows."""
    rows, columns = y.shape[1], x.shape[1]
    return y[:, :, None].expand(-1, -1, columns, -1), x[:, None].expand(-1, rows, -1, -1)


def covered_cells(cells: int, pixels: int, covered: Tensor) -> Tensor:
    """Return which `cells` of an axis of `pixels` show the image that covers the first `covered`, int64 (images,).

    Cell i stands for pixel ⌊i · pixels / cells⌋, the nearest-neighbour reduction of the original's mask. Rounded in
    float32 as torch does it, for one cell more or less shows in the result. Result: bool (images, cells).
    """
    step = torch.full((), pixels, dtype=torch.float32) / torch.full((), cells, dtype=torch.float32)
    return torch.arange(cells, dtype=torch.float32, device=covered.device) * step < covered[:, None]
