"""The kernel of the step `ConvChain` against float64: both forms, borders, sizes that fit no tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")
pytest.importorskip("triton", reason="the kernels are in Triton")

from triton.runtime.errors import InterpreterError  # noqa: E402

from backends.torch_cuda.kernels.conv_cases import (  # noqa: E402
    NUMPY_ACTIVATIONS,
    TOLERANCES,
    between_nan,
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
from backends.torch_cuda.kernels.watching import watched  # noqa: E402
from vitesse.backends.torch_cuda import steps  # noqa: E402
from vitesse.backends.torch_cuda.candidates import KERNELS, PLAIN, Tactic, kernels  # noqa: E402
from vitesse.backends.torch_cuda.comparing import disagreement  # noqa: E402
from vitesse.backends.torch_cuda.kernels import conv_chain as module  # noqa: E402
from vitesse.backends.torch_cuda.kernels.conv_chain import CONFIGS, KERNEL, ChainShape  # noqa: E402
from vitesse.backends.torch_cuda.kernels.separate_conv_chain import KERNEL as SEPARATE  # noqa: E402


@dataclass(frozen=True)
class Chain:
    """A step, its attributes, and both outputs in float64, the second made of the rounded first."""

    tensors: tuple[Any, ...]
    attributes: dict[str, Any]
    y: Array
    h: Array


# Images, channels, those of the other (0 = a residual), filters, filters behind, height, width, the other's strides.
SIZES = {
    "as the first stage has it": (2, 64, 0, 256, 64, 7, 9, (1, 1)),
    "before the second stage": (1, 64, 0, 256, 128, 5, 9, (1, 1)),
    "the first block": (1, 64, 64, 256, 64, 9, 8, (1, 1)),
    "a block with a stride": (2, 32, 64, 128, 32, 6, 5, (2, 2)),
    "stride across alone": (1, 16, 32, 64, 16, 5, 7, (1, 2)),
    "filters that fill no block": (1, 24, 0, 40, 20, 9, 11, (1, 1)),
    "channels that fill no block": (1, 40, 72, 72, 12, 5, 4, (2, 1)),
    "one pixel": (1, 16, 0, 8, 4, 1, 1, (1, 1)),
    "more pixels than one tile": (1, 16, 16, 40, 8, 17, 19, (1, 1)),
}


def pixels(random: Any, dtype: Any, device: Any, *shape: int) -> Any:
    return between_nan(torch.randn(shape, generator=random).to(dtype).to(device))


def chained(name: str, device: Any, *, dtype: Any = torch.float16, biased: bool = True, **said: Any) -> Chain:
    images, channels, others, filters, behind, height, width, strides = SIZES[name]
    random = torch.Generator().manual_seed(5)
    down, across = strides
    x = pixels(random, dtype, device, images, channels, height, width)
    # As small as the stride allows: a row or column more would not be read.
    size = ((height - 1) * down + 1, (width - 1) * across + 1)
    other = pixels(random, dtype, device, images, others, *size) if others else None
    residual = None if others else pixels(random, dtype, device, images, filters, height, width)
    depth = channels + others
    weight = (torch.randn(filters, depth, 1, 1, generator=random) / depth**0.5).to(dtype).to(device)
    following = (torch.randn(behind, filters, 1, 1, generator=random) / filters**0.5).to(dtype).to(device)
    biases = [
        torch.randn(count, generator=random).to(dtype).to(device) if biased else None
        for count in (filters, behind)
    ]
    attributes = {
        **{"strides": strides, "activation": "relu", "next_activation": "relu"},
        **{"out_dtype": str(dtype)[6:], **said},
    }
    read = x if other is None else torch.cat([x, other[:, :, ::down, ::across]], 1)
    wide = product(read, weight, biases[0])
    wide = wide if residual is None else wide + numbers(residual)
    y = NUMPY_ACTIVATIONS[attributes["activation"]](wide)
    h = product(torch.from_numpy(y).to(dtype), following, biases[1])
    tensors = (x, weight, biases[0], following, biases[1], residual, other)
    return Chain(tensors, attributes, y, NUMPY_ACTIVATIONS[attributes["next_activation"]](h))


def product(x: Any, weight: Any, bias: Any) -> Array:
    made = np.einsum("bchw,oc->bohw", numbers(x), numbers(weight)[:, :, 0, 0])
    return made if bias is None else made + numbers(bias).reshape(1, -1, 1, 1)


def outputs(given: Chain, monkeypatch: Any) -> list[tuple[str, Any, Any]]:
    """Return what every configuration computes into memory full of NaN."""
    assert KERNEL.refuses(given.tensors, given.attributes, facts()) == ""
    made = []
    for tactic in KERNEL.tactics(given.tensors, given.attributes, facts()):
        run = KERNEL.prepare(given.tensors, given.attributes, tactic)
        with poisoned(monkeypatch):
            made.append((tactic.text(), *run(*given.tensors)))
    assert 0 < len(made) <= len(CONFIGS)
    assert all(one.is_contiguous(memory_format=torch.channels_last) for _, *both in made for one in both)
    return made


@pytest.mark.parametrize("name", SIZES)
def test_every_configuration_gives_both_outputs_as_float64_does(
    name: str, device: Any, monkeypatch: Any
) -> None:
    given = chained(name, device)
    expected = steps.conv_chain(*given.tensors, **given.attributes)
    for text, y, h in outputs(given, monkeypatch):
        assert y.dtype == h.dtype == torch.float16
        assert error(y, given.y) < TOLERANCES[torch.float16], text
        assert error(h, given.h) < TOLERANCES[torch.float16], text
        assert disagreement((y, h), expected) == "", text


@pytest.mark.parametrize("name", ["a block with a stride", "filters that fill no block"])
@pytest.mark.parametrize("activation", ["", "silu", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_each_output_has_its_bias_and_its_activation(
    name: str, activation: str, biased: bool, device: Any, monkeypatch: Any
) -> None:
    given = chained(name, device, activation=activation, next_activation="gelu", biased=biased)
    text, y, h = outputs(given, monkeypatch)[0]
    assert error(y, given.y) < TOLERANCES[torch.float16], text
    assert error(h, given.h) < TOLERANCES[torch.float16], text


@pytest.mark.parametrize("name", ["as the first stage has it", "a block with a stride"])
def test_bfloat16_is_taken_too(name: str, device: Any, monkeypatch: Any) -> None:
    given = chained(name, device, dtype=torch.bfloat16)
    for text, y, h in outputs(given, monkeypatch):
        assert y.dtype == h.dtype == torch.bfloat16
        assert error(y, given.y) < TOLERANCES[torch.bfloat16], text
        assert error(h, given.h) < TOLERANCES[torch.bfloat16], text


def test_the_plain_function_is_both_products(device: Any) -> None:
    for name in SIZES:
        given = chained(name, device)
        y, h = steps.conv_chain(*given.tensors, **given.attributes)
        assert error(y, given.y) < 1e-3 and error(h, given.h) < 1e-3


@pytest.mark.parametrize("broken", ["STRIDE_Y", "C", "N", "NEXT"])
def test_a_program_that_is_told_something_wrong_is_noticed(
    broken: str, device: Any, monkeypatch: Any
) -> None:
    given = chained("channels that fill no block", device)
    right = module.chain

    class Wrong:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*positional: Any, **named: Any) -> None:
                named[broken] -= 1
                right[grid](*positional, **named)

            return launch

    monkeypatch.setattr(module, "chain", Wrong())
    tactic = KERNEL.tactics(given.tensors, given.attributes, facts())[0]
    y, h = KERNEL.prepare(given.tensors, given.attributes, tactic)(*given.tensors)
    assert not (error(y, given.y) < 0.05 and error(h, given.h) < 0.05)


@pytest.mark.parametrize("name", ["before the second stage", "a block with a stride"])
@pytest.mark.parametrize("library", ["torch", "triton", "plain"])
def test_both_products_apart_are_right_whatever_computes_them(name: str, library: str, device: Any) -> None:
    given = chained(name, device)
    chosen = []
    for part in SEPARATE.parts(given.tensors, given.attributes):
        names = {"Conv": "conv_1x1" if library == "triton" else "conv", "ConvPair": "conv_pair"}
        wanted = f"{library}.{names[part.step]}"
        found = kernels({wanted: KERNELS[wanted]}).found if wanted in KERNELS else {}
        offered = [kernel.tactics(part.tensors, part.attributes, facts())[0] for kernel in found.values()]
        chosen.append(offered[0] if offered else PLAIN)
    assert all(tactic.kernel.startswith(library) for tactic in chosen)
    # What changes with the image is not there yet when an engine is loaded.
    fixed = (False, True, True, True, True, False, False)
    described = [
        one if one is None or stays else one.to("meta")
        for one, stays in zip(given.tensors, fixed, strict=True)
    ]
    tactic = Tactic(SEPARATE.name, {"parts": [one.document() for one in chosen]})
    y, h = SEPARATE.prepare(described, given.attributes, tactic)(*given.tensors)
    assert error(y, given.y) < TOLERANCES[torch.float16]
    assert error(h, given.h) < TOLERANCES[torch.float16]


def test_what_it_cannot_do_is_refused_with_the_reason(device: Any) -> None:
    given = chained("one pixel", device)
    x, weight, bias, following, behind, residual, _ = given.tensors
    said = given.attributes

    def refused(*tensors: Any, facts: Any = H100, **more: Any) -> str:
        return KERNEL.refuses(tensors, {**said, **more}, facts)

    assert "torch.float16, torch.float32" in refused(
        x.float(), weight, bias, following, behind, residual, None
    )
    assert "not torch.float16, torch.float32" in refused(*given.tensors, out_dtype="float32")
    assert "8.0" in refused(*given.tensors, facts=TURING)
    large = torch.empty(70, 16, 800, 667, dtype=torch.float16, device="meta")
    assert "elements in one tensor" in refused(
        large, weight.new_empty(80, 16, 1, 1), None, following.new_empty(4, 80, 1, 1), None, None, None
    )
    wide = weight.new_empty(2048, 512, 1, 1)
    assert refused(
        x.new_empty(1, 512, 2, 2), wide, None, wide.new_empty(512, 2048, 1, 1), None, None, None
    ) == ("512 + 0 channels to 512 do not fit in one multiprocessor")


def test_only_what_fits_is_offered() -> None:
    for own, shared, behind in ((64, 0, 64), (64, 64, 64), (128, 0, 128), (128, 256, 128), (256, 0, 256)):
        found = ChainShape(own, shared, 4 * own, behind, 1000)
        assert sum(map(found.fits, CONFIGS)) >= 3, found
    assert not any(map(ChainShape(256, 512, 1024, 256, 1000).fits, CONFIGS))


@pytest.mark.skipif(torch.cuda.is_available(), reason="addresses are seen in the interpreter alone")
@pytest.mark.parametrize("name", SIZES)
def test_nothing_beside_the_tensors_is_read_or_written(name: str, device: Any, monkeypatch: Any) -> None:
    given = chained(name, device)
    with watched(monkeypatch, (module, "chain")) as launched:
        count = len(outputs(given, monkeypatch))
    assert launched == ["chain"] * count


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would break the GPU's context")
@pytest.mark.parametrize("name", ["a block with a stride", "filters that fill no block"])
def test_the_check_of_addresses_sees_one_pixel_too_many(name: str, device: Any, monkeypatch: Any) -> None:
    given, found = chained(name, device), ChainShape.of
    tactic = KERNEL.tactics(given.tensors, given.attributes, facts())[0]
    monkeypatch.setattr(
        ChainShape,
        "of",
        classmethod(lambda _, tensors: replace(found(tensors), pixels=found(tensors).pixels + 1)),
    )
    run = KERNEL.prepare(given.tensors, given.attributes, tactic)
    with (
        watched(monkeypatch, (module, "chain")),
        pytest.raises(InterpreterError, match="beside its tensors"),
    ):
        run(*given.tensors)
