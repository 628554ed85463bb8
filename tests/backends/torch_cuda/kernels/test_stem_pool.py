"""The first convolution with the pooling behind it, against float64: windows at every border, strips that end early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import (  # noqa: E402
    NUMPY_ACTIVATIONS,
    TOLERANCES,
    Shape,
    between_nan,
    convolved,
    poisoned,
)
from backends.torch_cuda.kernels.float64 import (  # noqa: E402
    H100,
    TURING,
    Array,
    error,
    facts,
    numbers,
)
from vitesse.backends.torch_cuda import steps  # noqa: E402
from vitesse.backends.torch_cuda.candidates import KERNELS, PLAIN, Tactic, kernels  # noqa: E402
from vitesse.backends.torch_cuda.comparing import disagreement  # noqa: E402
from vitesse.backends.torch_cuda.kernels import stem_pool as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels.epilogue import INTERPRETED  # noqa: E402
from vitesse.backends.torch_cuda.kernels.separate_conv_pool import KERNEL as SEPARATE  # noqa: E402
from vitesse.backends.torch_cuda.kernels.stem_pool import KERNEL, STRIPS  # noqa: E402

SEVEN = Shape(2, 3, 13, 17, 16, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3))
SHAPES = {
    "as ResNet has it": SEVEN,
    "odd sizes and odd pads": replace(SEVEN, height=11, width=22, pads=(3, 2, 1, 4)),
    "wider than a tile": replace(SEVEN, images=1, height=5, width=270, filters=72),
    "two strips and a half": replace(SEVEN, images=1, height=19, width=9),
    "one pixel": replace(SEVEN, images=3, height=1, width=1),
    "four channels, 3 by 3": Shape(1, 4, 9, 12, 8, strides=(1, 2)),
    "one channel, rows apart": Shape(1, 1, 12, 9, 24, strides=(2, 2), dilations=(2, 1)),
}
# Below and right of what is pooled there may be a border or not.
BORDERS = ((1, 1, 1, 1), (1, 1, 0, 0), (1, 1, 1, 0))


def step(
    shape: Shape,
    device: Any,
    borders: tuple[int, ...] = BORDERS[0],
    *,
    dtype: Any = torch.float16,
    **said: Any,
) -> tuple[tuple[Any, ...], dict[str, Any], Array]:
    """The tensors, the attributes, and the output in float64; `biased` and `image_dtype` are no attributes."""
    random = torch.Generator().manual_seed(7)
    biased, image_dtype = said.pop("biased", True), said.pop("image_dtype", torch.float32)
    size = (shape.images, shape.channels, shape.height, shape.width)
    x = between_nan(torch.randn(size, generator=random).to(image_dtype).to(device))
    weight = torch.randn(shape.filters, shape.channels, *shape.kernel, generator=random)
    weight = (weight / weight[0].numel() ** 0.5).to(dtype).to(device)
    bias = torch.randn(shape.filters, generator=random).to(device) if biased else None
    attributes = {
        **{name: getattr(shape, name) for name in ("strides", "pads", "dilations")},
        **{"activation": "relu", "out_dtype": str(dtype)[6:], **said},
        **{"window": (3, 3), "window_strides": (2, 2), "window_pads": borders},
    }
    wide = convolved(numbers(x.to(dtype)), numbers(weight), shape)
    wide = wide if bias is None else wide + numbers(bias).reshape(1, -1, 1, 1)
    return (x, weight, bias), attributes, pooled(NUMPY_ACTIVATIONS[attributes["activation"]](wide), borders)


def pooled(y: Array, borders: tuple[int, ...]) -> Array:
    """The largest of every window, window by window."""
    top, left, bottom, right = borders
    padded = np.pad(y, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
    rows, columns = ((length - 3) // 2 + 1 for length in padded.shape[2:])
    made = np.empty((*y.shape[:2], rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            made[:, :, row, column] = window.max(axis=(2, 3))
    return made


def outputs(
    tensors: tuple[Any, ...], attributes: dict[str, Any], monkeypatch: Any, most: int | None = None
) -> list[tuple[str, Any]]:
    """What every tactic, or the first `most`, writes into memory full of NaN."""
    assert KERNEL.refuses(tensors, attributes, facts()) == ""
    found, made = KERNEL.tactics(tensors, attributes, facts()), []
    if INTERPRETED:
        # Warps and stages it does not see.
        found = list({(one.config["block_m"], one.config["rows"]): one for one in found}.values())
    for tactic in found[:most]:
        run = KERNEL.prepare(tensors, attributes, tactic)
        with poisoned(monkeypatch):
            made.append((tactic.text(), *run(*tensors)))
    assert made
    return made


@pytest.mark.parametrize(
    ("name", "borders"),
    [(name, borders) for name in SHAPES for borders in BORDERS[: 1 if name == "one pixel" else 3]],
)
def test_every_tactic_pools_what_the_convolution_makes(
    name: str, borders: tuple[int, ...], device: Any, monkeypatch: Any
) -> None:
    tensors, attributes, wanted = step(SHAPES[name], device, borders)
    expected = steps.conv_pool(*tensors, **attributes)
    assert error(expected[0], wanted) < TOLERANCES[torch.float16]
    for text, found in outputs(tensors, attributes, monkeypatch):
        assert found.dtype == torch.float16 and found.is_contiguous(memory_format=torch.channels_last)
        assert error(found, wanted) < TOLERANCES[torch.float16], text
        assert disagreement((found,), expected) == "", text


@pytest.mark.parametrize("rows", [*STRIPS, 1])
def test_strips_of_any_length_end_where_the_image_does(rows: int, device: Any, monkeypatch: Any) -> None:
    tensors, attributes, wanted = step(SHAPES["two strips and a half"], device)
    config = {"block_m": 64, "block_k": 32, "num_warps": 4, "num_stages": 1, "rows": rows}
    run = KERNEL.prepare(tensors, attributes, Tactic(KERNEL.name, config))
    with poisoned(monkeypatch):
        (found,) = run(*tensors)
    assert error(found, wanted) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("biased", [False, True])
def test_what_is_below_zero_wins_over_the_border(
    activation: str, biased: bool, device: Any, monkeypatch: Any
) -> None:
    tensors, attributes, wanted = step(SEVEN, device, activation=activation, biased=biased)
    assert (wanted < 0).any()
    for text, found in outputs(tensors, attributes, monkeypatch, most=1):
        assert error(found, wanted) < TOLERANCES[torch.float16], text


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_is_taken_too(image_dtype: Any, device: Any, monkeypatch: Any) -> None:
    tensors, attributes, wanted = step(SEVEN, device, dtype=torch.bfloat16, image_dtype=image_dtype)
    for text, found in outputs(tensors, attributes, monkeypatch, most=1):
        assert found.dtype == torch.bfloat16
        assert error(found, wanted) < TOLERANCES[torch.bfloat16], text


def test_a_pixel_that_is_no_number_makes_the_windows_that_see_it_no_numbers(
    device: Any, monkeypatch: Any
) -> None:
    tensors, attributes, _ = step(SEVEN, device)
    tensors[0][1, 0, 6, 8] = torch.nan
    (expected,) = steps.conv_pool(*tensors, **attributes)
    assert expected.isnan().any() and not expected[0].isnan().any()
    for text, found in outputs(tensors, attributes, monkeypatch, most=1):
        # The windows' eighth pixel, which has no tap, multiplies it by zero.
        assert found.isnan()[expected.isnan()].all() and not found[0].isnan().any(), text


def test_a_program_that_is_told_something_wrong_is_noticed(device: Any, monkeypatch: Any) -> None:
    tensors, attributes, wanted = step(SEVEN, device)
    right = module.stem_pool
    (tactic, *_) = KERNEL.tactics(tensors, attributes, facts())
    for broken in ("STRIDE_Y", "TOP", "TAPS_Y"):

        class Wrong:
            def __getitem__(self, grid: Any, broken: str = broken) -> Any:
                return lambda *given, **named: right[grid](*given, **{**named, broken: named[broken] - 1})

        monkeypatch.setattr(module, "stem_pool", Wrong())
        (found,) = KERNEL.prepare(tensors, attributes, tactic)(*tensors)
        assert not error(found, wanted) < 0.05, broken


@pytest.mark.parametrize("library", ["torch", "triton", "plain"])
def test_both_apart_are_right_whatever_computes_them(library: str, device: Any) -> None:
    tensors, attributes, wanted = step(SHAPES["odd sizes and odd pads"], device, BORDERS[1])
    chosen = []
    for part in SEPARATE.parts(tensors, attributes):
        name = f"{library}.{ {'Conv': 'conv', 'MaxPool': 'max_pool'}[part.step] }"
        found = kernels({name: KERNELS[name]}).found if name in KERNELS else {}
        offered = [kernel.tactics(part.tensors, part.attributes, facts())[0] for kernel in found.values()]
        chosen.append(offered[0] if offered else PLAIN)
    x, weight, bias = tensors
    # What changes with the image is not there yet when an engine is loaded.
    tactic = Tactic(SEPARATE.name, {"parts": [one.document() for one in chosen]})
    (found,) = SEPARATE.prepare((x.to("meta"), weight, bias), attributes, tactic)(*tensors)
    assert error(found, wanted) < TOLERANCES[torch.float16]


def test_what_it_cannot_do_is_refused_with_the_reason(device: Any) -> None:
    (x, weight, bias), said, _ = step(SEVEN, device)

    def refused(*tensors: Any, facts: Any = H100, **more: Any) -> str:
        return KERNEL.refuses(tensors or (x, weight, bias), {**said, **more}, facts)

    assert refused() == ""
    assert "torch.float32" in refused(x, weight.float(), bias)
    assert "output of torch.float32" in refused(out_dtype="float32")
    assert "torch.uint8" in refused(x.byte(), weight, bias)
    assert "8.0" in refused(facts=TURING)
    assert refused(window=(2, 2)) == (
        "pools 3 × 3 pixels, stride 2, padded by 1; not (2, 2), strides (2, 2), pads (1, 1, 1, 1)"
    )
    assert "strides (1, 1)" in refused(window_strides=(1, 1))
    assert "pads (0, 0, 0, 0)" in refused(window_pads=(0, 0, 0, 0))
    assert "pads (1, 1, 2, 1)" in refused(window_pads=(1, 1, 2, 1))
    assert "5 channels" in refused(x.new_empty(1, 5, 9, 9), weight.new_empty(8, 5, 7, 7), None)
    large = torch.empty(300, 1, 800, 1333, device="meta")
    assert "elements in one tensor" in refused(large, weight.new_empty(64, 1, 7, 7), None)


def test_strips_are_as_long_as_they_can_be_with_work_for_all_multiprocessors(device: Any) -> None:
    _, weight, bias = step(SEVEN, device)[0]
    attributes, strips = step(SEVEN, device)[1], []
    for images in (1, 8):
        x = torch.empty(images, 3, 800, 1333, device="meta")
        found = KERNEL.tactics((x, weight.new_empty(64, 3, 7, 7), bias), attributes, H100)
        strips.append([tactic.config["rows"] for tactic in found if tactic.config["block_m"] == 128])
    # Six tiles of 63 pixels in each of 200 pooled rows; the first tile comes with half the length, too.
    assert strips == [[2, 1, 2], [16, 8, 16]]
