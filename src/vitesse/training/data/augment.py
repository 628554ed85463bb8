"""A whole batch moved, zoomed, turned, mirrored, lit, partly erased and normalised, on the device it is on.

The few random numbers of a batch are drawn on the CPU, so that a GPU sees the same pictures. All of geometry is one
resampling, and light a handful of passes over it, because a GPU should not wait for its pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vitesse.errors import UsageError
from vitesse.spec import Preprocessing, Task
from vitesse.training.data.targets import FlatObjects
from vitesse.training.options import check_augmentation
from vitesse.training.transfer import sent


@dataclass(frozen=True)
class Augmentation:
    """How much pictures vary; each number is drawn evenly from its range, once per image.

    Args:
        shift: the most that a picture moves, as a share of its height and width, 0..1; black comes in.
        zoom: the most by which it grows or shrinks about its centre, 1 or more: a factor 1/zoom..zoom.
        rotation: the most that it turns about its centre, in degrees; 0 for detection, where boxes must follow.
        flip: mirrored left to right half of the time; off where that changes the class (text, left and right).
        brightness: the most by which values grow or shrink, as a share, 0..1: 0.2 is a factor 0.8..1.2.
        contrast: the most by which differences to middle gray then grow or shrink, as a share, 0..1.
        erasing: share of the pictures, 0..1, that lose a rectangle of 2 to 20 % of their area to one plain colour.
        visible: what has less than this share of its box, 0..1, inside the picture after moving is no longer an object.
    """

    shift: float = 0.08
    zoom: float = 1.15
    rotation: float = 0.0
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.1
    erasing: float = 0.0
    visible: float = 1 / 3

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        shares = ("shift", "brightness", "contrast", "erasing", "visible")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}", expected="a share, 0..1")
        if not 1 <= self.zoom <= 4:
            raise UsageError(f"zoom is {self.zoom}", expected="a factor, 1..4")
        if not 0 <= self.rotation <= 180:
            raise UsageError(f"rotation is {self.rotation}", expected="degrees, 0..180")


def usual(task: Task) -> Augmentation:
    """Return what is mild enough for any data: classes are also turned and erased, boxes are not."""
    return Augmentation() if task is Task.DETECTION else Augmentation(rotation=8.0, erasing=0.25)


def augmentation(name: str, task: Task) -> Augmentation | None:
    """Return one of AUGMENTATIONS: what is usual; the same with nothing moved, zoomed or turned; none.

    A model that was trained on pictures of one size and place may be wrong about moved ones, and then teaches so.

    Raises:
        UsageError: another name.
    """
    check_augmentation("augmentation", name)
    if name == "none":
        return None
    found = usual(task)
    return found if name == "usual" else replace(found, shift=0.0, zoom=1.0, rotation=0.0)


@dataclass(frozen=True, eq=False)
class Draw:
    """What happens to each of n images; every array is float32, (n,) where not said otherwise.

    zoom: factor. shift: (n, 2), right and down, in shares of width and height. angle: radians, clockwise.
    mirror: -1 or 1. gain, offset: value → value · gain + offset, cut to 0..255.
    erased: (n, 4) xyxy in 0..1, without area where nothing is. colour: (n, 3), 0..255.
    """

    zoom: NDArray[np.float32]
    shift: NDArray[np.float32]
    angle: NDArray[np.float32]
    mirror: NDArray[np.float32]
    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    erased: NDArray[np.float32]
    colour: NDArray[np.float32]


def draw(how: Augmentation, images: int, seed: tuple[int, ...]) -> Draw:
    """Return the random numbers of one batch, a function of `seed` alone."""
    random = np.random.default_rng(seed)

    def even(most: float, *shape: int) -> NDArray[np.float32]:
        return (most * random.uniform(-1, 1, (images, *shape))).astype(np.float32)

    share, log_aspect = random.uniform(0.02, 0.2, images), random.uniform(-1, 1, images)
    sides = np.stack((np.sqrt(share * np.exp(log_aspect)), np.sqrt(share * np.exp(-log_aspect))), axis=1)
    corner = random.uniform(0, 1, (images, 2)) * (1 - sides)
    erased = np.concatenate((corner, corner + sides), axis=1) * (random.random((images, 1)) < how.erasing)
    contrast = 1 + even(how.contrast)
    return Draw(
        zoom=np.exp(even(float(np.log(how.zoom)))),
        shift=even(how.shift, 2),
        angle=even(float(np.radians(how.rotation))),
        mirror=np.where(random.random(images) < 0.5 * how.flip, -1, 1).astype(np.float32),
        gain=contrast * (1 + even(how.brightness)),
        offset=127.5 * (1 - contrast),
        erased=erased.astype(np.float32),
        colour=random.uniform(0, 255, (images, 3)).astype(np.float32),
    )


def moved(objects: FlatObjects, drawn: Draw, visible: float) -> FlatObjects:
    """Return where the objects are after the pictures moved; raises ValueError for a draw that turns them."""
    if drawn.angle.any():
        raise ValueError("boxes cannot follow a rotation")
    image = objects.image_of()
    zoom = drawn.zoom[image, None]
    flipped = np.stack((drawn.mirror, np.ones_like(drawn.mirror)), axis=1)[image]
    centre = 0.5 + flipped * zoom * (objects.boxes[:, :2] - 0.5) + drawn.shift[image]
    return objects.with_boxes(np.concatenate((centre, zoom * objects.boxes[:, 2:]), axis=1), visible)


class Augmenter:
    """uint8 pictures → what the network takes, with or without a draw, wherever the pictures are."""

    def __init__(self, rules: Preprocessing) -> None:
        """Take scale, mean and std from the model's preprocessing; channels come in the order it wants them in."""
        order = slice(None) if rules.color == "RGB" else slice(None, None, -1)
        self._factor = torch.tensor([rules.scale / std for std in rules.std][order])
        self._shift = torch.tensor(
            [-mean / std for mean, std in zip(rules.mean, rules.std, strict=True)][order]
        )

    @torch.no_grad()
    def normalised(self, pixels: Tensor) -> Tensor:
        """Return (B, 3, H, W) values of 0..255 as float32 on the same device: · scale, minus mean, over std."""
        if self._factor.device != pixels.device:
            self._factor, self._shift = self._factor.to(pixels.device), self._shift.to(pixels.device)
        factor, shift = (one.view(1, 3, 1, 1) for one in (self._factor, self._shift))
        return torch.addcmul(shift, pixels.float(), factor)

    @torch.no_grad()
    def augmented(self, pixels: Tensor, drawn: Draw) -> Tensor:
        """Return (B, 3, H, W) uint8 pictures as float32, changed as drawn and normalised, on the same device."""
        count, _, height, width = pixels.shape
        columns = [
            drawn.gain,
            drawn.offset,
            *drawn.erased.T,
            *drawn.colour.T,
            *_inverse(drawn, width / height),
        ]
        # one small copy to the device instead of a dozen, and none of them waits for the step before
        numbers = sent(np.stack(columns, axis=1), pixels.device)
        gain, offset = (numbers[:, column].view(count, 1, 1, 1) for column in (0, 1))
        grid = functional.affine_grid(numbers[:, 9:15].view(count, 2, 3), [count, 3, height, width], False)
        images = functional.grid_sample(pixels.float(), grid, padding_mode="zeros", align_corners=False)
        images.mul_(gain).add_(offset).clamp_(0, 255)
        if drawn.erased.any():
            images = _erased(images, numbers[:, 2:6], numbers[:, 6:9])
        return self.normalised(images)


def _inverse(drawn: Draw, aspect: float) -> list[NDArray[np.float32]]:
    """Return the six numbers per image that say from where a place of the result is taken, both in -1..1.

    A turn is one in pixels, so that `aspect` = width / height comes in between.
    """
    cosine, sine = np.cos(drawn.angle) / drawn.zoom, np.sin(drawn.angle) / drawn.zoom
    across = drawn.mirror * np.stack((cosine, sine / aspect))
    down = np.stack((-sine * aspect, cosine))
    right, below = 2 * drawn.shift.T
    rows = [(*row, -row[0] * right - row[1] * below) for row in (across, down)]
    return [*rows[0], *rows[1]]


def _erased(images: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Return the images with each box (xyxy in 0..1) filled with its colour."""
    height, width = images.shape[2:]
    left, top, right, bottom = (side[:, None] for side in boxes.unbind(1))
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = (torch.arange(height, device=images.device) + 0.5) / height
    columns, rows = (x >= left) & (x < right), (y >= top) & (y < bottom)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, colour[..., None, None], images)
