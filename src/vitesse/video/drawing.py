"""What a model found, drawn on a frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitesse.data.images import Pixels
from vitesse.data.results import Detections, Result


def drawn(pixels: Pixels, result: Result, *, threshold: float = 0.5) -> NDArray[np.uint8]:
    """Return a frame with its boxes (detection) or its first class (classification), as for a single picture.

    Args:
        pixels: (height, width, 3) uint8 RGB, upright; not changed. Under 192 pixels it is enlarged by a whole factor.
        threshold: lowest score of a box that is drawn.

    Returns:
        (height, width, 3) uint8 RGB, both sides even, as video codecs want them: an odd last row or column is doubled.
    """
    if isinstance(result, Detections):
        picture = np.asarray(result.draw(pixels, threshold=threshold))
    else:
        picture = np.asarray(result.draw(pixels))
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
