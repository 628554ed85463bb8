from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusing import graph, ops, run
from vitesse.lowering.lower import lower_model

LENGTHS = dict(zip("bqkhdonxyz", (2, 5, 3, 4, 6, 7, 1, 2, 3, 4), strict=True))


def model(equation: str, open_letters: str = "b") -> onnx.ModelProto:
    inputs, _, result = equation.partition("->")
    terms = [_axes(term, open_letters) for term in inputs.split(",")]
    names = "uvw"[: len(terms)]
    body = f'y = Einsum<equation="{equation}">({", ".join(names)})'
    fed = ", ".join(f"float{term} {name}" for term, name in zip(terms, names, strict=True))
    return graph(body, fed, f"float{_axes(result, open_letters)} y", check=False)


def _axes(term: str, open_letters: str) -> str:
    letters = term.replace("...", "xy")
    sizes = (letter.upper() if letter in open_letters else str(LENGTHS[letter]) for letter in letters)
    return f"[{','.join(sizes)}]" if letters else ""


def check(equation: str, open_letters: str = "b") -> dict[str, int]:
    done = lower_model(model(equation, open_letters), ["einsum"])
    assert (done.changes, done.reasons) == ({"einsum": 1}, {})
    terms = equation.partition("->")[0].split(",")
    random = np.random.default_rng(0)
    arrays = [
        random.standard_normal([LENGTHS[c] for c in term.replace("...", "xy")]).astype(np.float32)
        for term in terms
    ]
    expected = np.einsum(equation, *(array.astype(np.float64) for array in arrays))
    found = run(done.model, dict(zip("uvw", arrays, strict=False)))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    return dict(ops(done.model))


@pytest.mark.parametrize(
    "equation",
    [
        "bqhd,bkhd->bhqk",
        "bhqk,bkhd->bqhd",
        "bqd,bkd->bqk",
        "bqd,dhk->bqhk",
        "bqhd,hdo->bqo",
        "bqd,do->bqo",
        "bqd,d->bq",
        "bq,bq->b",
        "bq,bq->",
        "bq,k->bqk",
        "bqh,bkh->bhqk",
        "bqd,bqd->bqd",
        "bqk,bd->bqd",
        "...qd,...kd->...qk",
        "...d,do->...o",
        "bqd->bdq",
        "bqd->b",
        "dqk,dk->q",
        "qhd,khd->hqk",
    ],
)  # fmt: skip
def test_what_attention_and_linear_layers_use_agrees_with_float64(equation: str) -> None:
    assert "Einsum" not in check(equation)


def test_without_a_result_the_letters_that_stand_once_are_kept_in_their_alphabetic_order() -> None:
    before = graph('y = Einsum<equation="qd,dk">(u, v)', "float[5,6] u, float[6,3] v", "float[3,5] y")
    u, v = np.eye(5, 6, dtype=np.float32), np.arange(18, dtype=np.float32).reshape(6, 3)
    after = lower_model(before, ["einsum"]).model
    assert ops(after) == {"Transpose": 1, "MatMul": 1}
    np.testing.assert_array_equal(run(after, {"u": u, "v": v})[0], (u @ v).T)


def test_a_linear_layer_of_open_batch_and_tokens_stays_one_product() -> None:
    assert check("bqhd,hdo->bqo", "bq") == {"Reshape": 2, "MatMul": 1}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_product_of_two_operands_agrees_with_float64(data: st.DataObject) -> None:
    letters = st.lists(st.sampled_from("bqkhd"), min_size=1, max_size=4, unique=True)
    left, right = data.draw(letters), data.draw(letters)
    every = sorted({*left, *right})
    result = data.draw(st.lists(st.sampled_from(every), max_size=4, unique=True))
    assume(len(result) <= 5)
    check(f"{''.join(left)},{''.join(right)}->{''.join(result)}", data.draw(st.sampled_from(["", "b", "q"])))


@pytest.mark.parametrize(
    ("equation", "open_letters", "reason"),
    [
        ("bqq,bd->bqd", "b", "'bqq,bd->bqd' takes a diagonal"),
        ("bqd,dk,kh->bqh", "b", "it has 3 operands"),
        ("bxqd,bykd->bxyqk", "bxyqk", "'bxqd,bykd->bxyqk' merges axes whose lengths are not static"),
    ],
)
def test_what_is_no_single_product_is_left_alone(equation: str, open_letters: str, reason: str) -> None:
    done = lower_model(model(equation, open_letters), ["einsum"])
    assert (done.changes, done.reasons) == ({"einsum": 0}, {"einsum": (reason,)})


def test_a_product_for_each_batch_and_head_needs_no_static_length() -> None:
    assert check("bhqd,bhkd->bhqk", "bhqkd") == {"Transpose": 1, "MatMul": 1}
