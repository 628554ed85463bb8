"""The operator profile adds up, counts calls per run, and finds the expensive node."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from shared_data import shared
from tiny_onnx import as_artifact, linear, save
from vitesse.artifact import Artifact
from vitesse.errors import DataError, UsageError
from vitesse.profile.operators import profile


def two_products(folder: Path) -> Artifact:
    """A product with 400 × 400 weights and a softmax after it; beside it, a product with 400 × 4."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"], name="/large/MatMul"),
        helper.make_node("Softmax", ["a"], ["attention"], name="/large/Softmax"),
        helper.make_node("MatMul", ["x", "narrow"], ["logits"], name="/small/MatMul"),
    ]
    constants = {
        "large": rng.standard_normal((400, 400)).astype(np.float32),
        "narrow": rng.standard_normal((400, 4)).astype(np.float32),
    }
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 400])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["N", 400]),
    ]
    return save(folder / "products.onnx", nodes, inputs, outputs, constants)


def test_the_expensive_node_leads_and_shares_add_up(tmp_path: Path, runtime: str) -> None:
    artifact = dataclasses.replace(two_products(tmp_path), backend=runtime)
    # Of so many runs that one which was held up on a busy machine does not make the softmax the slowest.
    found = profile(artifact, [{"x": np.ones((300, 400), np.float32)}], threads=1, runs=25)
    assert (found.backend, found.runs, found.threads) == (runtime, 25, 1)
    assert "large" in found.nodes[0].node
    assert sum(row.share for row in found.operators) == pytest.approx(1)
    assert sum(row.ms for row in found.operators) == pytest.approx(found.operators_ms)
    assert found.operators == tuple(sorted(found.operators, key=lambda row: -row.ms))
    assert 0.3 < found.covered < 1.05


def test_calls_are_per_run_and_leave_the_warm_up_out(tmp_path: Path) -> None:
    found = profile(two_products(tmp_path), [{"x": np.ones((2, 400), np.float32)}], runs=5)
    calls = {row.operator: row.calls for row in found.operators}
    assert calls == {"MatMul": 2.0, "Softmax": 1.0}


def test_top_limits_the_nodes_but_not_the_operators(tmp_path: Path) -> None:
    found = profile(two_products(tmp_path), [{"x": np.ones((2, 400), np.float32)}], runs=2, top=1)
    assert (len(found.nodes), len(found.operators)) == (1, 2)
    assert found.to_json()["covered"] == found.covered


def test_a_real_detector_is_accounted_for(runtime: str) -> None:
    model = shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx"
    feeds = {
        "images": np.zeros((1, 3, 320, 320), np.float32),
        "orig_target_sizes": np.array([[640, 480]], np.int64),
    }
    found = profile(dataclasses.replace(as_artifact(model), backend=runtime), [feeds], runs=5)
    (convolution,) = (row for row in found.operators if row.operator in {"Conv", "Convolution"})
    assert convolution.calls >= 40
    assert convolution.share > 0.05
    assert 0.5 < found.covered < 1.05


def test_no_feeds_and_unknown_runtimes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to feed"):
        profile(linear(tmp_path), [])
    other = dataclasses.replace(linear(tmp_path), backend="tensorrt")
    with pytest.raises(UsageError) as caught:
        profile(other, [{"x": np.ones((1, 6), np.float32)}])
    assert caught.value.expected == "one of: onnxruntime, openvino"
