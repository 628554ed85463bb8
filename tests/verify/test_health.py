from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vitesse.verify.health import Finding, HealthMeter

RANDOM = np.random.default_rng(0)


def examine(outputs: Iterable[dict[str, np.ndarray]]) -> tuple[Finding, ...]:
    meter = HealthMeter()
    for tensors in outputs:
        meter.add(tensors)
    return meter.findings()


def _outputs(count: int = 16) -> list[dict[str, np.ndarray]]:
    return [
        {
            "logits": RANDOM.normal(size=(1, 5, 3)).astype(np.float32),
            "labels": np.zeros((1, 5), np.int64),
        }
        for _ in range(count)
    ]


def _one(outputs: list[dict[str, np.ndarray]]) -> str:
    (finding,) = examine(outputs)
    assert finding.fatal
    return finding.text


def test_working_outputs_have_no_findings() -> None:
    assert examine(_outputs()) == ()


def test_nan_is_counted_and_the_first_image_named() -> None:
    outputs = _outputs()
    for index in (4, 9, 11):
        outputs[index]["logits"][0, 2, 1] = np.nan
    assert _one(outputs) == "the output `logits` holds NaN in 3 of 16 images (first: image 5)"


def test_infinite_values_are_named() -> None:
    outputs = _outputs(1)
    outputs[0]["logits"][0, 0, 0] = -np.inf
    assert _one(outputs) == "the output `logits` holds infinite values in the only image (first: image 1)"


def test_nan_everywhere_is_nan_and_not_constant() -> None:
    outputs = _outputs(3)
    for entry in outputs:
        entry["logits"][:] = np.nan
    assert _one(outputs) == "the output `logits` holds NaN in all 3 images (first: image 1)"


def test_zeros_in_every_image_are_fatal_and_in_some_a_suspicion() -> None:
    outputs = _outputs(4)
    outputs[2]["logits"][:] = 0
    (finding,) = examine(outputs)
    assert finding.text == "the output `logits` is all zeros in 1 of 4 images (first: image 3)"
    assert not finding.fatal
    for entry in outputs:
        entry["logits"][:] = 0
    assert _one(outputs) == "the output `logits` is all zeros in all 4 images (first: image 1)"


def test_the_same_output_for_different_images_is_constant() -> None:
    outputs = _outputs()
    for entry in outputs:
        entry["logits"] = outputs[0]["logits"] * np.float32(1 + 1e-8)
    assert _one(outputs) == "the output `logits` is the same for all 16 images"


def test_an_output_that_moves_a_little_is_not_constant() -> None:
    outputs = _outputs()
    for index, entry in enumerate(outputs):
        entry["logits"] = outputs[0]["logits"].copy()
        entry["logits"][0, 0, 0] += 1e-3 * index
    assert examine(outputs) == ()


def test_one_image_cannot_show_a_constant_output() -> None:
    assert examine(_outputs(1)) == ()


def test_integer_outputs_may_be_constant_and_zero() -> None:
    assert examine([{"labels": np.zeros((1, 5), np.int64)}] * 4) == ()


def test_outputs_of_varying_shape_are_not_called_constant() -> None:
    assert examine([{"boxes": np.ones((count, 4), np.float32)} for count in (1, 2)]) == ()


def test_float16_outputs_are_watched_too() -> None:
    assert "infinite" in _one([{"logits": np.array([np.inf, 1.0], np.float16)}])


def test_image_names_are_used_and_images_not_kept() -> None:
    meter = HealthMeter()
    array = np.ones((1, 3), np.float32)
    meter.add({"logits": array}, image="a.jpg")
    array[:] = np.nan  # a session overwrites its buffers
    meter.add({"logits": array}, image="b.jpg")
    (finding,) = meter.findings()
    assert finding.first_image == "b.jpg"
    assert finding.images == 1
