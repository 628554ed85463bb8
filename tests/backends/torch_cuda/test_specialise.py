"""A graph for one set of input shapes: static, folded, and with the numbers of the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from fashion import DETR, VIT  # noqa: E402
from fusing import graph, normal, ops, run  # noqa: E402
from vitesse.backends.torch_cuda.specialise import specialise  # noqa: E402
from vitesse.errors import DataError, ModelError  # noqa: E402

X = normal(2, 5, 8)
E4M3 = ml_dtypes.float8_e4m3fn


def static(model: onnx.ModelProto, *shape: int, name: str = "x") -> onnx.ModelProto:
    """Specialised and checked: every value has a static shape and a type, and onnx.checker accepts the graph."""
    made = specialise(model, {name: shape or X.shape})
    assert [value.name for value in made.graph.outputs] == [one.name for one in model.graph.output]
    for value in (*made.graph.outputs, *(value for node in made.graph for value in node.outputs)):
        assert value.shape is not None and value.shape.is_static(), value.name
        assert value.dtype is not None, value.name
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def same_numbers(model: onnx.ModelProto, made: onnx.ModelProto, feed: np.ndarray[Any, Any] = X) -> bool:
    """Whether ONNX Runtime computes the same from both, to float32 rounding."""
    pairs = zip(run(model, {"x": feed}), run(made, {"x": feed}), strict=True)
    return all(one.shape == other.shape and np.allclose(one, other, 1e-5, 1e-6) for one, other in pairs)


@pytest.mark.parametrize(("path", "side"), [(VIT, 56), (DETR, 256)], ids=["vit", "detr"])
def test_a_model_keeps_its_numbers_and_loses_what_computed_shapes(path: Path, side: int) -> None:
    model = onnx.load(path)
    made = static(model, 2, 3, side, side, name="images")
    assert not ops(made).keys() & {
        "Shape",
        "Expand",
        "Range",
        "Cos",
        "Constant",
        "Identity",
        "Split",
        "Slice",
        "Cast",
    }
    feed = {"images": normal(2, 3, side, side)}
    for one, other in zip(run(model, feed), run(made, feed), strict=True):
        assert np.allclose(one, other, 1e-4, 1e-5)


def test_the_first_self_attention_of_a_decoder_is_a_constant() -> None:
    # Its queries are zeros and learned positions, so that it is the same for every image.
    model = onnx.load(DETR)
    made = static(model, 1, 3, 256, 256, name="images")
    assert (ops(model)["Softmax"], ops(made)["Softmax"]) == (15, 14)


def test_names_metadata_and_signature_stay_and_the_original_is_left_alone() -> None:
    model = graph("t = Relu(x) y = Tanh(t)")
    model.graph.node[0].name = "/encoder/Relu"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'encoder', 'relu']")
    model.metadata_props.add(key="vitesse.spec", value="kept")
    before = model.SerializeToString(deterministic=True)
    made = static(model)
    assert model.SerializeToString(deterministic=True) == before
    assert [(one.name, one.output[0]) for one in made.graph.node] == [("/encoder/Relu", "t"), ("", "y")]
    assert made.graph.node[0].metadata_props[0].value == "['', 'encoder', 'relu']"
    assert made.metadata_props[0].value == "kept"
    assert [one.name for one in (*made.graph.input, *made.graph.output)] == ["x", "y"]


def test_a_model_in_memory_is_not_changed_either() -> None:
    model = ir.from_proto(graph("s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)"))
    specialise(model, {"x": (2, 5, 8)})
    assert [node.op_type for node in model.graph] == ["Shape", "ConstantOfShape", "Add"]
    assert str(model.graph.inputs[0].shape) == "[N,5,8]"


def test_what_follows_from_shapes_becomes_an_initialiser() -> None:
    model = graph(
        "s = Shape<start = 1, end = 2>(x) n = Squeeze(s) r = Range(zero, n, one) f = Cast<to = 1>(r)"
        "c = Cos(f) column = Unsqueeze(c, axis) y = Add(x, column)",
        zero=np.array(0),
        one=np.array(1),
        axis=np.array([1]),
    )
    made = static(model)
    assert ops(made) == {"Add": 1}
    assert {one.name for one in made.graph.initializer} == {"column"}
    assert same_numbers(model, made)


def test_casts_of_constants_fold_in_the_graphs_own_types() -> None:
    model = graph("h = Cast<to = 10>(w) b = Cast<to = 1>(h) y = Add(x, b)", w=normal(8) / np.float32(3))
    made = static(model)
    assert ops(made) == {"Add": 1}
    assert same_numbers(model, made)
    folded = onnx.numpy_helper.to_array(made.graph.initializer[0])
    assert not np.array_equal(folded, normal(8) / np.float32(3))  # it was rounded on the way
    assert np.array_equal(folded, (normal(8) / np.float32(3)).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    "node",
    [
        "t = Identity(x)",
        "t = Dropout(x)",
        "t = Cast<to = 1>(x)",
        "t = CastLike(x, w)",
        "t = Reshape(x, sizes)",
        "t = Expand(x, one)",
        "t = Tile(x, ones)",
        "t = Transpose<perm = [0, 1, 2]>(x)",
        "t = Concat<axis = 1>(x)",
    ],
)
def test_a_node_that_changes_nothing_goes(node: str) -> None:
    constants = {
        "sizes": np.array([0, -1, 8]),
        "one": np.array([1]),
        "ones": np.array([1, 1, 1]),
        "w": normal(8),
    }
    used = {name: array for name, array in constants.items() if f"{name})" in node}
    model = graph(f"a = Relu(x) {node.replace('(x', '(a')} y = Tanh(t)", **used)
    made = static(model)
    assert ops(made) == {"Relu": 1, "Tanh": 1}
    assert not made.graph.initializer
    assert same_numbers(model, made)


@pytest.mark.parametrize(
    "node",
    [
        "t = Transpose<perm = [0, 2, 1]>(x)",
        "t = Reshape(x, sizes)",
        "t = Cast<to = 10>(x)",
        "t = Slice(x, start, end, axis, step)",
        "t = Pad(x, rolled)",
    ],
)
def test_a_node_that_changes_something_stays(node: str) -> None:
    constants = {
        "sizes": np.array([0, 8, 5]),
        "start": np.array([-1]),
        "end": np.array([-(2**62)]),
        "axis": np.array([1]),
        "step": np.array([-1]),
        "rolled": np.array([0, 1, 0, 0, -1, 0]),
    }
    used = {name: array for name, array in constants.items() if f", {name}" in node}
    output = "float16[N,5,8] y" if "Cast" in node else "float[N,A,B] y"
    model = graph(f"{node} y = Relu(t)", outputs=output, **used)
    made = static(model)
    assert len(made.graph.node) == 2
    assert same_numbers(model, made)


def test_a_transpose_that_moves_only_axes_of_size_one_goes() -> None:
    model = graph("t = Transpose<perm = [1, 0, 2]>(x) y = Relu(t)", "float[N,M,8] x", "float[A,B,C] y")
    assert ops(static(model, 1, 1, 8)) == {"Relu": 1}
    assert ops(static(model, 2, 2, 8)) == {"Transpose": 1, "Relu": 1}


def test_an_output_behind_a_node_that_changes_nothing_keeps_its_name() -> None:
    model = graph("t = Relu(x) y = Identity(t)")
    made = static(model)
    assert [(node.op_type, node.output[0]) for node in made.graph.node] == [("Relu", "y")]
    two = graph("t = Relu(x) y = Identity(t) z = Identity(t)", outputs="float[N,5,8] y, float[N,5,8] z")
    assert same_numbers(two, static(two))
    straight = graph("y = Identity(x)")
    assert same_numbers(straight, static(straight))


def test_a_constant_that_is_the_same_for_every_image_has_a_batch_of_one() -> None:
    model = graph("s = Shape(x) p = Expand(w, s) y = Add(x, p)", w=normal(5, 8))
    made = static(model)
    assert [tuple(one.dims) for one in made.graph.initializer] == [(1, 5, 8)]
    assert same_numbers(model, made)


def test_a_constant_that_differs_by_image_keeps_its_batch() -> None:
    model = graph(
        "s = Shape(x) p = Expand(w, s) q = Mul(p, each) y = Add(x, q)",
        "float[2,5,8] x",
        "float[2,5,8] y",
        w=normal(5, 8),
        each=np.array([1, 2], np.float32).reshape(2, 1, 1),
    )
    made = static(model)
    assert [tuple(one.dims) for one in made.graph.initializer] == [(2, 5, 8)]
    assert same_numbers(model, made)


def test_a_constant_that_makes_the_batch_keeps_it() -> None:
    model = graph("s = Shape(x) p = Expand(w, s) m = ReduceMean<axes = [0]>(x) y = Add(m, p)", w=normal(5, 8))
    assert same_numbers(model, static(model))


QUANTISED = """
    q = QuantizeLinear(x, sx, zero) d = DequantizeLinear(q, sx, zero)
    v = DequantizeLinear<axis = 1>(w, sw) m = MatMul(d, v) b = DequantizeLinear(bias, sw) y = Add(m, b)
