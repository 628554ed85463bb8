from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusing import graph, normal, ops, run
from vitesse.errors import ModelError
from vitesse.fusion import clean_model, folding
from vitesse.fusion.clean import STEPS

X = normal(3, 5, 8)


def same_outputs(before: onnx.ModelProto, after: onnx.ModelProto, **feeds: np.ndarray) -> bool:
    feeds = feeds or {"x": X}
    return all(np.array_equal(a, b) for a, b in zip(run(before, feeds), run(after, feeds), strict=True))


def test_every_step_is_counted_also_when_nothing_changes() -> None:
    fused = clean_model(graph("y = Relu(x)"))
    assert dict(fused.changes) == dict.fromkeys(STEPS, 0)
    assert ops(fused.model) == {"Relu": 1}


def test_a_position_encoding_is_folded_to_a_constant_that_keeps_its_name() -> None:
    body = "r = Range(zero, n, one) f = Unsqueeze(r, last) s = Sin(f) e = Mul(s, w) y = Add(x, e)"
    model = graph(body, zero=0.0, n=5.0, one=1.0, last=np.array([1]), w=normal(1, 8, seed=1))
    fused = clean_model(model)
    assert ops(fused.model) == {"Add": 1}
    assert [tensor.name for tensor in fused.model.graph.initializer] == ["e"]
    assert fused.changes["constant_folding"] == 4
    np.testing.assert_allclose(run(fused.model, {"x": X})[0], run(model, {"x": X})[0], atol=1e-6)


