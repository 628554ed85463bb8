"""What ends a training early leaves good weights, and says why."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning-fabric: pip install 'vitesse[compress]'")

from training.toys import (  # noqa: E402
    EVERY_STEP,
    OPTIONS,
    Classify,
    Cut,
    Noise,
    at_call,
    cut,
    network,
    same,
    state,
    trained,
    weights,
)
from vitesse.errors import VitesseError  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_weights_of_the_step_before(
    value: float, tmp_path: Path
) -> None:
    calls = iter(range(100))
    poisoned = Classify(network(), before=lambda batch: value if next(calls) == 7 else None)
    result, found = trained(tmp_path / "nan", task=poisoned)
    assert result.stopped.startswith(f"the loss 'class' is {value}")
    assert "in step 8; the weights after step 7 stay" in result.stopped
    assert result.steps == 7 and result.history[-1]["step"] == 8
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    with pytest.raises(Cut):
        trained(tmp_path / "cut", EVERY_STEP, data=Noise(on_batch=at_call(8, cut)))
    assert same(state(tmp_path / "cut")["average"], found)
    assert same(state(tmp_path / "cut")["student"], state(tmp_path / "nan")["student"])
    assert result.stopped in (tmp_path / "nan" / "training.csv").read_text().replace('"', "")


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path: Path) -> None:
    student = network(dropout=0)
    student[6].weight.register_hook(lambda gradient: gradient * math.inf)
    result, _ = trained(tmp_path, task=Classify(student))
    assert result.steps == 0 and "the gradient norm is" in result.stopped


def test_after_a_stop_the_best_scored_weights_stay(tmp_path: Path) -> None:
    calls = iter(range(100))
    seen: list[dict[str, Any]] = []

    def score(module: Any) -> float:
        seen.append(weights(module))
        return float(len(seen))

    poisoned = Classify(network(), before=lambda batch: math.nan if next(calls) == 7 else None)
    result, found = trained(tmp_path, task=poisoned, score=score)
    assert "the weights of step 6, which scored 3, stay" in result.stopped
    assert same(found, seen[2]) and result.score == 3


def memory_for(images: int) -> Callable[[Batch], None]:
    def refuse(batch: Batch) -> None:
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    return refuse


def plain() -> Any:
    """A network that treats every image alone, so that a split batch has the same gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))


def test_out_of_memory_halves_what_goes_through_at_once_and_keeps_the_batch(tmp_path: Path) -> None:
    whole, expected = trained(tmp_path / "all", task=Classify(plain()))
    result, found = trained(tmp_path / "one", task=Classify(plain(), before=memory_for(1)))
    assert result.batch == 1 and result.steps == 12
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(result.history, whole.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    log = (tmp_path / "one" / "training.csv").read_text()
    assert log.count("memory ran out: 1 images at once instead of 4, for the same steps of 4") == 1


def test_an_odd_batch_is_split_without_losing_an_image(tmp_path: Path) -> None:
    seen: list[int] = []

    def before(batch: Batch) -> None:
        memory_for(3)(batch)
        seen.append(len(batch))

    options = replace(OPTIONS, batch=7, steps=2)
    trained(tmp_path, options, task=Classify(plain(), before=before))
    assert seen == [3, 3, 1] * 2


def test_memory_for_no_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VitesseError, match="memory does not hold one image") as refused:
        trained(tmp_path, task=Classify(network(), before=memory_for(0)))
    assert "CUDA out of memory" in str(refused.value)


def test_ctrl_c_finishes_the_step_saves_and_leaves(tmp_path: Path) -> None:
    _, expected = trained(tmp_path / "whole")
    press = at_call(5, lambda: signal.raise_signal(signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", data=Noise(on_batch=press))
    assert signal.getsignal(signal.SIGINT) is handler
    assert state(tmp_path / "cut")["step"] == 5
    assert same(expected, trained(tmp_path / "cut")[1])


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, data=Noise(on_batch=at_call(5, twice)))
    assert state(tmp_path)["step"] == 3, "the checkpoint before; the step was not finished"
