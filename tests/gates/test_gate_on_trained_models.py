"""The same faults on trained models: the examples of the repository, and DEIMv2 with its post-processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from judging import Feeds, change, judged
from shared_data import shared
from vitesse.data.images import decode_image
from vitesse.data.preprocess import feeds
from vitesse.data.split import find_images
from vitesse.ledger import Verdict
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.spec_file import find_spec
from vitesse.spec import ModelSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fashion"


def _feeds(folder: Path, spec: ModelSpec, count: int) -> Feeds:
    paths = find_images(folder)
    chosen = paths[:: max(1, len(paths) // count)][:count]
    return [feeds([decode_image(path)], spec, [str(path)]) for path in chosen]


@pytest.fixture(scope="module")
def detr() -> tuple[onnx.ModelProto, ModelSpec, Feeds]:
    model = load_onnx(EXAMPLES / "detr_fashion.onnx")
    spec = find_spec(model, preset=None, spec_file=None)
    return model, spec, _feeds(EXAMPLES / "detr" / "val", spec, 4)


@pytest.fixture(scope="module")
def deimv2() -> tuple[onnx.ModelProto, ModelSpec, Feeds]:
    model = load_onnx(shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx")
    spec = find_spec(model, preset="deimv2", spec_file=None)
    return model, spec, _feeds(shared("coco_ccby") / "images", spec, 4)


def _broken(model: onnx.ModelProto, tensor: str, operator: str, *values: Any) -> onnx.ModelProto:
    def fresh() -> onnx.ModelProto:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        return copied

    return change(fresh, tensor, operator, *values)


FAULTS = [
    ("logits", "Mul", np.float32(1.05)),
    ("logits", "Gather", np.array([*range(1, 10), 0, 10])),
    ("boxes", "Gather", np.array([1, 0, 3, 2])),
    ("boxes", "Mul", np.float32(0)),
    ("logits", "Sqrt"),
]


def test_the_trained_detr_is_equal_to_itself(detr: tuple[onnx.ModelProto, ModelSpec, Feeds]) -> None:
    model, spec, images = detr
    assert judged(model, model, spec, images)[0] is Verdict.PASS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]}-{fault[1]}")
def test_a_broken_trained_detr_fails(
    detr: tuple[onnx.ModelProto, ModelSpec, Feeds], fault: tuple[Any, ...]
) -> None:
    model, spec, images = detr
    role, operator, *values = fault
    verdict, reason = judged(model, _broken(model, spec.outputs[role], operator, *values), spec, images)
    assert verdict is Verdict.FAIL, reason
    assert f"`{spec.outputs[role]}`" in reason


def test_deimv2_is_equal_to_itself(deimv2: tuple[onnx.ModelProto, ModelSpec, Feeds]) -> None:
    model, spec, images = deimv2
    assert judged(model, model, spec, images)[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("output", "operator", "value", "said"),
    [
        ("scores", "Mul", np.float32(1.05), "`scores`"),
        ("boxes", "Mul", np.float32(1.01), "`boxes`"),
        ("boxes", "Gather", np.array([1, 0, 3, 2]), "`labels`"),
        ("labels", "Mul", np.int64(0), "`labels`"),
        ("labels", "Add", np.int64(1), "the model answered class 80, the spec names 80 labels"),
        ("scores", "Log", None, "`scores`"),
    ],
)
def test_a_broken_deimv2_fails(
    deimv2: tuple[onnx.ModelProto, ModelSpec, Feeds], output: str, operator: str, value: Any, said: str
) -> None:
    model, spec, images = deimv2
    broken = _broken(model, output, operator, *([] if value is None else [value]))
    verdict, reason = judged(model, broken, spec, images)
    assert verdict is Verdict.FAIL, reason
    assert said in reason
