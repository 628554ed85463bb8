"""Which candidate computes a step: wrong and crashing ones are dropped, the fastest stays and is remembered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from backends.torch_cuda.fake_kernels import FakeKernel, kernels_of
from vitesse.backends.torch_cuda import tactics
from vitesse.backends.torch_cuda.candidates import (
    PLAIN,
    DeviceFacts,
    Kernels,
    Run,
    Tactic,
    kernels,
    tactic_of,
)
from vitesse.backends.torch_cuda.comparing import disagreement
from vitesse.backends.torch_cuda.problem import Problem
from vitesse.backends.torch_cuda.steps import E4M3, linear, quantised
from vitesse.backends.torch_cuda.tactics import TacticCache, choose
from vitesse.errors import ModelError

CPU = torch.device("cpu")


def problem(rows: int = 5, **attributes: object) -> Problem:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(shape, generator=generator).half() for shape in ((2, rows, 8), (8, 4)))
    keywords = {"activation": "", "residual_first": 0, "out_dtype": "float16", "out_scale": 0.0, **attributes}
    fixed = (False, True, False, False, False)
    return Problem("Linear", keywords, (x, weight, None, None, None), fixed, partial(linear, **keywords))


def test_the_fastest_right_candidate_is_kept_and_the_others_are_named_with_their_faults() -> None:
    wrong, crashing = FakeKernel("wrong", scale=1.01), FakeKernel("crashing", crash="no such instruction")
    slow, fast = (
        FakeKernel("slow", delay_s=0.02),
        FakeKernel("fast", configs=[{"delay_s": 0.01}, {"delay_s": 0.0}]),
    )
    odd = FakeKernel("odd", refusal="N = 4 is no multiple of 8")
    cache = TacticCache()
    choice, run = choose(problem(), kernels_of(wrong, crashing, slow, fast, odd), CPU, cache)
    assert choice.tactic == Tactic("fast", {"delay_s": 0.0})
    errors = {trial.tactic.kernel: trial.error for trial in choice.trials if trial.error}
    assert errors.keys() == {"wrong", "crashing"}
    assert errors["wrong"].startswith("output 0 is off by 1.0e-02 of its norm")
    assert errors["crashing"] == "RuntimeError: no such instruction"
    assert choice.refused == {"odd": "N = 4 is no multiple of 8"}
    assert all(trial.microseconds is None for trial in choice.trials if trial.error)
    given = problem().tensors
    torch.testing.assert_close(run(*given)[0], problem().plain(*given)[0])


def test_where_every_candidate_is_wrong_the_plain_function_computes_the_step() -> None:
    choice, run = choose(problem(), kernels_of(FakeKernel("wrong", scale=0.0)), CPU, TacticCache())
    assert choice.tactic == PLAIN
    assert bool(run(*problem().tensors)[0].any())


def test_what_was_measured_and_what_is_a_guess_are_told_apart() -> None:
    cache = TacticCache()
    kernels = kernels_of(FakeKernel("wrong", scale=0.0))
    measured, _ = choose(problem(), kernels, CPU, cache)
    assert (measured.tactic, measured.microseconds, measured.guessed) == (PLAIN, None, False)
    restored = TacticCache.from_json(cache.to_json())
    assert not choose(problem(), kernels, CPU, restored, measure=False)[0].guessed
    for rows in (6, 7):
        assert choose(problem(rows), kernels, CPU, restored, measure=False)[0].guessed
    assert choose(problem(), kernels_of(FakeKernel("right")), CPU, TacticCache(), measure=False)[0].guessed


def test_the_seconds_of_compiling_and_of_measuring_are_added_up() -> None:
    cache = TacticCache()
    choose(problem(), kernels_of(FakeKernel("slow", delay_s=0.02)), CPU, cache)
    assert cache.spent.compiling > 0.02
    assert cache.spent.measuring > 0.02
    before = replace(cache.spent)
    choose(problem(), kernels_of(FakeKernel("slow", delay_s=0.02)), CPU, cache)
    assert cache.spent == before, "a known step takes nothing"


def test_every_thread_that_prepares_for_a_gpu_has_its_context_first(monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[int, list[str]] = {}

    def note(what: str) -> None:
        done.setdefault(threading.get_ident(), []).append(what)

    @contextmanager
    def working(device: torch.device) -> Iterator[None]:
        note(f"context of {device}")
        yield

    class Noting(FakeKernel):
        def prepare(self, *given: object) -> Run:
            note("prepare")
            return super().prepare(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(tactics, "working_on", working)
    monkeypatch.setattr(tactics, "synchronise", lambda *_: None)
    fake = Noting("fake", configs=[{"number": number} for number in range(6)])
    offered = [(fake, tactic) for tactic in fake.tactics((), {}, DeviceFacts((9, 0), 132, "H100"))]
    made = tactics._all_prepared(problem(), offered, torch.device("cuda", 0))
    assert all(run is not None for run, _ in made)
    assert threading.get_ident() not in done
    for happened in done.values():
        assert happened == ["context of cuda:0", "prepare"] * (len(happened) // 2)


def test_an_equal_step_is_measured_once_and_a_known_one_never_again() -> None:
    fake = FakeKernel("fake", configs=[{}, {"delay_s": 0.001}])
    cache = TacticCache()
    choose(problem(), kernels_of(fake), CPU, cache)
    assert len(fake.prepared) == 2
    restored = TacticCache.from_json(cache.to_json())
    assert restored == cache
    choice, _ = choose(problem(), kernels_of(fake), CPU, restored)
    assert [tactic.config for tactic in fake.prepared[2:]] == [choice.tactic.config] == [{}]


def test_a_slower_tactic_that_the_cache_names_is_taken_without_measuring() -> None:
    fake = FakeKernel("fake", configs=[{}, {"delay_s": 0.001}])
    cache = TacticCache()
    choose(problem(), kernels_of(fake), CPU, cache)
    (signature,) = cache.choices
    cache.choices[signature] = replace(cache.choices[signature], tactic=Tactic("fake", {"delay_s": 0.001}))
    choice, _ = choose(problem(), kernels_of(fake), CPU, cache, measure=True)
    assert choice.tactic.config == {"delay_s": 0.001}


def test_another_size_takes_the_tactic_of_the_nearest_one_and_checks_it() -> None:
    fake = FakeKernel("fake", configs=[{"name": "guess"}, {"name": "small"}, {"name": "large"}])
    cache = TacticCache()
    for rows, name in ((4, "small"), (64, "large")):
        choice, _ = choose(problem(rows), kernels_of(fake), CPU, cache)
        cache.choices[problem(rows).signature] = replace(choice, tactic=Tactic("fake", {"name": name}))
    for rows, name in ((5, "small"), (50, "large")):
        choice, _ = choose(problem(rows), kernels_of(fake), CPU, cache, measure=False)
        assert (choice.tactic.config, choice.microseconds) == ({"name": name}, None)
    assert len(cache.choices) == 2, "a guess is not remembered as if it were measured"
    broken = kernels_of(FakeKernel("fake", scale=2.0, configs=fake.configs), FakeKernel("other"))
    choice, _ = choose(problem(5), broken, CPU, cache, measure=False)
    assert choice.tactic == Tactic("other")


def test_tactics_of_another_machine_are_only_guesses() -> None:
    cache = TacticCache()
    choose(problem(), kernels_of(FakeKernel("fake")), CPU, cache)
    elsewhere = replace(cache, trusted=False)
    wrong_here = kernels_of(FakeKernel("fake", scale=3.0))
    assert choose(problem(), wrong_here, CPU, cache)[0].tactic == Tactic("fake"), "trusted: not checked again"
    assert choose(problem(), wrong_here, CPU, elsewhere, measure=False)[0].tactic == PLAIN


def test_a_kernel_that_is_gone_gives_way_to_another() -> None:
    cache = TacticCache()
    choose(problem(), kernels_of(FakeKernel("gone")), CPU, cache)
    choice, _ = choose(problem(), kernels_of(FakeKernel("here")), CPU, cache)
    assert choice.tactic == Tactic("here")


def test_layers_with_scales_of_their_own_share_a_signature_and_those_without_do_not() -> None:
    assert problem(out_scale=0.25).signature == problem(out_scale=0.5).signature
    assert problem(out_scale=0.0).signature != problem(out_scale=0.5).signature
    assert problem(4).signature != problem(5).signature
    assert problem(4).family == problem(5).family
    assert problem(activation="relu").family != problem().family


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 9, "made_on": {}, "choices": {}}', "[1]"])
def test_damaged_tactics_are_refused(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        TacticCache.from_json(text)
    assert "tactics" in caught.value.what


def test_a_tactic_survives_json_and_something_else_is_refused() -> None:
    tactic = Tactic("triton.linear", {"block_m": 128, "algo": "ab" * 40})
    assert tactic_of(tactic.document()) == tactic
    assert tactic.text() == "triton.linear block_m=128 algo=ababababab…"
    with pytest.raises(ModelError, match="not a tactic"):
        tactic_of({"kernel": 3})


def test_kernels_whose_library_is_absent_are_left_out_with_the_reason() -> None:
    found = kernels(
        {"absent": "no_such_library.kernels:KERNEL", "here": "backends.torch_cuda.fake_kernels:FakeKernel"}
    )
    assert list(found.found) == ["here"]
    assert found.missing == {"absent": "ModuleNotFoundError: No module named 'no_such_library'"}
    assert isinstance(found, Kernels)


def spoilt(y: Tensor, where: tuple[int, ...], value: float) -> Tensor:
    changed = y.clone()
    changed[where] = value
    return changed


def test_what_is_compared_is_shape_type_norm_and_every_single_value() -> None:
    y = torch.randn(64, 512, generator=torch.Generator().manual_seed(1)).half()
    assert disagreement([y], [y]) == ""
    assert disagreement([y[:32]], [y]) == "output 0 has shape (32, 512), not (64, 512)"
    assert disagreement([y.float()], [y]) == "output 0 is torch.float32, not torch.float16"
    assert disagreement([None], [y]) == "output 0 is missing"
    assert "gives 0 outputs" in disagreement([], [y])
    assert "of its norm" in disagreement([y * 1.01], [y])
    assert "of its norm" in disagreement([spoilt(y, (3, 4), float("nan"))], [y])
    # One value of 32,768: the norm does not see it.
    assert "has a value that is off" in disagreement([spoilt(y, (3, 4), float(y[3, 4]) + 0.2)], [y])
    assert disagreement([spoilt(y, (3, 4), float("nan")), y], [y, y], wanted="01") == ""


def test_e4m3_may_be_one_step_off_in_a_few_values_and_not_in_many() -> None:
    wide = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    y = quantised(wide, 0.01)
    assert y.dtype == E4M3
    assert disagreement([quantised(wide * 1.0005, 0.01)], [y]) == ""
    assert "another step" in disagreement([quantised(wide * 1.05, 0.01)], [y])
    codes = y.view(torch.uint8).clone()
    codes[:4, :64] = 0x20
    assert "more than one step" in disagreement([codes.view(E4M3)], [y])
    codes[:4, :64] = 0x7F
    assert disagreement([codes.view(E4M3)], [y]), "NaN stands one code above the largest number"


def gelu_of_products(rows: int, rounding: float) -> Tensor:
    """As a layer of a ViT has them, with the relative error of a 16-bit product before the activation."""
    generator = torch.Generator().manual_seed(5)
    product = torch.randn(rows, 768, generator=generator, dtype=torch.float64)
    noise = torch.randn(product.shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.gelu(product + rounding * noise).float()


def test_e4m3_near_zero_may_be_many_steps_off_by_the_rounding_of_16_bits() -> None:
    y, other = (quantised(gelu_of_products(512, rounding), 4.5 / 448) for rounding in (0.0, 3e-4))
    steps = (y.view(torch.uint8).int() - other.view(torch.uint8).int()).abs()
    assert float((steps > 1).double().mean()) > 1e-4, "what was measured on an H100 with right kernels"
    assert disagreement([other], [y]) == ""


@pytest.mark.parametrize("place", [(slice(0, 16), slice(64, 80)), (slice(300, 301), slice(None))])
def test_one_wrong_tile_or_row_of_many_in_e4m3_is_found(place: tuple[slice, slice]) -> None:
    wide = gelu_of_products(6304, 0.0)
    wrong = wide.clone()
    # As of other columns: the norm of all does not see it, nor does the share of values.
    wrong[place] = wide[place].flip(-1)
    assert (wrong != wide).double().mean() < 2e-4
    assert disagreement([quantised(wrong, 4.5 / 448)], [quantised(wide, 4.5 / 448)])


def test_e4m3_with_all_values_a_step_too_small_is_off_by_its_norm_or_its_steps() -> None:
    wide = gelu_of_products(64, 0.0)
    assert disagreement([quantised(wide * 0.93, 4.5 / 448)], [quantised(wide, 4.5 / 448)])


def test_a_short_build_tries_the_best_guesses_of_each_kernel_alone() -> None:
    fakes = [
        FakeKernel(name, configs=[{"guess": number} for number in range(9)]) for name in ("first", "second")
    ]
    choice, _ = choose(problem(), kernels_of(*fakes), CPU, TacticCache(), most=2)
    assert [(trial.tactic.kernel, trial.tactic.config["guess"]) for trial in choice.trials] == [
        ("first", 0),
        ("first", 1),
        ("second", 0),
        ("second", 1),
    ]


def test_offsets_of_the_same_alignment_share_a_signature() -> None:
    aligned = [replace(problem(), attributes={"k_offset": offset}).signature for offset in (0, 64, 512, 768)]
    assert len(set(aligned)) == 1
    assert replace(problem(), attributes={"k_offset": 40}).signature not in aligned
