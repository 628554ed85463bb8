from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxscript.rewriter._matcher import SimplePatternMatcher

from fusing import graph, normal, ops, run
from vitesse.errors import NotVerified
from vitesse.fusion import FUSIONS, LAST_FUSIONS, contract, fuse_model
from vitesse.fusion.opset import opset_of, raise_opset
from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, apply, constant
from vitesse.fusion.shapes import infer_shapes

X = normal(2, 4, 8)


class _ReluTwice(FusionRule):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(op.Relu(x))

    def plan(self, *, x: ir.Value) -> ir.Value:
        if x.is_graph_input():
            raise LeftAlone("the input is fed")
        return x

    def build(self, op: Any, plan: ir.Value) -> Any:
        return op.Relu(plan)


def test_every_fusion_is_counted_also_when_it_never_applies() -> None:
    names = [fusion.name for fusion in (*FUSIONS, *LAST_FUSIONS)]
    assert dict(fuse_model(graph("y = Relu(x)")).changes) == dict.fromkeys(names, 0)


def test_a_fusion_counts_its_applications_and_gives_the_reason_of_the_rest() -> None:
    model = ir.from_proto(graph("a = Abs(x) b = Relu(a) c = Relu(b) d = Relu(x) e = Relu(d) y = Add(c, e)"))
    counts, reasons = apply(model, (Fusion("twice", (_ReluTwice.rule(),)),))
    assert (counts, reasons) == ({"twice": 1}, {"twice": ("the input is fed",)})


def test_looking_for_reasons_leaves_no_trace_in_the_graph() -> None:
    model = ir.from_proto(graph("a = Relu(x) y = Relu(a)"))
    apply(model, (Fusion("twice", (_ReluTwice.rule(),)),))
    assert [len(list(value.uses())) for value in model.graph.inputs] == [1]


