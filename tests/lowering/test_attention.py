from __future__ import annotations

import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from vitesse.fusion import fuse_model
from vitesse.lowering.lower import lower_model


def model(
    heads: int = 4, kv_heads: int = 4, *, split: bool = False, mask: str = "", attributes: str = ""
) -> onnx.ModelProto:
    """Attention of width 8 a head, 5 queries and 7 keys; `split`: heads and width are one axis."""
    shapes = ((heads, 5), (kv_heads, 7), (kv_heads, 7))
    fed = [
        f"float[N,{n},{8 * h}] {x}" if split else f"float[N,{h},{n},8] {x}"
        for (h, n), x in zip(shapes, "qkv", strict=True)
    ]
    if split:
        attributes = ", ".join(filter(None, (attributes, f"q_num_heads={heads}, kv_num_heads={kv_heads}")))
    inputs = ", ".join([*fed, *([mask] if mask else [])])
    arguments = "q, k, v, m" if mask else "q, k, v"
    output = fed[0].replace(" q", " y")
    return graph(f"y = Attention{f'<{attributes}>' if attributes else ''}({arguments})", inputs, output, 23)


def feeds_of(before: onnx.ModelProto, batch: int = 2) -> dict[str, np.ndarray]:
    feeds: dict[str, np.ndarray] = {}
    for seed, info in enumerate(before.graph.input):
        shape = [dim.dim_value or batch for dim in info.type.tensor_type.shape.dim]
        made = 2 * normal(*shape, seed=seed)
        if info.type.tensor_type.elem_type == onnx.TensorProto.BOOL:
            made = made > -1
            made[..., 0] = True
        feeds[info.name] = made
    return feeds


FORMS = {
    "heads apart": {},
    "heads and width in one axis": {"split": True},
    "its own scale": {"attributes": "scale=0.7"},
    "grouped queries": {"kv_heads": 2},
    "grouped queries in one axis": {"kv_heads": 1, "split": True},
    "causal": {"attributes": "is_causal=1"},
    "a mask to add": {"mask": "float[N,1,5,7] m"},
    "a mask of truths": {"mask": "bool[5,7] m"},
    "masked heads in one axis": {"mask": "bool[N,4,5,7] m", "attributes": "is_causal=1", "split": True},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_in_basic_operators_agrees_with_the_operator(form: str, batch: int) -> None:
    before = model(**FORMS[form])
    done = lower_model(before, ["attention"])
    assert done.changes == {"attention": 1}
    assert "Attention" not in ops(done.model) and ops(done.model)["MatMul"] == 2
    feeds = feeds_of(before, batch)
    np.testing.assert_allclose(run(done.model, feeds)[0], run(before, feeds)[0], atol=1e-5)


def test_attention_agrees_with_float64() -> None:
    feeds = feeds_of(model())
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    after = lower_model(model(), ["attention"]).model
    np.testing.assert_allclose(run(after, feeds)[0], expected, atol=3e-6)


def test_fusing_finds_the_attention_again() -> None:
    lowered = lower_model(model(), ["attention"]).model
    assert fuse_model(lowered).changes["attention"] == 1


def with_cache() -> onnx.ModelProto:
    inputs = ", ".join(f"float[N,4,{n},8] {x}" for x, n in (("q", 5), ("k", 7), ("v", 7), ("p", 3), ("r", 3)))
    return graph("y = Attention(q, k, v, , p, r)", inputs, "float[N,4,5,8] y", 23, check=False)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (model(attributes="softcap=2.0"), "it caps the scores (softcap)"),
        (model(mask="float[5,6] m"), "the mask covers 6 of 7 keys"),
        (with_cache(), "it has a cache of keys and values, or lengths of them"),
        (
            graph(
                "y = Attention<is_causal=1>(q, k, v)",
                ", ".join(f"float[N,4,T,8] {x}" for x in "qkv"),
                "float[N,4,T,8] y",
                23,
            ),
            "it is causal, and the number of tokens is not static",
        ),
    ],
)
def test_what_basic_operators_cannot_say_is_left_alone(before: onnx.ModelProto, reason: str) -> None:
    done = lower_model(before, ["attention"])
    assert (done.changes, done.reasons) == ({"attention": 0}, {"attention": (reason,)})
