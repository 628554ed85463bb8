"""Convolutions become steps with what follows them, and compute the same; what does not fit stays outside."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, plain, rewritten, static
from fashion import DETR
from fusing import graph, normal, run
from vitesse.backends.torch_cuda.rewrite.conv import conv
from vitesse.fusion import clean_model, fuse_model

X = {"x": normal(2, 3, 9, 11)}
IN, OUT = "float[N,3,9,11] x", "float[N,M,H,W] y"
W, B, W1, V1 = (
    normal(4, 3, 3, 3, seed=1),
    normal(4, seed=2),
    normal(4, 3, 1, 1, seed=3),
    normal(4, 3, 1, 1, seed=4),
)
SAME = "Conv <pads = [1, 1, 1, 1]>"


def of(body: str, outputs: str = OUT, **constants: np.ndarray) -> onnx.ModelProto:
    return graph(body, IN, outputs, opset=18, check=False, **constants)


@pytest.mark.parametrize(
    ("geometry", "weight", "expected"),
    [
        ("", W, {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1}),
        ("<strides = [2, 2], pads = [1, 1, 1, 1]>", W, {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ("<strides = [1, 3], pads = [0, 1, 2, 3]>", W, {"strides": (1, 3), "pads": (0, 1, 2, 3)}),
        ("<dilations = [2, 3], pads = [2, 3, 2, 3]>", W, {"dilations": (2, 3)}),
        ("<group = 3>", normal(6, 1, 3, 3), {"group": 3}),
        ('<auto_pad = "VALID">', W, {"pads": (0, 0, 0, 0)}),
        ('<auto_pad = "SAME_UPPER", strides = [2, 2]>', normal(4, 3, 2, 4), {"pads": (0, 1, 1, 2)}),
        ('<auto_pad = "SAME_LOWER", strides = [2, 2]>', normal(4, 3, 2, 4), {"pads": (1, 2, 0, 1)}),
    ],
)
def test_a_convolution_keeps_its_geometry(
    geometry: str, weight: np.ndarray, expected: dict[str, object]
) -> None:
    made = rewritten(of(f"y = Conv {geometry} (x, w)", w=weight), X, conv)
    assert kinds(made) == {":Conv": 1}
    assert expected.items() <= keywords(only(made, "Conv")).items()


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("y = Relu(c)", "relu"),
        ("y = Sigmoid(c)", "sigmoid"),
        ("y = Gelu(c)", "gelu"),
        ('y = Gelu <approximate = "tanh"> (c)', "gelu_tanh"),
        ("s = Sigmoid(c) y = Mul(s, c)", "silu"),
    ],
)
def test_bias_and_activation_are_taken_in(activation: str, name: str) -> None:
    model = graph(f"c = {SAME} (x, w, b) {activation}", IN, OUT, opset=20, check=False, w=W, b=B)
    made = rewritten(model, X, conv)
    assert kinds(made) == {":Conv": 1}
    assert keywords(only(made, "Conv"))["activation"] == name
    assert given(only(made, "Conv"))[1:4] == ["w", None, "b"]


def test_a_residual_is_added_before_the_activation_as_resnets_have_it() -> None:
    made = rewritten(
        of("r = Tanh(x) c = Conv(r, w) a = Add(x, c) y = Relu(a)", w=normal(3, 3, 1, 1)), X, conv
    )
    step = only(made, "Conv")
    assert kinds(made) == {"Tanh": 1, ":Conv": 1}
    assert (keywords(step)["activation"], keywords(step)["residual_first"], given(step)[4]) == (
        "relu",
        1,
        "x",
    )


def test_a_residual_behind_the_activation_is_added_behind_it() -> None:
    made = rewritten(of("c = Conv(x, w) a = Relu(c) y = Add(a, x)", w=normal(3, 3, 1, 1)), X, conv)
    step = only(made, "Conv")
    assert kinds(made) == {":Conv": 1}
    assert (keywords(step)["activation"], keywords(step)["residual_first"]) == ("relu", 0)


def test_of_a_second_residual_or_activation_none_is_taken_in() -> None:
    body = "c = Conv(x, w) a = Relu(c) d = Add(a, x) e = Add(d, x) y = Relu(e)"
    made = rewritten(of(body, w=normal(3, 3, 1, 1)), X, conv)
    assert kinds(made) == {":Conv": 1, "Add": 1, "Relu": 1}


@pytest.mark.parametrize("order", ["Add(c, d)", "Add(d, c)"])
@pytest.mark.parametrize("first", ["shortcut", "main"])
def test_of_two_convolutions_the_one_without_a_stride_adds(order: str, first: str) -> None:
    main = "h = Conv <strides = [2, 2]> (x, w) c = Conv(h, v)"
    shortcut = "d = Conv <strides = [2, 2]> (x, s)"
    body = f"{shortcut} {main}" if first == "shortcut" else f"{main} {shortcut}"
    made = rewritten(of(f"{body} a = {order} y = Relu(a)", w=W1, v=normal(4, 4, 1, 1), s=V1), X, conv)
    assert kinds(made) == {":Conv": 3}
    adds = next(node for node in made.graph if len(node.inputs) == 5)
    assert given(adds)[1] == "v" and given(adds)[4] == "d"


def test_a_residual_that_is_computed_later_is_there_when_it_is_added() -> None:
    made = rewritten(
        of("c = Conv(x, w) r = Tanh(x) a = Add(c, r) y = Relu(a)", w=normal(3, 3, 1, 1)), X, conv
    )
    assert [node.op_type for node in made.graph] == ["Tanh", "Conv"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) y = Relu(c) z = Tanh(c)",  # read twice
        "z = Conv(x, w) y = Relu(z)",  # an output
    ],
)
def test_what_others_read_too_is_not_taken_in(body: str) -> None:
    made = rewritten(of(body, f"{OUT}, float[N,M,H,W] z", w=W), X, conv)
    assert kinds(made)["Relu"] == 1 and "activation" not in keywords(only(made, "Conv"))


def test_a_residual_of_another_shape_stays_an_add() -> None:
    made = rewritten(
        of("c = Conv(x, w) m = ReduceMean <keepdims = 1> (c) y = Add(m, r)", w=W, r=normal(4, 1, 1)), X, conv
    )
    assert kinds(made)["Add"] == 1
    made = rewritten(
        of("p = GlobalAveragePool(x) c = Conv(x, w) y = Add(c, p)", w=normal(3, 3, 1, 1)), X, conv
    )
    assert kinds(made) == {"GlobalAveragePool": 1, ":Conv": 1, "Add": 1}


def test_a_constant_per_channel_is_added_to_the_bias() -> None:
    made = rewritten(of("c = Conv(x, w, b) y = Add(t, c)", w=W, b=B, t=normal(1, 4, 1, 1, seed=9)), X, conv)
    assert kinds(made) == {":Conv": 1}
    made = rewritten(of("c = Conv(x, w, b) y = Add(t, c)", w=W, b=B, t=normal(4, 7, 9, seed=9)), X, conv)
    assert kinds(made) == {":Conv": 1, "Add": 1}


def test_batch_normalisation_goes_into_the_weights() -> None:
    body = "c = Conv(x, w, b) n = BatchNormalization <epsilon = 0.001> (c, g, b, m, v) y = Relu(n)"
    constants = {
        "w": W,
        "b": B,
        "g": normal(4, seed=5),
        "m": normal(4, seed=6),
        "v": np.square(normal(4, seed=7)),
    }
    made = rewritten(of(body, **constants), X, conv)
    assert kinds(made) == {":Conv": 1}
    in_training = static(of(body, **constants), X)
    norm = next(node for node in in_training.graph if node.op_type == "BatchNormalization")
    norm.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    conv(in_training)
    assert kinds(in_training)["BatchNormalization"] == 1


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = Conv(x, v)", "float[N,3,9,11] x, float[4,3,3,3] v"),
        ("y = Conv(x, w, v)", "float[N,3,9,11] x, float[4] v"),
    ],
)
def test_a_convolution_with_weights_that_are_fed_is_left_alone(body: str, inputs: str) -> None:
    feeds = {**X, "v": W if "[4,3" in inputs else B}
    made = rewritten(graph(body, inputs, OUT, opset=18, check=False, w=W), feeds, conv)
    assert kinds(made) == {"Conv": 1}


def test_a_convolution_over_one_axis_is_left_alone() -> None:
    feeds = {"x": normal(2, 3, 9)}
    model = graph("y = Conv(x, w)", "float[N,3,9] x", "float[N,4,7] y", opset=18, w=normal(4, 3, 3))
    assert conv(static(model, feeds)) == 0


def test_fp16_stays_fp16_and_is_rounded_once() -> None:
    half = {"x": X["x"].astype(np.float16)}
    model = graph(
        "c = Conv(x, w, b) a = Add(c, r) y = Relu(a)",
        "float16[N,3,9,11] x, float16[N,4,7,9] r",
        "float16[N,4,7,9] y",
        opset=18,
        w=W.astype(np.float16),
        b=B.astype(np.float16),
    )
    feeds = {**half, "r": normal(2, 4, 7, 9, seed=8).astype(np.float16)}
    made = rewritten(model, feeds, conv, atol=2e-3)
    assert keywords(only(made, "Conv"))["out_dtype"] == "float16"
    wide = graph(
        "c = Conv(x, w, b) a = Add(c, r) y = Relu(a)",
        "float[N,3,9,11] x, float[N,4,7,9] r",
        OUT,
        18,
        check=False,
        **{name: array.astype(np.float16).astype(np.float32) for name, array in (("w", W), ("b", B))},
    )
    (exact,) = run(wide, {name: array.astype(np.float32) for name, array in feeds.items()})
    (found,) = plain(made, feeds)
    np.testing.assert_array_equal(found, exact.astype(np.float16))


def rounded_image(
    body: str, kind: str = "float", channels: int = 3
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    image = normal(2, channels, 9, 11, seed=8).astype("float32" if kind == "float" else "float16")
    weight = normal(4, channels, 3, 3, seed=1).astype(np.float16)
    model = graph(
        f"h = Cast <to = 10> (x) {body}",
        f"{kind}[N,{channels},9,11] x",
        "float16[N,4,7,9] y",
        18,
        check=False,
        w=weight,
    )
    return model, {"x": image}


def test_the_first_convolution_reads_the_image_in_float32() -> None:
    model, feeds = rounded_image("c = Conv(h, w) y = Relu(c)")
    made = rewritten(model, feeds, conv, atol=2e-3)
    assert kinds(made) == {":Conv": 1}
    assert given(only(made, "Conv"))[0] == "x"
    # To the bit as with the Cast: the image is rounded, and not the products.
    wide = {"x": feeds["x"].astype(np.float16).astype(np.float32)}
    np.testing.assert_array_equal(plain(made, feeds)[0], plain(made, wide)[0])


def test_what_is_no_image_is_cast_before() -> None:
    model, feeds = rounded_image("c = Conv(h, w) y = Relu(c)", channels=8)
    assert kinds(rewritten(model, feeds, conv, atol=2e-3)) == {"Cast": 1, ":Conv": 1}
    model, feeds = rounded_image("t = Tanh(h) c = Conv(t, w) y = Relu(c)")
    assert kinds(rewritten(model, feeds, conv, atol=2e-3)) == {"Cast": 1, "Tanh": 1, ":Conv": 1}


def test_the_backbone_of_a_detr_is_steps_with_every_relu_and_residual_inside() -> None:
    model = fuse_model(clean_model(onnx.load(DETR)).model).model
    feeds = {
        "images": normal(
            1, 3, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[2:])
        )
    }
    made = rewritten(model, feeds, conv, atol=2e-5)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    steps = [node for node in made.graph if node.op_type == "Conv"]
    assert kinds(made)[":Conv"] == convolutions == 30 and kinds(made)["Conv"] == 0
    # The stem, two for each of eight blocks and their ends; neither the four shortcuts nor the projection.
    assert sum(keywords(step).get("activation") == "relu" for step in steps) == 25
    assert sum(len(step.inputs) == 5 for step in steps) == 8
    assert kinds(made)["MaxPool"] == 1
    weights = {tensor.name: numpy_helper.to_array(tensor).ndim for tensor in model.graph.initializer}
    images = {
        node.output[0] for node in model.graph.node if any(weights.get(name) == 4 for name in node.input)
    }
    left = [node for node in made.graph if node.op_type in ("Relu", "Add") and node.inputs[0].name in images]
    assert not left