class _SplitTwice(FusionRule):
    """A pattern that ends in two nodes: the matcher lists the whole graph for each node it is asked about."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(x), op.Abs(x)

    def plan(self, *, x: ir.Value) -> ir.Value:
        return x

    def build(self, op: Any, plan: ir.Value) -> Any:
        return op.Exp(plan), op.Neg(plan)


@pytest.mark.parametrize(
    ("rule", "body", "asked"),
    [
        (_ReluTwice, "a = Abs(x) b = Relu(a) c = Relu(b) d = Exp(c) y = Sin(d)", {"Relu"}),
        (_SplitTwice, "a = Abs(x) b = Relu(x) y = Add(a, b)", {"Relu"}),
        (_ReluTwice, "a = Abs(x) y = Sin(a)", set()),
    ],
    ids=["one root", "two roots", "none"],
)
def test_the_matcher_is_asked_about_the_operator_that_a_pattern_ends_in_only(
    rule: type[FusionRule], body: str, asked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    matches, nodes = SimplePatternMatcher.match, []

    def match(self: Any, model: Any, container: Any, node: ir.Node, **options: Any) -> Any:
        nodes.append(node.op_type)
        return matches(self, model, container, node, **options)

    monkeypatch.setattr(SimplePatternMatcher, "match", match)
    counts, _ = apply(ir.from_proto(graph(body)), (Fusion("one", (rule.rule(),)),))
    assert (set(nodes), counts["one"]) == (asked, len(asked))


def test_a_default_input_is_not_a_constant() -> None:
    model = ir.from_proto(graph("y = Mul(x, k)", inputs="float[N,5,8] x, float[8] k", k=normal(8)))
    assert constant(model.graph.initializers["k"]) is None


def test_a_bilinear_gridsample_is_renamed_when_the_opset_is_raised() -> None:
    body = 'y = GridSample<mode="bilinear", padding_mode="zeros">(x, g)'
    proto = graph(body, "float[1,2,4,4] x, float[1,3,3,2] g", "float[1,2,3,3] y", opset=17)
    model = ir.from_proto(proto)
    raise_opset(model, 20)
    raised = ir.to_proto(model)
    assert (
        onnx.helper.get_attribute_value(next(a for a in raised.graph.node[0].attribute if a.name == "mode"))
        == b"linear"
    )
    feeds = {"x": normal(1, 2, 4, 4), "g": np.clip(normal(1, 3, 3, 2, seed=1), -1, 1)}
    np.testing.assert_allclose(run(raised, feeds)[0], run(proto, feeds)[0], atol=1e-6)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_raising_the_opset_keeps_outputs_and_names(opset: int) -> None:
    body = "m = ReduceMean<axes=[-1]>(x) y = Sub(x, m)"
    proto = graph("y = Softmax<axis=-1>(x)" if opset >= 18 else body, opset=opset)
    model = ir.from_proto(proto)
    raise_opset(model, 23)
    assert opset_of(model) == 23
    feeds = {"x": normal(2, 5, 8)}
    np.testing.assert_array_equal(run(ir.to_proto(model), feeds)[0], run(proto, feeds)[0])


# onnx.checker calls this operator deprecated below opset 21, so these tests stay below `fuse_model`.
GROUP_NORM = "g = GroupNormalization<num_groups=2, epsilon=0.00001>(x, k, l) "
RMS = "q = Mul(g, g) v = ReduceMean(q, last) e = Add(v, eps) s = Sqrt(e) y = Div(g, s)"


def group_norm(channels: str) -> ir.Model:
    constants = {"k": normal(2, seed=1), "l": normal(2, seed=2), "last": np.array([-1]), "eps": 1e-5}
    size = f"float[N,{channels},8]"
    model = ir.from_proto(graph(GROUP_NORM + RMS, f"{size} x", f"{size} y", 18, check=False, **constants))
    infer_shapes(model)
    return model


def test_a_fusion_is_left_alone_when_an_operator_has_no_conversion_to_its_opset() -> None:
    model = group_norm("C")
    counts, reasons = apply(model, FUSIONS)
    assert (counts["rms_norm"], opset_of(model)) == (0, 18)
    assert reasons["rms_norm"][-1] == "needs opset 23: the model cannot be raised from opset 18 to 23"


def test_a_group_norm_with_static_channels_is_converted_from_groups_to_channels() -> None:
    model = group_norm("4")
    before = run(ir.to_proto(model), {"x": X})[0]
    assert (apply(model, FUSIONS)[0]["rms_norm"], opset_of(model)) == (1, 23)
    np.testing.assert_allclose(run(ir.to_proto(model), {"x": X})[0], before, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: setattr(m.graph.outputs[0], "name", "other"), "stage fuse changed the outputs"),
        (lambda m: setattr(m.graph.inputs[0], "dtype", ir.DataType.FLOAT16), "stage fuse changed the inputs"),
        (
            lambda m: setattr(m.graph.outputs[0], "shape", ir.Shape([1, 5, 9])),
            "stage fuse changed the outputs",
        ),
        (lambda m: m.metadata_props.clear(), "stage fuse changed the metadata"),
        (lambda m: setattr(m.graph[0], "op_type", "NoSuchOperator"), "onnx.checker refuses"),
    ],
)
def test_the_contract_catches_a_damaged_result(damage: Any, message: str) -> None:
    proto = graph("y = Relu(x)")
    proto.metadata_props.add(key="vitesse", value="spec")
    model = contract.load(proto)
    before = contract.signature_of(model)
    contract.verify(model, before, "fuse")
    damage(model)
    with pytest.raises(NotVerified, match=message):
        contract.verify(model, before, "fuse")


def test_what_is_not_fused_keeps_its_names() -> None:
    fused = fuse_model(graph("a = Relu(x) b = Exp(a) y = Abs(b)")).model
    assert [name for node in fused.graph.node for name in node.output] == ["a", "b", "y"]
    assert ops(fused) == {"Relu": 1, "Exp": 1, "Abs": 1}