"""


@pytest.mark.parametrize("kind", [E4M3, np.int8])
def test_a_weight_of_eight_bits_stays_in_them_and_its_bias_folds(kind: Any) -> None:
    weight = (normal(8, 8) * 30).astype(kind)
    scales = np.abs(normal(8)) / np.float32(30)
    model = graph(
        QUANTISED.replace("DequantizeLinear(bias", "DequantizeLinear<axis = 0>(bias"),
        opset=23,
        check=False,
        sx=0.05,
        sw=scales,
        zero=np.zeros((), kind),
        w=weight,
        bias=np.arange(8, dtype=np.int32),
    )
    made = static(model)
    assert ops(made) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Add": 1}
    kept = {one.name: one for one in made.graph.initializer}
    assert kept["w"].data_type == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    assert kept["w"].raw_data == weight.tobytes()
    assert kept["b"].data_type == onnx.TensorProto.FLOAT
    assert same_numbers(model, made)


def test_a_float_weight_behind_quantisers_is_stored_in_eight_bits() -> None:
    model = graph(
        "q = QuantizeLinear(w, s, zero) v = DequantizeLinear(q, s, zero) y = MatMul(x, v)",
        opset=23,
        w=normal(8, 8),
        s=0.02,
        zero=np.zeros((), np.int8),
    )
    made = static(model)
    assert ops(made) == {"DequantizeLinear": 1, "MatMul": 1}
    assert {one.name: one.data_type for one in made.graph.initializer}["q"] == onnx.TensorProto.INT8
    assert same_numbers(model, made)


def test_what_only_constants_are_multiplied_with_folds_with_its_weight() -> None:
    model = graph(
        "v = DequantizeLinear(w, s, zero) p = MatMul(positions, v) y = Add(x, p)",
        opset=23,
        w=(normal(8, 8) * 30).astype(np.int8),
        s=0.02,
        zero=np.zeros((), np.int8),
        positions=normal(5, 8),
    )
    made = static(model)
    assert ops(made) == {"Add": 1}
    assert [one.name for one in made.graph.initializer] == ["p"]
    assert same_numbers(model, made)


def test_an_output_that_depends_on_no_input_becomes_a_constant() -> None:
    model = graph("y = Relu(x) c = Neg(k)", outputs="float[N,5,8] y, float[8] c", k=normal(8))
    made = specialise(model, {"x": (2, 5, 8)})
    assert [node.op_type for node in made.graph] == ["Relu"]
    constant = made.graph.outputs[1]
    assert constant.name == "c" and constant.const_value is not None
    assert np.array_equal(constant.const_value.numpy(), -normal(8))


def test_an_initialiser_that_is_listed_as_an_input_is_a_constant() -> None:
    model = graph("y = Mul(x, k)", "float[N,5,8] x, float[8] k", k=normal(8))
    assert same_numbers(model, static(model))


def test_nonzero_of_a_constant_folds_and_of_an_input_is_refused() -> None:
    body = "i = NonZero(k) f = Squeeze(i) y = Gather<axis = 2>(x, f)"
    folded = graph(body, outputs="float[N,5,M] y", k=np.array([1, 0, 1]))
    made = static(folded)
    assert ops(made) == {"Gather": 1}
    model = graph("i = NonZero(x) y = Cast<to = 1>(i)", outputs="float[R,M] y")
    with pytest.raises(ModelError) as error:
        specialise(model, {"x": (2, 5, 8)})
    assert str(error.value).startswith(
        "node 'i' (NonZero, opset 17): its result depends in shape on the values of 'x'"
    )


def test_a_size_that_the_network_computes_is_refused_with_its_name() -> None:
    body = "m = ReduceMax<keepdims = 0>(x) n = Cast<to = 7>(m) s = Unsqueeze(n, a) y = ConstantOfShape(s)"
    model = graph(body, outputs="float[M] y", a=np.array([0]))
    with pytest.raises(ModelError, match=r"node 'y' \(ConstantOfShape, opset 17\).* the values of 's'"):
        specialise(model, {"x": (2, 5, 8)})


@pytest.mark.parametrize(
    ("shapes", "what", "expected"),
    [
        ({}, "shapes for the inputs []", "a shape for each of ['x']"),
        ({"x": (2, 5, 8), "z": (1,)}, "shapes for the inputs ['x', 'z']", "a shape for each of ['x']"),
        ({"x": (2, 5)}, "shape [2, 5] for input 'x'", "[N,5,8]"),
        (
            {"x": (2, 5, 9)},
            "shape [2, 5, 9] for input 'x'",
            "[N,5,8] with a positive number for each free dimension",
        ),
        ({"x": (0, 5, 8)}, "shape [0, 5, 8] for input 'x'", "positive number"),
    ],
)
def test_shapes_that_the_graph_does_not_take_are_refused(shapes: Any, what: str, expected: str) -> None:
    with pytest.raises(DataError) as error:
        specialise(graph("y = Relu(x)"), shapes)
    assert str(error.value).startswith(what)
    assert expected in str(error.value).splitlines()[1]
