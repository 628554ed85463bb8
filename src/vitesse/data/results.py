"""What a model found in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitesse.data.draw import draw_caption, draw_detections
from vitesse.errors import MissingExtra

if TYPE_CHECKING:
    from vitesse.data.images import ImageSource


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image, highest score first.

    boxes_xyxy: (n, 4) float32, pixels of the original image: left, top, right, bottom.
    scores: (n,) float32 in 0..1.
    labels: (n,) int64 class indices.
    names: n class names.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Return those with a score of at least `threshold`."""
        keep = np.flatnonzero(self.scores >= threshold)
        names = tuple(self.names[index] for index in keep)
        return Detections(self.boxes_xyxy[keep], self.scores[keep], self.labels[keep], names)

    def draw(self, image: ImageSource, *, threshold: float = 0.5) -> Image.Image:
        """Return a copy of `image` with the boxes scoring at least `threshold` drawn on it."""
        shown = self.above(threshold)
        return draw_detections(image, shown.boxes_xyxy, shown.scores, shown.labels, shown.names)

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`; raises MissingExtra where supervision is not installed."""
        try:
            import supervision
        except ImportError as error:
            raise MissingExtra(
                "supervision is not installed", fix="pip install 'vitesse[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )


@dataclass(frozen=True, eq=False)
class Classification:
    """Classes of one image, highest score first.

    labels: (k,) int64 class indices; scores: (k,) float32 softmax probabilities in 0..1; names: k class names.
    k = 0 when the model gave NaN throughout.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    names: tuple[str, ...]

    def draw(self, image: ImageSource) -> Image.Image:
        """Return a copy of `image` with the first class and its score written on it."""
        caption = f"{self.names[0]} {self.scores[0]:.0%}" if self.names else "no class: NaN"
        return draw_caption(image, caption)


Result = Detections | Classification
