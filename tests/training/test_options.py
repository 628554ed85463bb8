"""What cannot be meant is refused, and the message says what could have been."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vitesse.errors import UsageError
from vitesse.training.options import TrainOptions


@pytest.mark.parametrize("given", [{}, {"steps": 5, "seconds": 5.0}])
def test_exactly_one_of_steps_and_seconds_is_given(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="exactly one of the two"):
        TrainOptions(**given)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seconds", 0.0, "a time above 0"),
        ("seconds", math.nan, "a time above 0"),
        ("steps", 0, "1 step or more"),
        ("batch", 0, "1 image or more"),
        ("rate", 0.0, "a learning rate above 0"),
        ("rate", math.nan, "a learning rate above 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("warmup", 1.0, "from 0 to below 1"),
        ("clip", -1.0, "0 for no clipping"),
        ("ema", 1.0, "from 0 to below 1"),
        ("precision", "fp16", "auto, 32-true, bf16-mixed"),
        ("accelerator", "tpu", "auto, cpu or cuda"),
        ("devices", 3, "dividing the batch of 128"),
        ("checkpoint_seconds", -1.0, "0 or more"),
        ("score_every", 0.0, "above 0 and up to 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused(name: str, value: Any, expected: str) -> None:
    given = {"steps": 10} | {name: value} if name != "seconds" else {name: value}
    with pytest.raises(UsageError, match=f"{name} is {value}") as refused:
        TrainOptions(**given)
    assert expected in str(refused.value)
