"""Attention becomes a step that reads heads where a layer wrote them; what it cannot do stays, and is noted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import given, keywords, kinds, only, rewritten, static
from fusing import graph, normal
from vitesse.backends.torch_cuda.rewrite.attention import attention
from vitesse.backends.torch_cuda.rewrite.reasons import Notes
from vitesse.backends.torch_cuda.rewrite.views import views

QKV = {"q": normal(2, 5, 8), "k": normal(2, 7, 8, seed=1), "v": normal(2, 7, 12, seed=2)}
INPUTS, OUT = "float[N,5,8] q, float[N,7,8] k, float[N,7,12] v", "float[N,5,12] y"
NODE = "Attention <q_num_heads = 2, kv_num_heads = 2>"
HEADS = {
    "h5": np.array([0, 5, 2, 4]),
    "h7": np.array([0, 7, 2, 4]),
    "v7": np.array([0, 7, 2, 6]),
    "out": np.array([0, 5, 12]),
}
SPLIT = (
    "q4 = Reshape(q, h5) qh = Transpose <perm = [0, 2, 1, 3]> (q4)"
    " k4 = Reshape(k, h7) kh = Transpose <perm = [0, 2, 1, 3]> (k4) kt = Transpose <perm = [0, 2, 3, 1]> (k4)"
    " v4 = Reshape(v, v7) vh = Transpose <perm = [0, 2, 1, 3]> (v4) "
)
JOIN = " t = Transpose <perm = [0, 2, 1, 3]> (h) y = Reshape(t, out)"


def of(body: str, outputs: str = OUT, inputs: str = INPUTS, **constants: np.ndarray) -> onnx.ModelProto:
    return graph(body, inputs, outputs, opset=23, check=False, **{**HEADS, **constants})


def why_not(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[str, ...]:
    notes = Notes()
    rewritten(model, feeds, lambda made: attention(made, notes))
    return notes.lines()


def test_attention_on_three_axes_keeps_its_inputs() -> None:
    made = rewritten(of(f"y = {NODE} (q, k, v)"), QKV, attention)
    step = only(made, "Attention")
    assert kinds(made) == {":Attention": 1} and given(step) == ["q", "k", "v"]
    expected = {
        "heads": 2,
        "head_size": 4,
        "value_size": 6,
        "scale": 0.5,
        "q_offset": 0,
        "out_dtype": "float32",
    }
    assert expected.items() <= keywords(step).items()


def test_a_scale_of_its_own_is_kept() -> None:
    made = rewritten(
        of("y = Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.3> (q, k, v)"), QKV, attention
    )
    assert keywords(only(made, "Attention"))["scale"] == pytest.approx(0.3)


def test_heads_are_read_where_they_lie_and_written_side_by_side() -> None:
    made = rewritten(of(f"{SPLIT} h = Attention (qh, kh, vh) {JOIN}"), QKV, attention)
    assert kinds(made) == {":Attention": 1} and given(only(made, "Attention")) == ["q", "k", "v"]


@pytest.mark.parametrize(
    "scores",
    [
        "p = MatMul(qh, kt) s = Mul(p, c)",
        "p = MatMul(qh, kt) s = Div(p, d)",
        "a = Mul(qh, c) s = MatMul(a, kt)",
        "a = Mul(qh, r) b = Mul(kt, r) s = MatMul(a, b)",
    ],
)
def test_products_and_a_softmax_are_attention_wherever_the_scale_stands(scores: str) -> None:
    scales = {"c": np.float32(0.25), "d": np.float32(4), "r": np.float32(0.5)}
    model = of(f"{SPLIT} {scores} w = Softmax <axis = -1> (s) h = MatMul(w, vh) {JOIN}", **scales)
    made = rewritten(model, QKV, attention)
    assert kinds(made) == {":Attention": 1}
    assert keywords(only(made, "Attention"))["scale"] == pytest.approx(0.25)


def test_a_mask_behind_the_scale_is_the_steps_mask() -> None:
    mask = np.where(normal(1, 1, 5, 7, seed=5) > 1, np.float32(-1e4), np.float32(0))
    body = (
        f"{SPLIT} p = MatMul(qh, kt) s = Mul(p, c) m = Add(s, mask) w = Softmax(m) h = MatMul(w, vh) {JOIN}"
    )
    made = rewritten(of(body, c=np.float32(0.5), mask=mask), QKV, attention)
    assert kinds(made) == {":Attention": 1} and given(only(made, "Attention"))[3] == "mask"


def test_a_mask_in_front_of_the_scale_is_no_attention() -> None:
    mask = normal(1, 1, 5, 7, seed=5)
    body = (
        f"{SPLIT} p = MatMul(qh, kt) m = Add(p, mask) s = Mul(m, c) w = Softmax(s) h = MatMul(w, vh) {JOIN}"
    )
    assert ":Attention" not in kinds(rewritten(of(body, c=np.float32(0.5), mask=mask), QKV, attention))


@pytest.mark.parametrize("kind", [np.float32, np.bool_])
def test_a_computed_mask_is_read_by_the_step(kind: type) -> None:
    drawn = normal(2, 1, 5, 7, seed=6)
    feeds = {**QKV, "m": drawn if kind is np.float32 else drawn > -0.5}
    name = "float" if kind is np.float32 else "bool"
    made = rewritten(of(f"y = {NODE} (q, k, v, m)", inputs=f"{INPUTS}, {name}[N,1,5,7] m"), feeds, attention)
    assert given(only(made, "Attention"))[3] == "m"


@pytest.mark.parametrize("mask", [np.zeros((5, 7), np.float32), np.ones((2, 1, 5, 7), np.bool_)])
def test_a_mask_that_hides_nothing_goes(mask: np.ndarray) -> None:
    made = rewritten(of(f"y = {NODE} (q, k, v, mask)", mask=mask), QKV, attention)
    assert len(given(only(made, "Attention"))) == 3


PACKED = {
    "split in three": "q, k, v = Split <axis = 2, num_outputs = 3> (x)",
    "sliced": "q = Slice(x, n0, n8, axis) k = Slice(x, n8, n16, axis) v = Slice(x, n16, n24, axis)",
}


@pytest.mark.parametrize("how", PACKED)
def test_a_packed_projection_is_read_by_offsets(how: str) -> None:
    ends = {f"n{at}": np.array([at]) for at in (0, 8, 16, 24)}
    model = of(
        f"{PACKED[how]} y = {NODE} (q, k, v)", "float[N,5,8] y", "float[N,5,24] x", axis=np.array([2]), **ends
    )
    made = rewritten(model, {"x": normal(2, 5, 24)}, attention)
    assert kinds(made) == {":Attention": 1} and given(only(made, "Attention")) == ["x"] * 3
    assert [keywords(only(made, "Attention"))[f"{name}_offset"] for name in "qkv"] == [0, 8, 16]


def test_a_projection_packed_in_five_axes_is_read_by_offsets() -> None:
    body = (
        "f = Reshape(x, five) g = Transpose <perm = [2, 0, 3, 1, 4]> (f) qh = Gather(g, i0) kh = Gather(g, i1)"
        f" vh = Gather(g, i2) h = Attention (qh, kh, vh) {JOIN}"
    )
    constants = {"five": np.array([0, 5, 3, 2, 4]), "out": np.array([0, 5, 8])}
    index = {f"i{at}": np.array(at) for at in range(3)}
    model = of(body, "float[N,5,8] y", "float[N,5,24] x", **constants, **index)
    for rules in ((attention,), (views, attention)):
        made = rewritten(model, {"x": normal(2, 5, 24)}, *rules)
        assert kinds(made) == {":Attention": 1}
        assert [keywords(only(made, "Attention"))[f"{name}_offset"] for name in "qkv"] == [0, 8, 16]


def test_heads_that_are_interleaved_are_copied_together() -> None:
    """Channel c of head h at c · heads + h is no run of channels; the step gets the heads side by side."""
    body = "q4 = Reshape(q, mixed) qh = Transpose <perm = [0, 3, 1, 2]> (q4) k4 = Reshape(k, h7) v4 = Reshape(v, v7)"
    body += " kh = Transpose <perm = [0, 2, 1, 3]> (k4) vh = Transpose <perm = [0, 2, 1, 3]> (v4)"
    made = rewritten(
        of(f"{body} h = Attention (qh, kh, vh) {JOIN}", mixed=np.array([0, 5, 4, 2])), QKV, attention
    )
    assert given(only(made, "Attention"))[1:] == ["k", "v"] and given(only(made, "Attention"))[0] != "q"


def test_heads_that_are_read_as_heads_are_unpacked_behind_the_step() -> None:
    model = of(f"{SPLIT} h = Attention (qh, kh, vh) y = Tanh(h)", "float[N,2,5,6] y")
    assert kinds(rewritten(model, QKV, attention))[":Attention"] == 1


def test_heads_that_are_an_output_keep_their_name() -> None:
    made = rewritten(of(f"{SPLIT} y = Attention (qh, kh, vh)", "float[N,2,5,6] y"), QKV, attention)
    assert [output.name for output in made.graph.outputs] == ["y"]


def test_queries_that_are_the_same_for_every_image_are_kept_once() -> None:
    model = of(
        f"y = {NODE} (c, k, v)", inputs="float[N,7,8] k, float[N,7,12] v", c=np.repeat(normal(1, 5, 8), 2, 0)
    )
    step = only(rewritten(model, {name: QKV[name] for name in "kv"}, attention), "Attention")
    assert list(step.inputs[0].shape or ()) == [1, 5, 8]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Attention <q_num_heads = 4, kv_num_heads = 2>", "attention: 4 heads of queries share 2 of keys"),
        (
            "Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1>",
            "attention: it is causal, or its scores are capped",
        ),
    ],
)
def test_other_attention_is_left_alone_and_noted(node: str, reason: str) -> None:
    feeds = {"q": normal(2, 5, 16), "k": normal(2, 5, 8, seed=1), "v": normal(2, 5, 8, seed=2)}
    if "causal" in node:
        feeds["q"] = feeds["q"][..., :8].copy()
    width = feeds["q"].shape[-1]
    inputs = f"float[N,5,{width}] q, float[N,5,8] k, float[N,5,8] v"
    model = of(f"y = {node} (q, k, v)", f"float[N,5,{width}] y", inputs)
    notes = Notes()
    made = static(model, feeds)
    assert attention(made, notes) == 0 and kinds(made) == {"Attention": 1}
    assert notes.lines() == (reason,)


def test_a_softmax_of_a_classifier_is_no_attention() -> None:
    model = of("y = Softmax(q)", "float[N,5,8] y", "float[N,5,8] q")
    assert kinds(rewritten(model, {"q": QKV["q"]}, attention)) == {"Softmax": 1}


def test_weights_that_are_read_elsewhere_are_computed() -> None:
    body = f"{SPLIT} s = MatMul(qh, kt) w = Softmax(s) h = MatMul(w, vh) {JOIN}"
    model = of(body, f"{OUT}, float[N,2,5,7] w")
    assert ":Attention" not in kinds(rewritten(model, QKV, attention))
