"""A ViT's patches, tokens and positions become one step in every form exporters write; what does not fit stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, rewritten
from fashion import VIT
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.conv import conv
from vitesse.backends.torch_cuda.rewrite.patches import patches
from vitesse.fusion import clean_model, fuse_model

# Two images of 4 x 6, in patches of 2: 2 x 3 patches of 5 channels.
X = {"x": normal(2, 3, 4, 6)}
W, B = normal(5, 3, 2, 2, seed=1), normal(5, seed=2)
CUT = "Conv <strides = [2, 2]>"
FLAT = f"c = {CUT} (x, w, b) f = Reshape(c, flat) t = Transpose <perm = [0, 2, 1]> (f)"
TURNED = f"c = {CUT} (x, w, b) f = Transpose <perm = [0, 2, 3, 1]> (c) t = Reshape(f, rows)"
SHAPES = {"flat": np.array([0, 5, -1]), "rows": np.array([0, -1, 5])}
TOKEN, REGISTERS = normal(1, 1, 5, seed=3), normal(1, 4, 5, seed=4)
EXPANDED = "s = Shape <start = 0, end = 1> (x) e = Concat <axis = 0> (s, ones, ones) k = Expand(token, e) "
FORMS = {
    "no token, no positions": (FLAT + " y = Identity(t)", {}, 0),
    "positions for the patches": (FLAT + " y = Add(t, p)", {"p": normal(1, 6, 5)}, 0),
    "positions without a batch axis": (FLAT + " y = Add(p, t)", {"p": normal(6, 5)}, 0),
    "channels last": (TURNED + " y = Add(t, p)", {"p": normal(1, 6, 5)}, 0),
    "without bias": (FLAT.replace(", b)", ")") + " y = Add(t, p)", {"p": normal(1, 6, 5)}, 0),
    "Pad and the token among the positions": (
        FLAT + " z = Pad(t, pads) y = Add(z, p)",
        {"pads": np.array([0, 1, 0, 0, 0, 0]), "p": normal(1, 7, 5)},
        1,
    ),
    "Concat, then positions for all": (
        FLAT + EXPANDED + " z = Concat <axis = 1> (k, t) y = Add(z, p)",
        {"token": TOKEN, "ones": np.array([1]), "p": normal(1, 7, 5)},
        1,
    ),
    "two tokens, as in DeiT": (
        FLAT + " z = Concat <axis = -2> (k, k2, t) y = Add(z, p)",
        {"k": np.tile(TOKEN, (2, 1, 1)), "k2": np.tile(TOKEN + 1, (2, 1, 1)), "p": normal(1, 8, 5)},
        2,
    ),
    "positions, then a token with its own and four registers": (
        FLAT + " a = Add(t, p) y = Concat <axis = 1> (k, r, a)",
        {"k": np.tile(TOKEN, (2, 1, 1)), "r": np.tile(REGISTERS, (2, 1, 1)), "p": normal(1, 6, 5)},
        5,
    ),
    "two sums": (FLAT + " a = Add(t, p) y = Add(a, q)", {"p": normal(1, 6, 5), "q": normal(5, seed=8)}, 0),
}


def of(
    body: str, outputs: str = "float[N,T,5] y", inputs: str = "float[N,3,4,6] x", **constants: np.ndarray
) -> onnx.ModelProto:
    used = {name: array for name, array in {"w": W, "b": B, **SHAPES, **constants}.items() if name in body}
    return graph(body, inputs, outputs, opset=18, check=False, **used)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_embedding_becomes_one_step(form: str) -> None:
    body, constants, tokens = FORMS[form]
    made = rewritten(of(body, **constants), X, patches)
    step = only(made, "Patches")
    assert kinds(made) == {":Patches": 1}
    assert keywords(step) == {"patch": 2, "out_dtype": "float32"}
    assert [list(value.shape or ()) for value in step.inputs[2:] if value] == [[tokens, 5], [6, 5]]


def test_the_cast_of_the_image_is_left_to_the_step() -> None:
    half = {name: array.astype(np.float16) for name, array in (("w", W), ("b", B), ("p", normal(1, 6, 5)))}
    body = "h = Cast <to = 10> (x) " + FLAT.replace("(x,", "(h,") + " y = Add(t, p)"
    made = rewritten(of(body, "float16[N,6,5] y", **half), X, patches, atol=2e-3)
    assert kinds(made) == {":Patches": 1}
    assert (
        given(only(made, "Patches"))[0] == "x" and keywords(only(made, "Patches"))["out_dtype"] == "float16"
    )
    others = "float16[N,6,5] y, float16[N,3,4,6] z"
    made = rewritten(of(body + " z = Relu(h)", others, **half), X, patches, atol=2e-3)
    assert kinds(made) == {":Patches": 1, "Cast": 1, "Relu": 1}


@pytest.mark.parametrize(
    "cut",
    [
        "Conv <strides = [1, 1]>",  # patches overlap
        "Conv <strides = [2, 1]>",
        "Conv <strides = [2, 2], pads = [0, 1, 0, 1]>",
        "Conv <strides = [2, 2], dilations = [3, 1]>",
    ],
)
def test_a_convolution_that_does_not_cut_patches_is_left_alone(cut: str) -> None:
    body = FLAT.replace(CUT, cut) + " y = Identity(t)"
    assert kinds(rewritten(of(body), X, patches))["Conv"] == 1


def test_a_projection_of_size_1_is_no_patch_embedding() -> None:
    body = FLAT.replace(CUT, "Conv") + " y = Identity(t)"
    assert kinds(rewritten(of(body, w=normal(5, 3, 1, 1)), X, patches, conv)) == {
        ":Conv": 1,
        "Reshape": 1,
        "Transpose": 1,
    }


def test_an_image_with_a_rest_beside_its_patches_is_left_alone() -> None:
    feeds = {"x": normal(2, 3, 5, 6)}
    model = of(FLAT + " y = Identity(t)", inputs="float[N,3,5,6] x")
    assert kinds(rewritten(model, feeds, patches))["Conv"] == 1


@pytest.mark.parametrize("read", ["c", "f"])
def test_patches_that_are_also_read_as_an_image_are_left_alone(read: str) -> None:
    model = of(FLAT + f" y = Identity(t) z = Relu({read})", "float[N,T,5] y, float z")
    assert kinds(rewritten(model, X, patches))["Conv"] == 1


def test_tokens_behind_the_patches_stay_outside() -> None:
    body = FLAT + " a = Add(t, p) y = Concat <axis = 1> (a, k)"
    made = rewritten(of(body, p=normal(1, 6, 5), k=np.tile(TOKEN, (2, 1, 1))), X, patches)
    assert kinds(made) == {":Patches": 1, "Concat": 1}


def test_tokens_and_positions_that_differ_between_images_stay_outside() -> None:
    made = rewritten(of(FLAT + " y = Concat <axis = 1> (k, t)", k=normal(2, 1, 5)), X, patches)
    assert kinds(made) == {":Patches": 1, "Concat": 1}
    made = rewritten(of(FLAT + " y = Add(t, p)", p=normal(2, 6, 5)), X, patches)
    assert kinds(made) == {":Patches": 1, "Add": 1}


def test_a_sum_that_is_also_read_elsewhere_ends_the_step() -> None:
    body = FLAT + " a = Add(t, p) y = Add(a, q) z = Relu(a)"
    made = rewritten(of(body, "float[N,6,5] y, float[N,6,5] z", p=normal(1, 6, 5), q=normal(5)), X, patches)
    assert kinds(made) == {":Patches": 1, "Add": 1, "Relu": 1}


@pytest.mark.parametrize(
    "pads", [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [0, -1, 0, 0, 0, 0]]
)
def test_another_pad_than_in_front_stays_outside(pads: list[int]) -> None:
    model = of(FLAT + " y = Pad(t, pads)", "float[N,T,D] y", pads=np.array(pads))
    assert kinds(rewritten(model, X, patches)) == {":Patches": 1, "Pad": 1}


def test_a_pad_with_another_number_than_zero_stays_outside() -> None:
    pads = np.array([0, 1, 0, 0, 0, 0])
    model = of(FLAT + " y = Pad(t, pads, one)", pads=pads, one=np.array(1, np.float32))
    assert kinds(rewritten(model, X, patches)) == {":Patches": 1, "Pad": 1}


def test_the_embedding_of_a_vit_becomes_one_step() -> None:
    model = fuse_model(clean_model(onnx.load(VIT)).model).model
    made = rewritten(model, {"images": normal(2, 3, 56, 56)}, patches, atol=1e-5)
    step = only(made, "Patches")
    assert made.graph[0] is step and not kinds(made) & {"Conv": 1, "Concat": 1, "Expand": 1}.keys()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert step.inputs[2] is not None and step.inputs[2].const_value is not None
    expected = weights["cls"][0].astype(np.float64) + weights["position"][0, :1]
    np.testing.assert_allclose(step.inputs[2].const_value.numpy(), expected, rtol=1e-6)
