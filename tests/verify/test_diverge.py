from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tiny_graphs
from vitesse.errors import BackendError
from vitesse.verify import pairs
from vitesse.verify.diverge import Divergence, Tolerance, first_diverging

FEEDS = tiny_graphs.pictures(1)[0]


def _found(candidate: onnx.ModelProto, **options: Tolerance) -> Divergence:
    divergence = first_diverging(tiny_graphs.detector(), candidate, FEEDS, **options)
    assert divergence is not None
    return divergence


def test_a_graph_does_not_diverge_from_itself() -> None:
    assert first_diverging(tiny_graphs.detector(), tiny_graphs.detector(), FEEDS) is None


def test_the_first_of_several_wrong_tensors_is_named_in_words() -> None:
    broken = tiny_graphs.detector()
    tiny_graphs.set_weight(broken, "mix", tiny_graphs.weight(broken, "mix") * np.float32(1.05))
    tiny_graphs.set_weight(broken, "to_boxes", tiny_graphs.weight(broken, "to_boxes") * np.float32(2))
    found = _found(broken)
    assert (found.tensor, found.op_type, found.node) == ("mixed", "MatMul", "mix")
    assert found.max_rel == pytest.approx(0.05, rel=1e-3)
    assert (found.equal_before, found.last_equal) == (4, "tokens")
    text = found.describe()
    assert "`mixed` (made by MatMul node `mix`) differs by up to" in text
    assert "5 % of its largest value" in text
    assert "4 shared tensors before it agree, the last of them `tokens`" in text


def test_a_difference_inside_the_tolerance_is_passed_over() -> None:
    changed = tiny_graphs.detector()
    tiny_graphs.set_weight(changed, "mix", tiny_graphs.weight(changed, "mix") * np.float32(1.0005))
    assert first_diverging(tiny_graphs.detector(), changed, FEEDS) is None
    assert _found(changed, tolerance=Tolerance(max_rel=1e-5)).tensor == "mixed"


def test_values_that_became_nan_are_counted() -> None:
    broken = tiny_graphs.detector()
    tiny_graphs.set_weight(broken, "nan", np.array(np.nan, np.float32))
    tiny_graphs.insert_after(broken, "mixed", "Mul", "nan")
    found = _found(broken)
    assert found.tensor == "mixed"
    assert f"holds {64 * 16} values that are NaN or infinite here only" in found.describe()


def test_another_shape_is_named() -> None:
    broken = tiny_graphs.detector()
    tiny_graphs.node(broken, "tokens").attribute[0].ints[:] = [0, 1, 2]
    tiny_graphs.set_weight(broken, "shape", np.array([0, 64, 16], np.int64))
    assert "`grid` (made by Reshape node `grid`) has shape (1, 64, 16)" in _found(broken).describe()


def test_masks_of_minus_infinity_are_equal_to_themselves() -> None:
    masked = tiny_graphs.detector()
    tiny_graphs.set_weight(masked, "mask", np.array([-np.inf, *[0] * 15], np.float32))
    tiny_graphs.insert_after(masked, "mixed", "Add", "mask")
    assert first_diverging(masked, copy.deepcopy(masked), FEEDS) is None
    assert _found(masked).tensor == "mixed"


def test_rounding_left_over_from_cancelling_is_not_a_divergence() -> None:
    def cancelling(noise: float) -> onnx.ModelProto:
        model = tiny_graphs.detector()
        tiny_graphs.set_weight(model, "noise", np.array(noise, np.float32))
        model.graph.node.extend(
            [
                helper.make_node("Sub", ["boxes", "boxes"], ["nothing"]),
                helper.make_node("Add", ["nothing", "noise"], ["left"]),
            ]
        )
        return model

    assert first_diverging(cancelling(1e-8), cancelling(-1e-8), FEEDS) is None


def test_contrib_operators_and_quantised_candidates_are_understood() -> None:
    candidate = tiny_graphs.detector()
    tiny_graphs.set_weight(candidate, "scale", np.array(0.2, np.float32))
    tiny_graphs.set_weight(candidate, "zero", np.array(0, np.int8))
    tiny_graphs.insert_after(candidate, "tokens", "DequantizeLinear", "scale", "zero")
    tiny_graphs.insert_after(candidate, "tokens_before", "QuantizeLinear", "scale", "zero")
    tiny_graphs.node(candidate, "tanh").op_type = "QuickGelu"
    tiny_graphs.node(candidate, "tanh").domain = "com.microsoft"
    candidate.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert _found(candidate).tensor == "tokens"
    loose = _found(candidate, tolerance=Tolerance(max_rel=0.3, cosine=0.99))
    assert (loose.tensor, loose.op_type) == ("hidden", "QuickGelu")


