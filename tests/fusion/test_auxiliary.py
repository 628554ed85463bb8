"""Picks of one decoder layer move up to the stack, in text graphs; exported models are in test_auxiliary_exports."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from vitesse.errors import NotVerified
from vitesse.fusion import clean_model, contract

LAYERS, QUERIES, WIDTH, CLASSES = 3, 5, 8, 4
# Three layers, each the next power of a layer before it, so that no two are alike.
STACK = (
    "a = Tanh(x) b = Mul(a, a) c = Mul(b, a) "
    "a0 = Unsqueeze(a, axis) b0 = Unsqueeze(b, axis) c0 = Unsqueeze(c, axis) "
    "hs = Concat<axis={axis}>(a0, b0, c0) "
)
WEIGHTS = {"w": normal(WIDTH, CLASSES, seed=1), "bias": normal(CLASSES, seed=2)}
HEAD = "m = MatMul(hs, w) h = Add(m, bias) "
X = normal(2, QUERIES, WIDTH, seed=3)


def stacked(
    body: str,
    *,
    axis: int = 0,
    outputs: str = f"float[N,{QUERIES},{CLASSES}] y",
    opset: int = 18,
    **constants: object,
) -> onnx.ModelProto:
    """A model of STACK and `body`; every constant that the body does not name is left out."""
    text = STACK.format(axis=axis) + body
    every = {"axis": np.array([axis]), **WEIGHTS, **constants}
    used = {
        name: value
        for name, value in every.items()
        if name in text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return graph(text, f"float[N,{QUERIES},{WIDTH}] x", outputs, opset, **used)


def cleaned(model: onnx.ModelProto, keep: tuple[str, ...] | None = None) -> onnx.ModelProto:
    """The cleaned model, after seeing that it computes the same numbers to the bit."""
    after = clean_model(model, keep).model
    names = [value.name for value in after.graph.output]
    before = dict(zip((value.name for value in model.graph.output), run(model, {"x": X}), strict=True))
    for name, array in zip(names, run(after, {"x": X}), strict=True):
        np.testing.assert_array_equal(array, before[name])
    return after


@pytest.mark.parametrize("index", [0, 1, LAYERS - 1, -1])
def test_the_heads_run_on_the_one_layer_that_is_gathered(index: int) -> None:
    model = stacked(HEAD + "y = Gather<axis=0>(h, i)", i=np.array(index))
    fused = clean_model(model, ["y"])
    assert fused.changes["auxiliary_layers"] == 1
    assert fused.reasons.get("auxiliary_layers") is None
    after = cleaned(model, ("y",))
    assert not {"Gather", "Concat", "Unsqueeze", "Squeeze", "Identity"} & set(ops(after))
    assert ops(after)["MatMul"] == ops(after)["Add"] == 1
    assert ops(after)["Mul"] == (index % LAYERS)  # layers that nobody reads are not computed
    assert after.graph.output[0].name == "y"


PICKS = {
    "a slice and a squeeze": (
        "s = Slice(h, first, end, zero) y = Squeeze(s, zero)",
        {"first": np.array([2]), "end": np.array([2**62]), "zero": np.array([0])},
    ),
    "a slice from the end": (
        "s = Slice(h, first, end, zero) y = Squeeze(s, zero)",
        {"first": np.array([-1]), "end": np.array([2**62]), "zero": np.array([0])},
    ),
    "a split": ("p, q, r = Split<axis=0, num_outputs=3>(h) y = Squeeze(r, zero)", {"zero": np.array([0])}),
    "a gather that keeps the axis": (
        "s = Gather<axis=0>(h, i) y = Squeeze(s, zero)",
        {"i": np.array([2]), "zero": np.array([0])},
    ),
    "all but the first, then the last": (
        "s = Slice(h, first, end, zero) y = Gather<axis=0>(s, i)",
        {"first": np.array([1]), "end": np.array([3]), "zero": np.array([0]), "i": np.array(-1)},
    ),
}


@pytest.mark.parametrize("pick", PICKS)
def test_every_way_of_picking_one_layer_is_seen(pick: str) -> None:
    body, constants = PICKS[pick]
    after = cleaned(stacked(HEAD + body, **constants), ("y",))
    assert ops(after) == {"Tanh": 1, "Mul": 2, "MatMul": 1, "Add": 1}


def test_an_axis_of_length_one_that_is_read_further_is_put_back() -> None:
    model = stacked(
        HEAD + "y = Slice(h, first, end, zero)",
        outputs=f"float[1,N,{QUERIES},{CLASSES}] y",
        first=np.array([2]),
        end=np.array([3]),
        zero=np.array([0]),
    )
    assert ops(cleaned(model, ("y",))) == {"Tanh": 1, "Mul": 2, "MatMul": 1, "Add": 1, "Unsqueeze": 1}


BODIES = {
    "transposed": "t = Transpose<perm=[0,2,1,3]>(hs) m = MatMul(t, w) h = Transpose<perm=[0,2,1,3]>(m)",
    "on another axis": "t = Transpose<perm=[1,2,0,3]>(hs) u = Transpose<perm=[2,0,1,3]>(t) h = MatMul(u, w)",
    "normalised": "n = LayerNormalization<axis=-1>(hs, g) m = MatMul(n, w) h = Softmax<axis=-1>(m)",
    "flattened for Gemm": "f = Reshape(hs, flat) m = Gemm(f, w, bias) h = Reshape(m, back)",
    "flattened partly": "f = Reshape(hs, partly) m = MatMul(f, w) h = Reshape(m, back)",
    "split and joined": "m = MatMul(hs, w) p, q = Split<axis=-1, num_outputs=2>(m) h = Concat<axis=-1>(q, p)",
    "sliced behind": "m = MatMul(hs, w) p = Slice(m, zero, two, last) h = Concat<axis=-1>(p, p)",
    "reduced": "m = MatMul(hs, w) r = ReduceSum<keepdims=1>(hs, last) h = Mul(m, r)",
    "scaled per layer": "m = MatMul(hs, w) h = Mul(m, scales)",
    "another weight per layer": "h = MatMul(hs, weights)",
    "one operand without layers": "m = MatMul(hs, w) s = ReduceSum<keepdims=1>(x, last) h = Add(m, s)",
    "gathered on another axis": "m = MatMul(hs, w) h = Gather<axis=3>(m, order)",
    "with an axis more and less": "u = Unsqueeze(hs, two) v = Relu(u) s = Squeeze(v, two) h = MatMul(s, w)",
}  # fmt: skip
CONSTANTS = {
    "g": normal(WIDTH, seed=4),
    "flat": np.array([-1, WIDTH]),
    "partly": np.array([LAYERS, -1, WIDTH]),
    "back": np.array([LAYERS, -1, QUERIES, CLASSES]),
    "zero": np.array([0]),
    "two": np.array([2]),
    "four": np.array([4]),
    "last": np.array([3]),
    "order": np.array([3, 1, 0, 2]),
    "scales": normal(LAYERS, 1, 1, 1, seed=5),
    "weights": normal(LAYERS, 1, WIDTH, CLASSES, seed=6),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("index", [0, LAYERS - 1])
def test_the_pick_passes_what_treats_the_layers_apart(body: str, index: int) -> None:
    constants = dict(CONSTANTS)
    if body == "one operand without layers":
        constants["last"] = np.array([2])
    model = stacked(BODIES[body] + " y = Gather<axis=0>(h, i)", i=np.array(index), **constants)
    fused = clean_model(model, ["y"])
    assert (fused.changes["auxiliary_layers"], fused.reasons.get("auxiliary_layers")) == (1, None)
    after = cleaned(model, ("y",))
    assert ops(after)["Mul"] - (body in ("reduced", "scaled per layer")) == index
    assert len(after.graph.node) < len(model.graph.node) - 4


def test_a_stack_on_the_second_axis_and_one_of_references_are_both_resolved() -> None:
    body = (
        "r0 = MatMul(a0, v) r1 = MatMul(b0, v) r2 = MatMul(c0, v) rs = Concat<axis=1>(r0, r1, r2) "
        + HEAD
        + "z = Add(h, rs) g = Sigmoid(z) y = Gather<axis=1>(g, i)"
    )
    model = stacked(body, axis=1, v=normal(WIDTH, CLASSES, seed=7), i=np.array(-1))
    after = cleaned(model, ("y",))
    assert "Concat" not in ops(after) and "Gather" not in ops(after)
    assert ops(after)["MatMul"] == 2


def test_a_stack_joined_to_another_tensor_is_followed_into_it() -> None:
    body = "x0 = Unsqueeze(x, axis) all = Concat<axis=0>(x0, hs) m = MatMul(all, w) y = Gather<axis=0>(m, i)"
    after = cleaned(stacked(body, i=np.array(3)), ("y",))
    assert ops(after) == {"Tanh": 1, "Mul": 2, "MatMul": 1}


LEFT = {
    "two layers are sliced": (
        "s = Slice(h, one, three, zero) y = ReduceSum<keepdims=0>(s, zero)",
        {"one": np.array([1]), "three": np.array([3]), "zero": np.array([0])},
        "Slice reads 2 of 3 layers",
    ),
    "two layers are gathered": (
        "s = Gather<axis=0>(h, i) y = ReduceSum<keepdims=0>(s, zero)",
        {"i": np.array([0, 2]), "zero": np.array([0])},
        "Gather reads 2 of 3 layers",
    ),
    "two layers are picked by two": (
        "p = Gather<axis=0>(h, i) q = Gather<axis=0>(h, j) y = Add(p, q)",
        {"i": np.array(1), "j": np.array(2)},
        "layers 1, 2 of Concat are all read",
    ),
    "a softmax over the layers": (
        "s = Softmax<axis=0>(h) y = Gather<axis=0>(s, i)",
        {"i": np.array(2)},
        "Softmax mixes the layers",
    ),
    "a sum over the layers": (
        "s = ReduceSum<keepdims=1>(h, zero) t = Mul(h, s) y = Gather<axis=0>(t, i)",
        {"i": np.array(2), "zero": np.array([0])},
        "ReduceSum reads all layers",
    ),
    "a running sum over the layers": (
        "s = CumSum(h, zero) y = Gather<axis=0>(s, i)",
        {"i": np.array(2), "zero": np.array(0)},
        "CumSum may mix the layers",
    ),
    "all layers read elsewhere": (
        "p = Gather<axis=0>(h, i) q = ReduceMax<keepdims=0>(h, zero) y = Add(p, q)",
        {"i": np.array(2), "zero": np.array([0])},
        "ReduceMax reads all layers",
    ),
    "layers merged with the batch from behind": (
        "t = Transpose<perm=[1,0,2,3]>(h) f = Reshape(t, flat) s = Relu(f) r = Reshape(s, back) "
        "y = Gather<axis=1>(r, i)",
        {
            "i": np.array(2),
            "flat": np.array([-1, QUERIES, CLASSES]),
            "back": np.array([-1, LAYERS, QUERIES, CLASSES]),
        },
        "Reshape merges the layers with other axes",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_layers_that_are_not_apart_are_left_alone_with_the_reason(case: str) -> None:
    body, constants, reason = LEFT[case]
    model = stacked(HEAD + body, **constants)
    fused = clean_model(model, ["y"])
    assert fused.changes["auxiliary_layers"] == 0
    assert reason in fused.reasons["auxiliary_layers"]
    assert ops(cleaned(model, ("y",)))["Concat"] == 1


def test_a_stack_that_is_itself_read_is_left_alone() -> None:
    outputs = f"float[N,{QUERIES},{CLASSES}] y, float[{LAYERS},N,{QUERIES},{CLASSES}] h"
    model = stacked(HEAD + "y = Gather<axis=0>(h, i)", outputs=outputs, i=np.array(2))
    for keep in (None, ("y", "h")):
        fused = clean_model(model, keep)
        assert (fused.changes["auxiliary_layers"], fused.changes["auxiliary_outputs"]) == (0, 0)
        assert fused.reasons["auxiliary_layers"] == ("all layers are the output 'h'",)
        assert [value.name for value in cleaned(model, keep).graph.output] == ["y", "h"]


def test_a_stack_that_is_an_output_nobody_reads_goes() -> None:
    of_a_layer = f"N,{QUERIES},{CLASSES}"
    outputs = f"float[{of_a_layer}] y, float[{LAYERS},{of_a_layer}] h, float[2,{of_a_layer}] aux"
    body = HEAD + "y = Gather<axis=0>(h, i) aux = Slice(h, zero, two, zero)"
    model = stacked(body, outputs=outputs, i=np.array(2), zero=np.array([0]), two=np.array([2]))
    fused = clean_model(model, ["y"])
    assert (fused.changes["auxiliary_layers"], fused.changes["auxiliary_outputs"]) == (1, 2)
    assert ops(cleaned(model, ("y",))) == {"Tanh": 1, "Mul": 2, "MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    ("name", "shape"), [("aux_outputs_0_logits", "[N,7]"), ("layer_2", f"[N,{QUERIES},{WIDTH}]")]
)
def test_predictions_of_inner_layers_are_told_by_name_or_by_shape(name: str, shape: str) -> None:
    body = f"y = Relu(x) {name} = {'MatMul(x, v)' if shape == '[N,7]' else 'Abs(x)'}"
    if shape == "[N,7]":
        body = f"y = Relu(x) q = ReduceSum<keepdims=0>(x, one) {name} = MatMul(q, v)"
    constants = {"v": normal(WIDTH, 7), "one": np.array([1])} if shape == "[N,7]" else {}
    model = graph(
        body,
        f"float[N,{QUERIES},{WIDTH}] x",
        f"float[N,{QUERIES},{WIDTH}] y, float{shape} {name}",
        18,
        **constants,
    )
    fused = clean_model(model, ["y"])
    assert fused.changes["auxiliary_outputs"] == 1
    assert [value.name for value in fused.model.graph.output] == ["y"]
    assert ops(fused.model) == {"Relu": 1}


def test_other_outputs_stay() -> None:
    outputs = f"float[N,{QUERIES},{WIDTH}] y, float[N,{WIDTH}] feature"
    model = graph(
        "y = Relu(x) feature = ReduceSum<keepdims=0>(x, one)",
        f"float[N,{QUERIES},{WIDTH}] x",
        outputs,
        18,
        one=np.array([1]),
    )
    fused = clean_model(model, ["y"])
    assert fused.changes["auxiliary_outputs"] == 0
    assert [value.name for value in fused.model.graph.output] == ["y", "feature"]
    assert clean_model(model, ["no such output"]).changes["auxiliary_outputs"] == 0


def test_the_contract_catches_a_stage_that_drops_an_output_that_is_read() -> None:
    model = graph("y = Relu(x) z = Abs(x)", outputs="float[N,5,8] y, float[N,5,8] z")
    loaded = contract.load(model)
    before = contract.signature_of(loaded)
    loaded.graph.outputs.pop()
    contract.verify(loaded, before, "clean", keep=["y"])
    for keep in (["y", "z"], None):
        with pytest.raises(NotVerified, match="stage clean changed the outputs"):
            contract.verify(loaded, before, "clean", keep)


def test_the_two_streams_of_a_rotary_embedding_are_not_taken_for_layers() -> None:
    body = (
        "s = Sin(x) c = Cos(x) s0 = Unsqueeze(s, last) c0 = Unsqueeze(c, last) z = Concat<axis=3>(s0, c0) "
        "f = Reshape(z, flat) p, q = Split<axis=2, num_outputs=2>(f) n = Neg(q) y = Concat<axis=2>(n, p)"
    )
    model = graph(
        body,
        f"float[N,{QUERIES},{WIDTH}] x",
        f"float[N,{QUERIES},{2 * WIDTH}] y",
        18,
        last=np.array([3]),
        flat=np.array([-1, QUERIES, 2 * WIDTH]),
    )
    fused = clean_model(model, ["y"])
    assert fused.changes["auxiliary_layers"] == 0
    assert "auxiliary_layers" not in fused.reasons
    np.testing.assert_array_equal(run(fused.model, {"x": X})[0], run(model, {"x": X})[0])


def test_cleaning_again_changes_nothing() -> None:
    once = clean_model(stacked(HEAD + "y = Gather<axis=0>(h, i)", i=np.array(2)), ["y"]).model
    again = clean_model(once, ["y"])
    assert sum(again.changes.values()) == 0
    assert again.model.graph.node == once.graph.node
