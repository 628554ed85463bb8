"""Operations, bytes and parameters of small graphs, against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fusing import graph
from vitesse.errors import DataError
from vitesse.profile.costs import Cost, costs_of, total


def cost(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> Cost:
    return total(costs_of(model, shapes))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_linear_layer_multiplies_and_adds_for_every_pair_of_features() -> None:
    model = graph("h = MatMul(x, w) y = Add(h, b)", w=zeros(8, 8), b=zeros(8))
    found = cost(model, x=(3, 5, 8))
    assert found.flops == 2 * 3 * 5 * 8 * 8 + 3 * 5 * 8
    assert found.parameters == 8 * 8 + 8
    assert found.weight_bytes == 4 * (8 * 8 + 8)
    # x in, h out and in again, y out
    assert found.moved_bytes == 4 * 4 * (3 * 5 * 8)
    assert found.unknown == 0


def test_a_convolution_sums_over_its_group_and_kernel() -> None:
    model = graph(
        "y = Conv<group=2, pads=[1,1,1,1], strides=[2,2]>(x, w, b)",
        "float[N,4,8,8] x",
        "float[N,6,4,4] y",
        w=zeros(6, 2, 3, 3),
        b=zeros(6),
    )
    found = cost(model, x=(1, 4, 8, 8))
    assert found.flops == 6 * 4 * 4 * (2 * 2 * 3 * 3 + 1)
    assert found.parameters == 6 * 2 * 3 * 3 + 6


def test_gemm_takes_its_length_from_the_right_axis() -> None:
    model = graph("y = Gemm<transA=1>(x, w, b)", "float[7,3] x", "float[3,5] y", w=zeros(7, 5), b=zeros(5))
    assert cost(model, x=(7, 3)).flops == 2 * 3 * 5 * 7 + 3 * 5


def test_attention_is_two_products_and_a_softmax() -> None:
    model = graph(
        "y = Attention<q_num_heads=2, kv_num_heads=2>(x, k, k)",
        "float[N,5,8] x, float[N,7,8] k",
        opset=23,
        check=False,
    )
    found = cost(model, x=(3, 5, 8), k=(3, 7, 8))
    assert found.flops == 3 * 2 * 5 * 7 * (2 * 4 + 5 + 2 * 4)


def test_einsum_counts_every_combination_of_indices() -> None:
    model = graph('y = Einsum<equation="bqd,bkd->bqk">(x, x)', "float[N,5,8] x", "float[N,5,5] y")
    assert cost(model, x=(2, 5, 8)).flops == 2 * (2 * 5 * 5 * 8)
    model = graph('y = Einsum<equation="...d,de->...e">(x, w)', w=zeros(8, 8))
    assert cost(model, x=(2, 5, 8)).flops == 2 * (2 * 5 * 8 * 8)


@pytest.mark.parametrize(("operator", "each"), [("Relu", 1), ("Softmax", 5), ("Sigmoid", 3), ("Identity", 0)])
def test_an_operator_on_single_numbers_costs_its_formula(operator: str, each: int) -> None:
    assert cost(graph(f"y = {operator}(x)"), x=(2, 5, 8)).flops == each * 2 * 5 * 8


def test_normalisation_and_reduction_count_what_they_read() -> None:
    model = graph("y = LayerNormalization(x, w, w)", w=zeros(8))
    assert cost(model, x=(2, 5, 8)).flops == 7 * 2 * 5 * 8
    model = graph("y = ReduceMean<axes=[2], keepdims=0>(x)", outputs="float[N,5] y", opset=17)
    assert cost(model, x=(2, 5, 8)).flops == 2 * 5 * 8


def test_the_quantised_form_has_the_same_parameters_in_fewer_bytes() -> None:
    plain = cost(graph("y = MatMul(x, w)", w=zeros(8, 8)), x=(3, 5, 8))
    quantised = cost(
        graph(
            """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
               w = DequantizeLinear<axis=1>(wq, ws, wz) y = MatMul(d, w)""",
            s=0.1,
            z=np.uint8(128),
            wq=np.zeros((8, 8), np.int8),
            ws=np.ones(8, np.float32),
            wz=np.zeros(8, np.int8),
        ),
        x=(3, 5, 8),
    )
    assert quantised.parameters == plain.parameters == 64
    assert quantised.weight_bytes < plain.weight_bytes / 2
    assert quantised.flops == plain.flops + 2 * 2 * (
        3 * 5 * 8
    )  # to 8 bits and back, two operations per number


def test_weights_kept_in_half_precision_are_read_as_half() -> None:
    model = graph("w = Cast<to=1>(h) y = MatMul(x, w)", h=np.zeros((8, 8), np.float16))
    found = cost(model, x=(3, 5, 8))
    assert (found.parameters, found.weight_bytes) == (64, 128)
    assert found.flops == 2 * 3 * 5 * 8 * 8  # the cast of a constant is not paid per call


def test_a_shared_weight_is_counted_once_and_scalars_are_no_parameters() -> None:
    model = graph("a = MatMul(x, w) b = MatMul(a, w) y = Mul(b, c)", w=zeros(8, 8), c=0.5)
    found = costs_of(model, {"x": (1, 5, 8)})
    assert [one.parameters for one in found] == [64, 0, 0]


def test_what_cannot_be_counted_is_said_and_not_taken_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime's shape inference leaves a graph that it gave up
    model = graph("y = com.example.Mystery(x)", check=False)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert cost(model, x=(1, 5, 8)).unknown == 1
    dynamic = graph("i = NonZero(x) c = Cast<to=1>(i) y = Relu(c)", outputs="float[3,M] y")
    assert cost(dynamic, x=(1, 5, 8)).unknown == 1


def test_an_input_without_a_fitting_shape_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match="no shape for the input 'x'"):
        costs_of(graph("y = Relu(x)"), {"images": (1, 5, 8)})
    with pytest.raises(DataError, match="'x'"):
        costs_of(graph("y = Relu(x)"), {"x": (1, 5)})
