"""The packed image of the first layer: its values, its size, and that no program reads or writes beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import Case, Shape, between_nan, case, poisoned  # noqa: E402
from backends.torch_cuda.kernels.float64 import H100, facts  # noqa: E402
from backends.torch_cuda.kernels.watching import watched  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.backends.torch_cuda.kernels import conv as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels import stem_image  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv import KERNEL  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv_configs import ROWS, ConvConfig  # noqa: E402
from vitesse.backends.torch_cuda.kernels.epilogue import INTERPRETED  # noqa: E402
from vitesse.backends.torch_cuda.kernels.geometry import Geometry  # noqa: E402
from vitesse.backends.torch_cuda.kernels.stem_rows import Rows, refusal  # noqa: E402
from vitesse.backends.torch_cuda.kernels.stem_rows_program import pack_pixels  # noqa: E402

PROGRAMS = ((stem_image, "pack_pixels"), (module, "stem_rows"))
DETR = Shape(8, 3, 800, 1333, 64, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3))
SHAPES = {
    "7 by 7": Shape(2, 3, 9, 13, 16, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "wider than a tile": Shape(1, 3, 5, 270, 72, kernel=(7, 7), strides=(2, 2), pads=(3, 2, 1, 4)),
    "no pads": Shape(2, 4, 6, 14, 8, strides=(1, 2), pads=(0, 0, 0, 0)),
    "windows apart": Shape(1, 1, 8, 33, 8, kernel=(2, 2), strides=(4, 6), pads=(0, 0, 0, 0)),
}


def geometry(shape: Shape) -> Geometry:
    x = torch.empty(shape.images, shape.channels, shape.height, shape.width, device="meta")
    weight = torch.empty(shape.filters, shape.channels, *shape.kernel, device="meta")
    said = {name: getattr(shape, name) for name in ("strides", "pads", "dilations")}
    return Geometry.of((x, weight), said)


def test_the_stem_of_detr_is_packed_to_rows_of_as_many_pixels_as_its_windows_read() -> None:
    rows = Rows.of(geometry(DETR))
    # Seven taps and one for the power of two; the last of 667 windows begins at pixel 1332.
    assert (rows.window, rows.depth, rows.pixels) == (8, 32, 1340)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_packed_image_is_the_image_between_zeros(channels: int, image_dtype: Any, device: Any) -> None:
    x = between_nan(torch.randn(2, channels, 3, 13).to(image_dtype).to(device))
    image = torch.full((2, 3, 20, 4), torch.nan, dtype=torch.float16, device=device)
    pack_pixels[(2 * 3 * 2,)](x.contiguous(), image, 3, 13, 20, C=channels, LEFT=3, BLOCK=16, DEPENDENT=False)
    expected = torch.zeros_like(image)
    expected[:, :, 3:16, :channels] = x.permute(0, 2, 3, 1).half()
    assert torch.equal(image, expected)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.skipif(not INTERPRETED, reason="addresses are seen by the interpreter")
def test_no_program_touches_a_byte_beside_its_tensors(name: str, device: Any, monkeypatch: Any) -> None:
    given = case(SHAPES[name], device, image_dtype=torch.float32, residual=True)
    with poisoned(monkeypatch), watched(monkeypatch, *PROGRAMS) as launches:
        tried = every_rows_tactic(given)
    assert launches == ["pack_pixels", "stem_rows"] * tried


@pytest.mark.skipif(not INTERPRETED, reason="addresses are seen by the interpreter")
def test_a_row_that_is_too_short_for_its_last_window_is_noticed(device: Any, monkeypatch: Any) -> None:
    right = Rows.of(geometry(SHAPES["7 by 7"]))
    monkeypatch.setattr(Rows, "of", lambda _: replace(right, pixels=right.pixels - 4))
    given = case(SHAPES["7 by 7"], device)
    with watched(monkeypatch, *PROGRAMS), pytest.raises(Exception, match="beside its tensors"):
        every_rows_tactic(given)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"channels": 5}, "5 channels"),
        ({"strides": (2, 3)}, "stride 3"),
        ({"dilations": (1, 2)}, "dilation 2"),
        ({"kernel": (1, 17)}, "17 taps in a row"),
        ({"images": 502}, "values in the packed image"),
    ],
)
def test_what_packed_rows_cannot_do_is_not_offered_and_not_prepared(
    changed: dict[str, Any], reason: str
) -> None:
    shape = replace(DETR, **changed)
    found = geometry(shape)
    assert reason in refusal(found)
    x = torch.empty(shape.images, shape.channels, shape.height, shape.width, device="meta")
    weight = torch.empty(shape.filters, shape.channels, *shape.kernel, dtype=torch.float16)
    said = {name: getattr(shape, name) for name in ("strides", "pads", "dilations")}
    offered = KERNEL.tactics((x, weight), said, H100)
    assert all(tactic.config["program"] != ROWS for tactic in offered)
    with pytest.raises(ValueError, match=reason):
        tactic = Tactic(KERNEL.name, ConvConfig(ROWS, 64, 64, 32, 4, 1).document())
        KERNEL.prepare((x, weight), said, tactic)


def every_rows_tactic(given: Case) -> int:
    """Run what is offered for packed rows, and return how many there are."""
    found = KERNEL.tactics(given.tensors, given.attributes, facts())
    rows = [tactic for tactic in found if tactic.config["program"] == ROWS]
    for tactic in rows:
        KERNEL.prepare(given.tensors, given.attributes, tactic)(*given.tensors)
    return len(rows)
