"""Results drawn on pictures, readable from thumbnails to full camera resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitesse.data.images import decode_image

if TYPE_CHECKING:
    from vitesse.data.images import ImageSource

Color = tuple[int, int, int]
Corners = tuple[int, int, int, int]
Chip = tuple[Corners, str]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito, "Color Universal Design", 2008, without black and ordered so that neighbours differ most.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
)
# Below this side (pixels) letters do not fit: the picture is enlarged by a whole factor first.
SMALLEST_SIDE = 192
_INK: Color = (24, 24, 27)
_PAPER: Color = (255, 255, 255)


def draw_detections(
    image: ImageSource,
    boxes_xyxy: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    names: Sequence[str],
) -> Image.Image:
    """Return a copy of `image` with boxes, class names and scores; higher scores lie on top.

    Args:
        image: anything `decode_image` takes; a picture under 192 pixels is enlarged by a whole factor.
        boxes_xyxy: (n, 4) in pixels of `image`; what sticks out is cut at the edge.
        scores: (n,) in 0..1.
        labels: (n,) class indices; they choose the colour.
        names: n class names.

    Raises:
        DataError: the image cannot be read.
    """
    canvas, factor = _canvas(image)
    line, font = _line_width(canvas), _font(canvas)
    edge = max(1, line // 3)  # a dark rim keeps yellow visible on sand and blue on sky
    pen = ImageDraw.Draw(canvas)
    order = np.argsort(scores, kind="stable")
    boxes = {index: _inside(canvas, boxes_xyxy[index] * factor) for index in order.tolist()}
    for index, (left, top, right, bottom) in boxes.items():
        rim = (left - edge, top - edge, right + edge, bottom + edge)
        pen.rectangle(rim, outline=_INK, width=line + 2 * edge)
        pen.rectangle((left, top, right, bottom), outline=class_color(int(labels[index])), width=line)
    chips: dict[int, Chip] = {}
    for index in reversed(boxes):  # the best choose their place first …
        text = f"{names[index]} {scores[index]:.0%}"
        chips[index] = _chip(pen, boxes[index], text, font, [corners for corners, _ in chips.values()])
    for index in boxes:  # … and lie on top where there is no free one
        _write(pen, chips[index], class_color(int(labels[index])), font)
    return canvas


def draw_caption(image: ImageSource, text: str) -> Image.Image:
    """Return a copy of `image` with `text` on a band along its lower edge.

    A picture under 192 pixels is enlarged by a whole factor; text too long for it ends in an ellipsis.

    Raises:
        DataError: the image cannot be read.
    """
    canvas, _ = _canvas(image)
    font = _font(canvas)
    pad = _padding(font)
    width, height = canvas.size
    band = _text_height(font) + 2 * pad
    pen = ImageDraw.Draw(canvas, "RGBA")
    pen.rectangle((0, height - band, width, height), fill=(*_INK, 215))
    shown = _shortened(pen, text, font, width - 4 * pad)
    _text(pen, 2 * pad, height - band / 2, shown, _PAPER, font)
    return canvas


def class_color(label: int) -> Color:
    """Return a class's colour: seven that colour-blind people tell apart, then darker and lighter ones."""
    base = PALETTE[label % len(PALETTE)]
    shade = (label // len(PALETTE)) % 3
    if shade == 0:
        return base
    target, share = (_INK, 0.35) if shade == 1 else (_PAPER, 0.45)
    red, green, blue = (round(own + (other - own) * share) for own, other in zip(base, target, strict=True))
    return red, green, blue


def _canvas(image: ImageSource) -> tuple[Image.Image, int]:
    """A copy to draw on, and the whole factor by which it was enlarged."""
    picture = Image.fromarray(decode_image(image)).copy()
    factor = max(1, -(-SMALLEST_SIDE // max(picture.size)))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture, factor


def _unit(canvas: Image.Image) -> float:
    """Mean side in pixels: wide panoramas get no giant letters, narrow strips no invisible ones."""
    return float(np.sqrt(canvas.width * canvas.height))


def _line_width(canvas: Image.Image) -> int:
    return max(1, round(_unit(canvas) / 320))


def _font(canvas: Image.Image) -> Font:
    size = max(11.0, _unit(canvas) / 42)
    try:
        return ImageFont.load_default(size)
    except ImportError:  # a Pillow without FreeType has one small bitmap font
        return ImageFont.load_default()


def _padding(font: Font) -> int:
    return max(2, round(_text_height(font) * 0.22))


def _text_height(font: Font) -> int:
    if isinstance(font, ImageFont.FreeTypeFont):
        ascent, descent = font.getmetrics()
        return ascent + descent
    return round(font.getbbox("Ag")[3])


def _text(pen: ImageDraw.ImageDraw, left: float, middle: float, text: str, color: Color, font: Font) -> None:
    """Write from `left`, centred on the line `middle`; bitmap fonts cannot be anchored there themselves."""
    if isinstance(font, ImageFont.FreeTypeFont):
        pen.text((left, middle), text, fill=color, font=font, anchor="lm")
    else:
        pen.text((left, middle - _text_height(font) / 2), text, fill=color, font=font)


def _inside(canvas: Image.Image, box: NDArray[np.floating[Any]]) -> Corners:
    """Corners in order, cut at the picture's edges, as whole pixels."""
    across, down = np.nan_to_num(box[[0, 2]]), np.nan_to_num(box[[1, 3]])
    left, right = np.clip(np.sort(across), 0, canvas.width - 1).round().astype(int).tolist()
    top, bottom = np.clip(np.sort(down), 0, canvas.height - 1).round().astype(int).tolist()
    return left, top, right, bottom


def _chip(pen: ImageDraw.ImageDraw, box: Corners, text: str, font: Font, taken: Sequence[Corners]) -> Chip:
    """Place of a label at the box, never off the picture and not on another if avoidable, and its text."""
    pad = _padding(font)
    text = _shortened(pen, text, font, pen.im.size[0] - 2 * pad)
    size = round(pen.textlength(text, font=font)) + 2 * pad, _text_height(font) + pad
    x, y = _place(box, size, pen.im.size, taken)
    return (x, y, x + size[0] - 1, y + size[1] - 1), text


def _write(pen: ImageDraw.ImageDraw, chip: Chip, color: Color, font: Font) -> None:
    (left, top, right, bottom), text = chip
    pad = _padding(font)
    pen.rounded_rectangle((left, top, right, bottom), radius=pad // 2, fill=color)
    _text(pen, left + pad, (top + bottom + 1) / 2, text, _readable_on(color), font)


def _place(
    box: Corners, size: tuple[int, int], picture: tuple[int, int], taken: Sequence[Corners]
) -> tuple[int, int]:
    """Return the left top of a label: above the box where that is free, else below, else inside."""
    (left, top, right, bottom), (width, height) = box, size
    inside = [(left, top), (left, bottom - height)]
    outside = [
        (left, top - height),
        (right - width, top - height),
        (left, bottom + 1),
        (right - width, bottom + 1),
    ]
    roomy = bottom - top >= 3 * height  # in a small box the label would hide what was found
    wished = [outside[0], *inside, *outside[1:]] if roomy else [*outside, *inside]
    free = []
    for x, y in wished:
        x = min(max(x, 0), max(picture[0] - width, 0))
        if 0 <= y <= picture[1] - height:
            free.append((x, y))
    for x, y in free:
        if not any(_overlap((x, y, x + width - 1, y + height - 1), other) for other in taken):
            return x, y
    return free[0] if free else (min(left, max(picture[0] - width, 0)), max(0, min(top, picture[1] - height)))


def _overlap(one: Corners, other: Corners) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _readable_on(color: Color) -> Color:
    """Black or white, whichever contrasts more (relative luminance, WCAG 2.1)."""
    linear = [(value / 255) ** 2.2 for value in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _INK if luminance > 0.2 else _PAPER


def _shortened(pen: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
