"""Every way of breaking a model that we know of, on a small detector and a small classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tiny_graphs
from judging import change, judged
from vitesse.ledger import Verdict
from vitesse.verify.gate import StepKind

PICTURES = tiny_graphs.pictures(16)
f32 = np.float32


def _detector(candidate: onnx.ModelProto, kind: StepKind = StepKind.STRUCTURAL) -> tuple[Verdict, str]:
    return judged(tiny_graphs.detector(), candidate, tiny_graphs.detector_spec(), PICTURES, kind)


def _classifier(candidate: onnx.ModelProto, kind: StepKind = StepKind.STRUCTURAL) -> tuple[Verdict, str]:
    return judged(tiny_graphs.classifier(), candidate, tiny_graphs.classifier_spec(), PICTURES, kind)


def _spread(verdict_of: Callable[[onnx.ModelProto], tuple[Verdict, str]], model: onnx.ModelProto) -> str:
    verdict, reason = verdict_of(model)
    assert verdict is Verdict.FAIL, reason
    return reason


def test_a_rewritten_and_equal_graph_passes() -> None:
    rewritten = change(tiny_graphs.detector, "hidden", "Mul", f32(2))
    for name in ("to_logits", "to_boxes"):
        tiny_graphs.set_weight(rewritten, name, tiny_graphs.weight(rewritten, name) / f32(2))
    assert _detector(rewritten) == (
        Verdict.PASS,
        "agreement with the original unchanged, 1.50× as fast as the step before",
    )


def test_rounding_of_another_order_of_sums_passes() -> None:
    rewritten = tiny_graphs.detector()
    scale = np.linspace(0.3, 3, tiny_graphs.WIDTH, dtype=f32)
    tiny_graphs.set_weight(
        rewritten, "stem", tiny_graphs.weight(rewritten, "stem") * scale[:, None, None, None]
    )
    tiny_graphs.set_weight(rewritten, "mix", tiny_graphs.weight(rewritten, "mix") / scale[:, None])
    assert _detector(rewritten)[0] is Verdict.PASS


@pytest.mark.parametrize("output", ["logits", "boxes"])
@pytest.mark.parametrize("factor", [1.05, 0.95, 2.0, -1.0])
def test_scaled_outputs_fail(output: str, factor: float) -> None:
    reason = _spread(_detector, change(tiny_graphs.detector, output, "Mul", f32(factor)))
    assert f"the outputs differ from the model before: `{output}`" in reason


def test_scaled_logits_of_a_classifier_fail_although_every_top1_agrees() -> None:
    reason = _spread(_classifier, change(tiny_graphs.classifier, "logits", "Mul", f32(1.05)))
    assert "`logits` by up to 5 %" in reason


def test_swapped_box_order_fails() -> None:
    order = np.array([1, 0, 3, 2], np.int64)
    assert "`boxes`" in _spread(_detector, change(tiny_graphs.detector, "boxes", "Gather", order))


def test_off_by_one_classes_fail() -> None:
    order = np.array([1, 2, 3, 0, 4], np.int64)
    assert "`logits`" in _spread(_detector, change(tiny_graphs.detector, "logits", "Gather", order))
    assert "`logits`" in _spread(_classifier, change(tiny_graphs.classifier, "logits", "Gather", order[:4]))


def test_nan_in_some_images_fails_and_says_in_how_many() -> None:
    reason = _spread(_classifier, change(tiny_graphs.classifier, "logits", "Sqrt"))
    assert reason.startswith("the output `logits` holds NaN in")
    assert "16 images (first: image 1)" in reason


def test_a_zeroed_output_fails() -> None:
    reason = _spread(_detector, change(tiny_graphs.detector, "boxes", "Mul", f32(0)))
    assert "the output `boxes` is all zeros in all 16 images (first: image 1)" in reason


def test_a_constant_output_fails() -> None:
    broken = change(tiny_graphs.classifier, "mixed", "Mul", f32(0))
    tiny_graphs.set_weight(broken, "bias", np.arange(tiny_graphs.WIDTH, dtype=f32))
    tiny_graphs.insert_after(broken, "mixed", "Add", "bias")
    assert _spread(_classifier, broken) == "the output `logits` is the same for all 16 images"


def test_a_missing_output_and_another_shape_fail() -> None:
    without = tiny_graphs.detector()
    del without.graph.output[1]
    assert "the output `boxes` is missing" in _spread(_detector_outputs, without)
    fewer = change(tiny_graphs.detector, "logits", "Gather", np.arange(4))
    assert "the output `logits` has shape (1, 64, 4), the original has (1, 64, 5)" in _spread(
        _detector_outputs, fewer
    )


def _detector_outputs(candidate: onnx.ModelProto) -> tuple[Verdict, str]:
    """As `_detector`, with labels unknown so that another number of classes reaches the gate."""
    spec = tiny_graphs.detector_spec(labels=())
    return judged(tiny_graphs.detector(), candidate, spec, PICTURES)


def test_reordered_queries_of_a_softmax_detector_fail() -> None:
    broken = tiny_graphs.detector()
    tiny_graphs.set_weight(broken, "order", np.arange(64)[::-1].copy())
    tiny_graphs.insert_after(broken, "logits", "Gather", "order", axis=1)
    assert "`logits`" in _spread(_detector, broken)


def _quantised(model: onnx.ModelProto, tensor: str, scale: float) -> onnx.ModelProto:
    changed = copy.deepcopy(model)
    tiny_graphs.set_weight(changed, "q_scale", np.array(scale, f32))
    tiny_graphs.set_weight(changed, "q_zero", np.array(0, np.int8))
    tiny_graphs.insert_after(changed, tensor, "DequantizeLinear", "q_scale", "q_zero")
    tiny_graphs.insert_after(changed, f"{tensor}_before", "QuantizeLinear", "q_scale", "q_zero")
    return changed


def test_int8_with_the_scale_of_its_values_keeps_the_agreement() -> None:
    shown = tiny_graphs.classifier()
    shown.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    peak = max(float(tiny_graphs.runner(shown)(one)["flat"].max()) for one in PICTURES)
    verdict, reason = _classifier(
        _quantised(tiny_graphs.classifier(), "flat", peak / 127), StepKind.PRECISION
    )
    assert verdict is Verdict.PASS, reason


def test_int8_with_a_scale_that_rounds_everything_to_zero_fails_as_constant() -> None:
    verdict, reason = _classifier(_quantised(tiny_graphs.classifier(), "flat", 1e6), StepKind.PRECISION)
    assert (verdict, reason) == (
        Verdict.FAIL,
        "the output `logits` is all zeros in all 16 images (first: image 1)",
    )


def test_int8_with_a_scale_that_saturates_is_rejected_for_its_points() -> None:
    verdict, reason = _classifier(_quantised(tiny_graphs.classifier(), "flat", 1e-3), StepKind.PRECISION)
    assert verdict is Verdict.REJECTED
    assert reason.endswith("points of agreement with the original (budget 0.5)")
    verdict, reason = _detector(_quantised(tiny_graphs.detector(), "tokens", 1e-3), StepKind.PRECISION)
    assert verdict is Verdict.REJECTED, reason


def _through_float16(gain: float) -> onnx.ModelProto:
    """Multiply by `gain`, pass through float16, divide by `gain`: nothing but the range of float16 shows."""
    model = tiny_graphs.classifier()
    tiny_graphs.set_weight(model, "gain", np.array(gain, f32))
    tiny_graphs.insert_after(model, "flat", "Div", "gain")
    tiny_graphs.insert_after(model, "flat_before", "Cast", to=TensorProto.FLOAT)
    tiny_graphs.insert_after(model, "flat_before_before", "Cast", to=TensorProto.FLOAT16)
    tiny_graphs.insert_after(model, "flat_before_before_before", "Mul", "gain")
    return model


def test_float16_in_its_range_passes_and_beyond_fails_with_what_the_output_holds() -> None:
    verdict, reason = _classifier(_through_float16(1.0), StepKind.PRECISION)
    assert verdict is Verdict.PASS, reason
    verdict, reason = _classifier(_through_float16(1e6), StepKind.PRECISION)
    assert verdict is Verdict.FAIL
    assert reason.startswith("the output `logits` holds NaN in")


@pytest.mark.parametrize("kind", [StepKind.STRUCTURAL, StepKind.BUILD])
def test_a_fault_of_one_picture_only_fails(kind: StepKind) -> None:
    """Like a kernel that goes wrong for some inputs: values above a threshold are cut."""
    peaks = [float(tiny_graphs.runner(tiny_graphs.classifier())(one)["logits"].max()) for one in PICTURES]
    limit = f32((sorted(peaks)[-1] + sorted(peaks)[-2]) / 2 - 0.5)
    broken = tiny_graphs.classifier()
    tiny_graphs.set_weight(broken, "limit", limit)
    clip = helper.make_node("Clip", ["logits_before", "", "limit"], ["logits"], "clip")
    tiny_graphs.node(broken, "head").output[0] = "logits_before"
    broken.graph.node.append(clip)
    assert _classifier(broken, kind)[0] is Verdict.FAIL