def test_a_constant_resize_and_split_are_folded_by_the_runtime() -> None:
    body = 'r = Resize<mode="linear">(p, , scales) a, b = Split<axis=1>(r) q = Sub(a, b) y = Add(x, q)'
    model = graph(
        body,
        "float[N,2,4,4] x",
        "float[N,2,4,4] y",
        p=normal(1, 4, 2, 2, seed=1),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    fused = clean_model(model)
    assert ops(fused.model) == {"Add": 1}
    assert same_outputs(model, fused.model, x=normal(2, 2, 4, 4))


def test_a_constant_layer_norm_is_folded_though_the_reference_gives_three_results() -> None:
    body = "n = LayerNormalization(p, scale, shift) y = Add(x, n)"
    constants = {"p": normal(1, 5, 8), "scale": normal(8, seed=1), "shift": normal(8, seed=2)}
    model = graph(body, **constants)
    fused = clean_model(model)
    assert ops(fused.model) == {"Add": 1}
    assert same_outputs(model, fused.model, x=normal(2, 5, 8, seed=3))


def test_folding_that_would_swell_the_file_is_left_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_GROWTH_BYTES", 1000)
    monkeypatch.setattr(folding, "_MODEST_RESULT", 100)
    model = graph(
        "e = Expand(c, s) y = Add(x, e)", "float[5000] x", "float[5000] y", c=normal(1), s=np.array([5000])
    )
    fused = clean_model(model)
    assert folding.weight_bytes(ir.from_proto(fused.model)) < 1000
    assert fused.reasons["constant_folding"] == ("folding everything would add 0 MB, 0 MB are allowed",)
    assert same_outputs(model, fused.model, x=normal(5000))


def test_shape_arithmetic_becomes_a_constant_and_the_batch_stays_dynamic() -> None:
    body = (
        "s = Shape(x) n = Gather(s, zero) t = Gather(s, one) u = Unsqueeze(n, axis) v = Unsqueeze(t, axis) "
        "z = Concat<axis=0>(u, v, two, four) r = Reshape(x, z) y = Transpose<perm=[0,2,1,3]>(r)"
    )
    indices = {"zero": np.array(0), "one": np.array(1), "axis": np.array([0])}
    model = graph(body, outputs="float[N,2,5,4] y", **indices, two=np.array([2]), four=np.array([4]))
    fused = clean_model(model)
    assert ops(fused.model) == {"Reshape": 1, "Transpose": 1}
    (target,) = (onnx.numpy_helper.to_array(t).tolist() for t in fused.model.graph.initializer)
    assert target == [-1, 5, 2, 4]
    assert fused.changes["shape_arithmetic"] >= 1
    assert same_outputs(model, fused.model, x=normal(3, 5, 8)) and same_outputs(
        model, fused.model, x=normal(1, 5, 8)
    )


def test_a_reshape_with_two_dynamic_dimensions_copies_one() -> None:
    body = (
        "s = Shape(x) n = Gather(s, zero) t = Gather(s, one) u = Unsqueeze(n, axis) v = Unsqueeze(t, axis) "
        "z = Concat<axis=0>(u, v, two, four) y = Reshape(x, z)"
    )
    indices = {"zero": np.array(0), "one": np.array(1), "axis": np.array([0])}
    model = graph(
        body, "float[N,T,8] x", "float[N,T,2,4] y", **indices, two=np.array([2]), four=np.array([4])
    )
    fused = clean_model(model)
    assert ops(fused.model) == {"Reshape": 1}
    for n, t in ((1, 1), (2, 7)):
        assert same_outputs(model, fused.model, x=normal(n, t, 8))


def test_a_reshape_whose_target_is_fed_stays() -> None:
    model = graph("y = Reshape(x, z)", "float[N,5,8] x, int64[3] z", "float[A,B,C] y")
    fused = clean_model(model)
    assert ops(fused.model) == {"Reshape": 1}
    assert fused.changes["shape_arithmetic"] == 0
    assert fused.reasons["shape_arithmetic"] == ("3 dimensions of the result are not static",)


def test_identities_dropouts_and_pairs_that_undo_each_other_go() -> None:
    body = (
        "a = Identity(x) b = Dropout(a) c = Transpose<perm=[0,2,1]>(b) d = Transpose<perm=[0,2,1]>(c) "
        "e = Cast<to=1>(d) f = Mul(e, one) y = Relu(f)"
    )
    model = graph(body, one=1.0)
    fused = clean_model(model)
    assert ops(fused.model) == {"Relu": 1}
    assert same_outputs(model, fused.model)


def test_a_cast_through_a_narrower_type_stays() -> None:
    model = graph("a = Cast<to=10>(x) y = Cast<to=1>(a)")
    assert ops(clean_model(model).model) == {"Cast": 2}


def test_dropout_in_training_mode_stays() -> None:
    model = graph("y = Dropout(x, ratio, training)", ratio=0.5, training=np.array(True))
    assert ops(clean_model(model).model) == {"Dropout": 1}


def test_two_outputs_that_are_the_same_tensor_keep_their_names() -> None:
    model = graph("y = Relu(x) z = Identity(y)", outputs="float[N,5,8] y, float[N,5,8] z")
    fused = clean_model(model)
    assert [value.name for value in fused.model.graph.output] == ["y", "z"]
    assert same_outputs(model, fused.model)


def test_equal_subgraphs_and_initialisers_are_merged_and_the_dead_removed() -> None:
    body = "a = Mul(x, k) b = Mul(x, l) c = Add(a, b) d = Exp(x) y = Relu(c)"
    model = graph(body, k=normal(8, seed=1), l=normal(8, seed=1), unused=normal(4))
    fused = clean_model(model)
    assert ops(fused.model) == {"Mul": 1, "Add": 1, "Relu": 1}
    expected = {
        "dead_nodes": 1,
        "duplicate_initializers": 1,
        "common_subexpressions": 1,
        "unused_initializers": 1,
    }
    assert {name: fused.changes[name] for name in expected} == expected
    assert same_outputs(model, fused.model)


def test_a_negative_index_becomes_positive_where_the_size_is_static() -> None:
    model = graph("y = Gather<axis=1>(x, i)", outputs="float[N,8] y", i=np.array(-1))
    fused = clean_model(model)
    assert fused.changes["gather_indices"] == 1
    assert [onnx.numpy_helper.to_array(t).item() for t in fused.model.graph.initializer] == [4]
    assert same_outputs(model, fused.model)


def test_a_negative_index_into_a_dynamic_axis_stays() -> None:
    model = graph("y = Gather<axis=0>(x, i)", outputs="float[5,8] y", i=np.array(-1))
    fused = clean_model(model)
    assert fused.changes["gather_indices"] == 0
    assert fused.reasons["gather_indices"] == ("a negative index into an axis whose size is not static",)


def test_an_initialiser_listed_as_input_is_fixed_and_the_real_inputs_stay() -> None:
    model = graph("y = Mul(x, k)", inputs="float[N,5,8] x, float[8] k", k=normal(8))
    fused = clean_model(model)
    assert fused.changes["default_inputs"] == 1
    assert [value.name for value in fused.model.graph.input] == ["x"]


def test_random_operators_are_not_folded() -> None:
    model = graph("r = RandomNormal<shape=[5,8]>() y = Add(x, r)")
    assert ops(clean_model(model).model) == {"RandomNormal": 1, "Add": 1}


def test_metadata_survives() -> None:
    model = graph("a = Identity(x) y = Relu(a)")
    model.metadata_props.add(key="vitesse", value="spec")
    kept = clean_model(model).model.metadata_props
    assert [(entry.key, entry.value) for entry in kept] == [("vitesse", "spec")]


def test_an_invalid_graph_is_refused_with_the_checkers_reason() -> None:
    model = graph("y = Relu(x)")
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"not a valid ONNX graph: .*NoSuchOperator"):
        clean_model(model)


@settings(max_examples=12, deadline=None)
@given(
    heads=st.integers(1, 4),
    width=st.integers(1, 4),
    tokens=st.integers(1, 4),
    batch=st.integers(1, 3),
    opset=st.sampled_from([13, 17, 21]),
)
def test_a_head_split_of_any_size_is_preserved(
    heads: int, width: int, tokens: int, batch: int, opset: int
) -> None:
    body = (
        "s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axis) z = Concat<axis=0>(u, t, h, w) "
        "r = Reshape(x, z) p = Transpose<perm=[0,2,1,3]>(r) q = Transpose<perm=[0,2,1,3]>(p) y = Reshape(q, back)"
    )
    size = f"[N,{tokens},{heads * width}]"
    model = graph(
        body,
        f"float{size} x",
        f"float{size} y",
        opset,
        zero=np.array(0),
        axis=np.array([0]),
        t=np.array([tokens]),
        h=np.array([heads]),
        w=np.array([width]),
        back=np.array([-1, tokens, heads * width]),
    )
    fused = clean_model(model)
    assert len(fused.model.graph.node) <= 1
    assert same_outputs(model, fused.model, x=normal(batch, tokens, heads * width))
