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
    width, height = canvas.size
    line, font = _line_width(canvas), _font(canvas)
    pen = ImageDraw.Draw(canvas)
    for index in np.argsort(scores, kind="stable"):
        corners = np.nan_to_num(boxes_xyxy[index] * factor)
        left, right = np.clip(np.sort(corners[[0, 2]]), 0, width - 1).round().astype(int).tolist()
        top, bottom = np.clip(np.sort(corners[[1, 3]]), 0, height - 1).round().astype(int).tolist()
        color = class_color(int(labels[index]))
        edge = max(1, line // 3)  # a dark rim keeps yellow visible on sand and blue on sky
        pen.rectangle(
            (left - edge, top - edge, right + edge, bottom + edge), outline=_INK, width=line + 2 * edge
        )
        pen.rectangle((left, top, right, bottom), outline=color, width=line)
        _chip(
            pen, canvas.size, (left - edge, top, bottom), f"{names[index]} {scores[index]:.0%}", color, font
        )
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
    pen.text((2 * pad, height - band / 2), shown, fill=_PAPER, font=font, anchor=_anchor(font))
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


def _anchor(font: Font) -> str | None:
    return "lm" if isinstance(font, ImageFont.FreeTypeFont) else None


def _chip(
    pen: ImageDraw.ImageDraw,
    picture: tuple[int, int],
    edges: tuple[int, int, int],
    text: str,
    color: Color,
    font: Font,
) -> None:
    """Write `text` on a filled label above the box, or inside where there is no room; never off the picture."""
    (width, height), (left, top, bottom) = picture, edges
    pad = _padding(font)
    text = _shortened(pen, text, font, width - 2 * pad)
    chip_width, chip_height = round(pen.textlength(text, font=font)) + 2 * pad, _text_height(font) + pad
    x = min(max(left, 0), max(width - chip_width, 0))
    y = top - chip_height
    if y < 0:
        roomy = bottom - top >= 3 * chip_height  # in a small box the label would hide what was found
        y = top if roomy else min(bottom + 1, height - chip_height)
    y = max(0, y)
    pen.rounded_rectangle((x, y, x + chip_width - 1, y + chip_height - 1), radius=pad // 2, fill=color)
    pen.text((x + pad, y + chip_height / 2), text, fill=_readable_on(color), font=font, anchor=_anchor(font))


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