def test_tensors_inside_a_branch_are_left_out() -> None:
    def branching(factor: float) -> onnx.ModelProto:
        model = tiny_graphs.detector()
        tiny_graphs.set_weight(model, "factor", np.array(factor, np.float32))
        tiny_graphs.set_weight(model, "flag", np.array(True))
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        branch = helper.make_graph(
            [helper.make_node("Mul", ["hidden_before", "factor"], ["inner"])], "b", [], [out]
        )
        tiny_graphs.insert_after(model, "hidden", "Identity")
        gate = helper.make_node("If", ["flag"], ["hidden"], "gate", then_branch=branch, else_branch=branch)
        index = next(i for i, node in enumerate(model.graph.node) if node.name == "hidden_identity")
        model.graph.node.remove(model.graph.node[index])
        model.graph.node.insert(index, gate)
        return model

    found = first_diverging(branching(1.0), branching(1.1), FEEDS)
    assert found is not None
    assert (found.tensor, found.op_type) == ("hidden", "If")


def _choosing(scores: list[float], factor: float = 1.0) -> onnx.ModelProto:
    """The two best of four queries by constant scores, and the hidden features of those, times `factor`."""
    model = tiny_graphs.detector()
    for name, value in (("fixed", [scores]), ("two", [2]), ("factor", factor)):
        dtype = np.int64 if name == "two" else np.float32
        tiny_graphs.set_weight(model, name, np.array(value, dtype))
    model.graph.node.extend(
        [
            helper.make_node("Identity", ["fixed"], ["query_scores"]),
            helper.make_node("TopK", ["query_scores", "two"], ["best", "chosen"], "choose", axis=1),
            helper.make_node("Gather", ["hidden", "chosen"], ["picked"], "pick", axis=1),
            helper.make_node("Mul", ["picked", "factor"], ["refined"], "refine"),
        ]
    )
    return model


def test_a_swap_of_tied_queries_is_not_a_divergence_and_a_fault_behind_it_is_found() -> None:
    original, swapped = _choosing([0.1, 0.7, 0.7000001, 0.2]), _choosing([0.1, 0.7000001, 0.7, 0.2])
    assert first_diverging(original, swapped, FEEDS) is None
    found = first_diverging(original, _choosing([0.1, 0.7000001, 0.7, 0.2], factor=1.1), FEEDS)
    assert found is not None
    assert (found.tensor, found.max_rel) == ("refined", pytest.approx(0.1, rel=1e-3))


def test_a_choice_of_other_values_is_a_divergence() -> None:
    found = first_diverging(_choosing([0.1, 0.7, 0.6, 0.2]), _choosing([0.8, 0.7, 0.6, 0.2]), FEEDS)
    assert found is not None and found.tensor == "query_scores"
    worst = _choosing([0.1, 0.7, 0.6, 0.2])
    tiny_graphs.node(worst, "choose").attribute.append(helper.make_attribute("largest", 0))
    found = first_diverging(_choosing([0.1, 0.7, 0.6, 0.2]), worst, FEEDS)
    assert found is not None and (found.tensor, found.op_type) == ("best", "TopK")


def test_groups_of_tensors_stay_inside_the_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    run = pairs._Probe.run

    def counted(self: pairs._Probe, names: list[str]) -> list[object]:
        groups.append(len(names))
        return run(self, names)

    monkeypatch.setattr(pairs._Probe, "run", counted)
    monkeypatch.setattr(pairs, "_GROUP_BYTES", 1)
    monkeypatch.setattr(pairs, "_FIRST_GROUP", 2)
    assert first_diverging(tiny_graphs.detector(), tiny_graphs.detector(), FEEDS) is None
    assert groups[:2] == [2, 2]
    assert set(groups[2:]) == {1}
    assert sum(groups) == 2 * 9


def test_models_are_read_from_paths_with_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny_graphs.detector(), path, save_as_external_data=True, location="w", size_threshold=0)
    assert first_diverging(path, path, FEEDS) is None


def test_the_given_models_stay_as_they_are() -> None:
    model = tiny_graphs.detector()
    before = model.SerializeToString()
    first_diverging(model, model, FEEDS)
    assert model.SerializeToString() == before


def test_a_graph_that_does_not_run_is_a_backend_error() -> None:
    broken = tiny_graphs.detector()
    tiny_graphs.set_weight(broken, "mix", np.ones((3, 3), np.float32))
    with pytest.raises(BackendError, match="cannot run the candidate"):
        first_diverging(tiny_graphs.detector(), broken, FEEDS)
