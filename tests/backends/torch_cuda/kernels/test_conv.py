"""`triton.conv` against float64: every program, every epilogue, borders, sizes that fit no tile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from backends.torch_cuda.kernels.conv_cases import E4M3, TOLERANCES, Case, Shape, case, poisoned  # noqa: E402
from backends.torch_cuda.kernels.float64 import AMPERE, H100, TURING, error, facts  # noqa: E402
from vitesse.backends.torch_cuda import steps  # noqa: E402
from vitesse.backends.torch_cuda.candidates import Tactic  # noqa: E402
from vitesse.backends.torch_cuda.comparing import disagreement  # noqa: E402
from vitesse.backends.torch_cuda.kernels import conv as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv import KERNEL  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv_configs import BOXES, ROWS, STEM, TAPS, ConvConfig  # noqa: E402
from vitesse.backends.torch_cuda.kernels.geometry import Geometry  # noqa: E402

SHAPES = {
    "odd sizes": Shape(2, 16, 9, 11, 40),
    "stride 2": Shape(2, 32, 9, 12, 24, strides=(2, 2)),
    "dilated": Shape(1, 32, 11, 7, 16, pads=(2, 2, 2, 2), dilations=(2, 2)),
    "wider apart than high": Shape(1, 16, 7, 9, 16, strides=(1, 2), pads=(2, 1, 2, 1), dilations=(2, 1)),
    "pads on one side": Shape(1, 16, 6, 8, 16, strides=(2, 2), pads=(0, 0, 1, 1)),
    "no pads": Shape(1, 16, 5, 6, 72, pads=(0, 0, 0, 0)),
    "channels that fill no block": Shape(1, 72, 5, 7, 16),
    "channels of no multiple of 8": Shape(1, 13, 5, 7, 11),
    "one pixel, stride 2": Shape(2, 32, 9, 10, 48, kernel=(1, 1), strides=(2, 2), pads=(0, 0, 0, 0)),
    "5 by 1": Shape(1, 16, 8, 6, 16, kernel=(5, 1), pads=(2, 0, 2, 0)),
    "one row": Shape(3, 16, 1, 9, 16),
}
STEMS = {
    "7 by 7": Shape(2, 3, 13, 19, 16, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "one channel": Shape(1, 1, 8, 9, 8),
    "four channels, pads on one side": Shape(1, 4, 9, 8, 24, strides=(2, 2), pads=(0, 0, 1, 1)),
    "wider than a tile": Shape(1, 3, 5, 151, 8, strides=(1, 2)),
    "7 by 7, wider than a tile": Shape(2, 3, 5, 133, 8, kernel=(7, 7), strides=(3, 2), pads=(3, 2, 1, 4)),
    "more filters than a tile has, stride 4": Shape(1, 1, 9, 21, 72, kernel=(5, 5), strides=(2, 4)),
    "rows further apart": Shape(1, 3, 12, 9, 8, strides=(1, 2), pads=(2, 1, 2, 1), dilations=(2, 1)),
    "odd stride": Shape(1, 3, 9, 11, 8, strides=(3, 3)),
    "columns further apart": Shape(1, 3, 9, 11, 8, strides=(2, 2), dilations=(1, 2)),
    "no pads, one tap in a row": Shape(1, 3, 9, 10, 8, kernel=(3, 1), strides=(2, 2), pads=(0, 0, 0, 0)),
}
NOT_PACKED = {"one channel", "odd stride", "columns further apart"}
SMALL = {
    TAPS: ConvConfig(TAPS, 64, 64, 32, 4, 3),
    BOXES: ConvConfig(BOXES, 64, 64, 32, 4, 3, box_x=8),
    STEM: ConvConfig(STEM, 64, 16, 32, 4, 2),
    ROWS: ConvConfig(ROWS, 64, 64, 32, 4, 2),
}


def small(program: str, height: int, width: int, filters: int) -> Shape:
    """A convolution that a program takes."""
    channels = 3 if program in (STEM, ROWS) else 16
    strides = (1, 2) if program == ROWS else (1, 1)
    return Shape(1, channels, height, width, filters, strides=strides)


def outputs(given: Case, monkeypatch: Any) -> list[tuple[Tactic, Any]]:
    """Return what every configuration computes into memory full of NaN."""
    assert KERNEL.refuses(given.tensors, given.attributes, facts()) == ""
    found = KERNEL.tactics(given.tensors, given.attributes, facts())
    assert 0 < len(found) <= 12
    with poisoned(monkeypatch):
        return [(tactic, run(given, tactic)) for tactic in found]


def run(given: Case, tactic: Tactic) -> Any:
    (made,) = KERNEL.prepare(given.tensors, given.attributes, tactic)(*given.tensors)
    assert made.is_contiguous(memory_format=torch.channels_last)
    return made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_configuration_is_the_convolution_in_float64(
    shape: Shape, device: Any, monkeypatch: Any
) -> None:
    given = case(shape, device, residual=True, activation="relu")
    for tactic, made in outputs(given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.float16], tactic.text()


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", STEMS)
def test_an_image_of_few_channels_is_read_as_it_comes(
    name: str, image_dtype: Any, device: Any, monkeypatch: Any
) -> None:
    given = case(STEMS[name], device, image_dtype=image_dtype, activation="relu")
    planes = Case((given.tensors[0].contiguous(), *given.tensors[1:]), given.attributes, given.expected)
    found = [*outputs(given, monkeypatch), *outputs(planes, monkeypatch)]
    programs = {tactic.config["program"] for tactic, _ in found}
    assert programs == ({STEM} if name in NOT_PACKED else {STEM, ROWS})
    for tactic, made in found:
        assert error(made, given.expected) < TOLERANCES[torch.float16], tactic.text()


@pytest.mark.parametrize("program", SMALL)
@pytest.mark.parametrize("activation", ["", "relu", "silu", "sigmoid", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("residual_first", [None, 0, 1])
def test_every_epilogue_is_done_before_the_one_rounding(
    program: str, activation: str, residual_first: int | None, device: Any, monkeypatch: Any
) -> None:
    said: dict[str, Any] = {"activation": activation, "out_dtype": "float32"}
    if residual_first is not None:
        said["residual_first"] = residual_first
    given = case(small(program, 4, 5, 8), device, residual=residual_first is not None, scaled=8, **said)
    with poisoned(monkeypatch):
        made = run(given, Tactic(KERNEL.name, SMALL[program].document()))
    assert made.dtype == torch.float32
    assert error(made, given.expected) < 2e-5


@pytest.mark.parametrize("scaled", [0, 1, 8])
@pytest.mark.parametrize("biased", [False, True])
def test_scale_and_bias_may_be_absent(scaled: int, biased: bool, device: Any, monkeypatch: Any) -> None:
    given = case(Shape(1, 16, 4, 5, 8), device, scaled=scaled, biased=biased)
    with poisoned(monkeypatch):
        made = run(given, Tactic(KERNEL.name, SMALL[TAPS].document()))
    assert error(made, given.expected) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("channels", [16, 3])
def test_bfloat16_is_taken_too(channels: int, device: Any, monkeypatch: Any) -> None:
    shape = Shape(1, channels, 6, 5, 8, strides=(2, 2))
    given = case(shape, device, dtype=torch.bfloat16, activation="relu")
    for tactic, made in outputs(given, monkeypatch):
        assert made.dtype == torch.bfloat16
        assert error(made, given.expected) < TOLERANCES[torch.bfloat16], tactic.text()


def test_e4m3_is_multiplied_exactly_and_its_products_are_scaled(device: Any, monkeypatch: Any) -> None:
    given = case(Shape(1, 48, 6, 5, 16), device, dtype=E4M3, scaled=16, residual=True, activation="relu")
    for tactic, made in outputs(given, monkeypatch):
        assert error(made, given.expected) < TOLERANCES[torch.float16], tactic.text()


@pytest.mark.parametrize("program", SMALL)
def test_an_output_in_e4m3_is_the_nearest_of_its_grid_and_saturates(
    program: str, device: Any, monkeypatch: Any
) -> None:
    given = case(small(program, 6, 7, 16), device, activation="relu", out_scale=0.004)
    with poisoned(monkeypatch):
        made = run(given, Tactic(KERNEL.name, SMALL[program].document()))
    wanted = torch.from_numpy(given.expected / 0.004).clamp(-448, 448).float().to(E4M3).to(device)
    assert (made.float() == 448).any()
    assert disagreement((made,), (wanted,)) == ""


def test_it_agrees_with_the_plain_function_as_the_choice_of_tactics_asks(
    device: Any, monkeypatch: Any
) -> None:
    given = case(Shape(2, 16, 9, 11, 40), device, residual=True, activation="relu")
    plain = steps.conv(*given.tensors, **given.attributes)
    for tactic, made in outputs(given, monkeypatch):
        assert disagreement((made,), plain) == "", tactic.text()


def test_an_input_in_planes_is_converted(device: Any) -> None:
    given = case(Shape(1, 16, 6, 7, 16), device, residual=True)
    x, *constants, z = given.tensors
    planes = Case((x.contiguous(), *constants, z.contiguous()), given.attributes, given.expected)
    for program in (TAPS, BOXES):
        made = run(planes, Tactic(KERNEL.name, SMALL[program].document()))
        assert error(made, given.expected) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("program", SMALL)
@pytest.mark.parametrize("broken", ["TOP", "LEFT", "DILATION_Y", "RESIDUAL_FIRST"])
def test_a_program_that_is_told_something_wrong_is_noticed(
    program: str, broken: str, device: Any, monkeypatch: Any
) -> None:
    right, packed = module._constants, module.packed_image

    def wrong(*given: Any) -> dict[str, Any]:
        found = right(*given)
        found[broken] = not found[broken] if broken == "RESIDUAL_FIRST" else found[broken] + 1
        return found

    def moved(x: Any, found: Geometry, dtype: Any) -> Any:
        """What is packed lies where it is packed to: its program has no LEFT of its own."""
        top, left, *others = found.pads
        return packed(x, replace(found, pads=(top, left + 1, *others)), dtype)

    given = case(small(program, 6, 7, 16), device, residual=True, activation="relu")
    tactic = Tactic(KERNEL.name, SMALL[program].document())
    assert error(run(given, tactic), given.expected) < 1e-3
    monkeypatch.setattr(module, "_constants", wrong)
    if broken == "LEFT":
        monkeypatch.setattr(module, "packed_image", moved)
    assert error(run(given, tactic), given.expected) > 0.05


@pytest.mark.parametrize(
    ("shape", "keywords", "device_facts", "reason"),
    [
        (Shape(1, 16, 5, 5, 16, group=2), {}, H100, "2 groups"),
        (Shape(1, 16, 5, 5, 16), {"dtype": torch.float32}, H100, "not torch.float32"),
        (Shape(1, 16, 5, 5, 16), {"image_dtype": torch.float32}, H100, "x is torch.float32"),
        (Shape(1, 16, 5, 5, 16), {}, TURING, "needs compute capability 8.0"),
        (Shape(1, 16, 5, 5, 16), {"dtype": E4M3}, AMPERE, "needs compute capability 8.9"),
        (Shape(1, 16, 5, 5, 16), {"out_scale": 0.1}, AMPERE, "needs compute capability 8.9"),
        (Shape(1, 16, 5, 5, 16, kernel=(1, 1), pads=(0, 0, 0, 0)), {}, H100, "triton.conv_1x1 takes it"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(
    shape: Shape, keywords: Any, device_facts: Any, reason: str, device: Any
) -> None:
    given = case(shape, device, **keywords)
    assert reason in KERNEL.refuses(given.tensors, given.attributes, device_facts)


def test_tensors_beyond_32_bit_offsets_are_refused() -> None:
    x = torch.empty(70, 256, 400, 667, dtype=torch.float16, device="meta")
    weight = torch.empty(256, 256, 3, 3, dtype=torch.float16, device="meta")
    assert "elements in one tensor" in KERNEL.refuses((x, weight), {"pads": (1, 1, 1, 1)}, H100)
