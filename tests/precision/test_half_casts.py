"""Where casts stand, what is converted and what is not, read from the written file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from half_graphs import named
from vitesse.errors import ModelError
from vitesse.precision.half_casts import HalfGraph, rounded_constant
from vitesse.profile.modules import modules_of
from vitesse.scopes import MODULE_SCOPES, scopes_note

FLOAT, F16, BF16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
EYE = np.eye(8, dtype=np.float32)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    return {entry.name: entry.type.tensor_type.elem_type for entry in (*known.value_info, *known.output)} | {
        one.name: one.data_type for one in known.initializer
    }


def _written(body: str, islands: tuple[str, ...] = (), number: str = "fp16", **constants: object):
    written = HalfGraph(named(graph(body, **constants)), number).written(islands)
    onnx.checker.check_model(written, full_check=True)
    return written


def test_one_cast_serves_all_readers_of_the_other_type():
    body = "t = MatMul(x, w) a = Tanh(t) b = Sigmoid(t) c = Sin(t) s = Add(a, b) y = Add(s, c)"
    model = _written(body, ("a", "b"), w=EYE)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert sorted(node.input[0] for node in casts) == ["a", "b", "t", "x", "y_fp16"]
    kinds = _types(model)
    assert [kinds[name] for name in ("t", "a", "b", "c", "s", "y")] == [F16, FLOAT, FLOAT, F16, F16, FLOAT]


def test_no_cast_stands_between_nodes_of_one_island():
    model = _written(
        "t = MatMul(x, w) a = Pow(t, two) b = Sqrt(a) y = MatMul(b, w)", ("a", "b"), w=EYE, two=2.0
    )
    assert ops(model)["Cast"] == 4  # input, into the island, out of it, output
    assert next(node for node in model.graph.node if node.name == "b").input[0] == "a"


def test_a_constant_that_islands_share_keeps_its_float32_value_for_them():
    value = np.float32(0.1)
    model = _written("t = Mul(x, c) y = Mul(t, c)", ("y",), c=value)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    assert stored["c"] == value and stored["c"].dtype == np.float32
    assert stored["c_fp16"] == np.float16(0.1) and stored["c_fp16"].dtype == np.float16


def test_masks_are_clamped_to_the_lowest_number():
    array = np.array([-np.inf, np.finfo(np.float32).min, -1e9, 1e9, 65519, 0.1, 1e-9], np.float32)
    half = rounded_constant(array, HalfGraph(graph("y = Neg(x)"))._half)
    np.testing.assert_array_equal(half, np.array([-65504, -65504, -65504, 65504, 65504, 0.1, 0], np.float16))


def test_bf16_is_rounded_from_float32_and_not_through_fp16():
    model = _written("y = Mul(x, c)", number="bf16", c=np.float32(1e30))
    (stored,) = model.graph.initializer
    assert stored.data_type == BF16
    assert abs(float(onnx.numpy_helper.to_array(stored).item()) / 1e30 - 1) < 2**-8


def test_scales_of_resize_and_indices_of_topk_keep_their_types():
    body = """
        big = Resize<mode = "linear">(x, roi, scales)
        values, places = TopK(big, k)
        y = Mul(values, values)
    """
    x = "float[1,1,4,8] x"
    constants = {
        "roi": np.array([], np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "k": np.array([3]),
    }
    model = HalfGraph(named(graph(body, x, "float[1,1,8,3] y, int64[1,1,8,3] places", **constants))).written()
    kinds = _types(model)
    assert (kinds["big"], kinds["values"], kinds["places"], kinds["scales"]) == (F16, F16, 7, FLOAT)
    x = normal(1, 1, 4, 8)
    assert run(model, {"x": x})[0].shape == (1, 1, 8, 3)


def test_the_accumulator_of_layernorm_stays_float32():
    body = "n, mean, deviation = LayerNormalization(x, s, b) m = Mul(mean, mean) y = Add(n, m)"
    constants = {"s": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    for number in ("fp16", "bf16"):
        kinds = _types(_written(body, number=number, **constants))
        assert kinds["mean"] == FLOAT and kinds["n"] != FLOAT


def test_casts_and_constants_that_make_floats_make_half():
    body = """
        s = Shape(x) counted = Cast<to = 1>(s) zeros = ConstantOfShape<value = float[1] {3}>(s)
        total = ReduceSum<keepdims = 0>(counted) a = Add(x, zeros) y = Mul(a, total)
    """
    kinds = _types(_written(body))
    assert kinds["counted"] == kinds["zeros"] == kinds["total"] == F16


def test_a_subgraph_stays_float32_and_reads_what_it_captures_in_float32():
    body = """
        t = MatMul(x, w)
        flag = Constant<value = bool[1] {1}>()
        c = If (flag) <then_branch = yes () => (float[N,5,8] p) { p = Neg(t) },
                       else_branch = no () => (float[N,5,8] q) { q = Tanh(t) }>
        y = MatMul(c, w)
    """
    source = named(graph(body, w=EYE))
    model = HalfGraph(source).written()
    onnx.checker.check_model(model, full_check=True)
    x = normal(1, 5, 8)
    np.testing.assert_allclose(run(model, {"x": x})[0], -x, rtol=2e-3, atol=1e-4)


def test_writing_leaves_the_graph_as_it_was():
    source = HalfGraph(named(graph("t = MatMul(x, w) y = Tanh(t)", w=EYE)))
    before = source.float_model.SerializeToString()
    first = source.written(("t",)).SerializeToString()
    source.written(())
    assert source.written(("t",)).SerializeToString() == first
    assert source.float_model.SerializeToString() == before


def test_every_node_an_island_gives_the_float32_graph_back():
    source = named(graph("t = MatMul(x, w) y = Tanh(t)", w=normal(8, 8, seed=1)))
    graph_ = HalfGraph(source)
    written = graph_.written(graph_.convertible)
    assert ops(written)["Cast"] == 0
    x = normal(2, 5, 8, seed=2)
    np.testing.assert_array_equal(run(written, {"x": x})[0], run(source, {"x": x})[0])


def test_inserted_casts_belong_to_the_module_of_the_node_they_stand_behind():
    source = named(graph("t = MatMul(x, w) y = Tanh(t)", w=EYE))
    for node in source.graph.node:
        node.metadata_props.add(key=MODULE_SCOPES, value=scopes_note(("encoder", "layers.0"), node.name))
    model = HalfGraph(source).written(("y",))
    places = modules_of(model).places
    paths = {node.name: place.path for node, place in zip(model.graph.node, places, strict=True)}
    assert paths["t_to_fp32"] == ("encoder", "layers.0") == paths["x_to_fp16"]


def test_nodes_without_a_name_of_their_own_get_one():
    model = graph("t = Neg(x) y = Neg(t)")
    model.graph.node[0].name = model.graph.node[1].name = "same"
    assert len(set(HalfGraph(model).convertible)) == 2


def test_local_functions_are_refused_in_words():
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N] x) => (float[N] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 17]> f (a) => (b) { b = Mul(a, a) }"""
    with pytest.raises(ModelError, match="local functions"):
        HalfGraph(onnx.parser.parse_model(text))
