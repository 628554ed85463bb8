"""What an operator does not support is refused by name, and never computed as something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from vitesse.backends.torch_cuda.operators import OPERATORS, operator_of  # noqa: E402
from vitesse.backends.torch_cuda.operators.constants import to_ir, to_torch  # noqa: E402
from vitesse.backends.torch_cuda.steps import DOMAIN, linear  # noqa: E402
from vitesse.errors import ModelError  # noqa: E402

X = torch.arange(48.0).reshape(1, 3, 4, 4)


def node_of(
    name: str, inputs: int, opset: int = 23, domain: str = "", outputs: int = 1, **attributes: Any
) -> ir.Node:
    """A node in a model of its own."""
    names = [f"x{at}" for at in range(inputs)]
    made = helper.make_node(
        name, names, [f"y{at}" for at in range(outputs)], "odd", domain=domain, **attributes
    )
    values = [onnx.ValueInfoProto(name=one) for one in names]
    graph = helper.make_graph([made], "one", values, [onnx.ValueInfoProto(name="y0")])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return next(iter(ir.from_proto(helper.make_model(graph, opset_imports=opsets)).graph))


def refused(node: ir.Node, *tensors: Any) -> str:
    """The message with which the node is refused."""
    with pytest.raises(ModelError) as error:
        operator_of(node)(node, [torch.as_tensor(one) if isinstance(one, list) else one for one in tensors])
    return str(error.value)


def test_an_operator_that_is_not_there_is_named_with_those_that_are() -> None:
    message = refused(node_of("NonMaxSuppression", 2), X, X)
    assert message.startswith(
        "node 'odd' (NonMaxSuppression, opset 23): the torch-cuda engine does not have this operator"
    )
    assert "one of Abs, Acos, Add" in message


def test_an_operator_of_another_domain_is_not_taken_for_the_standard_one() -> None:
    assert "node 'odd' (com.microsoft:Gelu, opset 0)" in refused(
        node_of("Gelu", 1, domain="com.microsoft"), X
    )


def test_the_standard_domain_has_two_names() -> None:
    node = node_of("Relu", 1, domain="ai.onnx")
    assert operator_of(node) is OPERATORS["", "Relu"]


@pytest.mark.parametrize(
    ("node", "tensors", "what", "supported"),
    [
        (node_of("Softmax", 1, 12), [X], "opset 12 is not supported", "opset 13 and newer"),
        (node_of("Relu", 1, slope=3), [X], "attribute slope=3", "attributes none"),
        (
            node_of("Gemm", 2, transC=1),
            [X, X],
            "attribute transC=1",
            "attributes alpha, beta, transA, transB",
        ),
        (node_of("Concat", 1), [X], "no attribute axis", "a node with attribute axis"),
        (node_of("MaxPool", 1, outputs=2, kernel_shape=[2, 2]), [X], "output 2", "1 output(s)"),
        (node_of("Conv", 2, auto_pad="SAME"), [X, X], "auto_pad='SAME'", "SAME_UPPER and SAME_LOWER"),
        (node_of("ConvTranspose", 2, output_shape=[8, 8]), [X, X], "output_shape", "pads and output_padding"),
        (node_of("AveragePool", 1, kernel_shape=[2, 2], dilations=[2, 2]), [X], "dilations=(2, 2)", "of 1"),
        (
            node_of("MaxPool", 1, kernel_shape=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
            [X],
            "ceil_mode=1",
            "equal pads",
        ),
        (
            node_of("Resize", 3, mode="linear", coordinate_transformation_mode="asymmetric"),
            [X, None, torch.tensor([1.0, 1, 2, 2])],
            "coordinate_transformation_mode='asymmetric'",
            "half_pixel and align_corners with mode='linear'",
        ),
        (
            node_of("Resize", 3, coordinate_transformation_mode="tf_crop_and_resize"),
            [X, None, torch.tensor([1.0, 1, 2, 2])],
            "coordinate_transformation_mode='tf_crop_and_resize'",
            "pytorch_half_pixel with mode='nearest'",
        ),
        (node_of("Resize", 3, antialias=1), [X, None, torch.ones(4)], "antialias=1", "antialias=0"),
        (
            node_of("Resize", 3, mode="cubic", cubic_coeff_a=-0.5),
            [X, None, torch.ones(4)],
            "cubic_coeff_a=-0.5",
            "cubic_coeff_a=-0.75",
        ),
        (
            node_of("Resize", 3, mode="linear"),
            [X, None, torch.tensor([1.0, 2, 2, 2])],
            "across images or channels",
            "behind the first two",
        ),
        (node_of("Attention", 3, softcap=2.0), [X, X, X], "softcap=2.0", "softcap=0"),
        (node_of("Attention", 3), [X[0], X[0], X[0]], "no attribute q_num_heads", "number of heads"),
        (node_of("Attention", 6), [X, X, X, None, X, X], "past keys and values", "same call"),
        (node_of("BatchNormalization", 5, training_mode=1), [X] * 5, "training_mode=1", "training_mode=0"),
        (
            node_of("Pad", 2, mode="mirror"),
            [X, [0, 0, 0, 0, 0, 0, 0, 1]],
            "mode='mirror'",
            "edge, reflect and wrap",
        ),
        (node_of("QuantizeLinear", 2, block_size=2), [X, X], "block_size=2", "one scale per tensor"),
        (
            node_of("QuantizeLinear", 2, output_dtype=onnx.TensorProto.INT16),
            [X, torch.tensor(1.0)],
            "quantising to",
            "int8, uint8 and float8e4m3fn",
        ),
        (node_of("Cast", 1, to=onnx.TensorProto.STRING), [X], "to=STRING", "FLOAT, FLOAT16"),
        (node_of("ScatterElements", 3, reduction="mean"), [X, X, X], "reduction='mean'", "none, add, mul"),
    ],
)
def test_a_form_that_is_not_supported_is_refused_with_those_that_are(
    node: ir.Node, tensors: list[Any], what: str, supported: str
) -> None:
    if node.op_type == "ScatterElements":
        tensors = [X, torch.zeros_like(X, dtype=torch.int64), X]
    message = refused(node, *tensors)
    assert f"node 'odd' ({node.op_type}, opset" in message
    assert what in message.splitlines()[0]
    assert supported in message.splitlines()[1]


def test_shapes_that_do_not_fit_are_named_with_what_torch_says() -> None:
    message = refused(node_of("MatMul", 2), torch.ones(2, 3), torch.ones(4, 5))
    assert (
        "node 'odd' (MatMul, opset 23) cannot be computed on (2, 3) torch.float32, (4, 5) torch.float32"
        in message
    )
    assert "mat1 and mat2 shapes cannot be multiplied" in message


def test_too_many_inputs_are_refused() -> None:
    assert "cannot be computed" in refused(node_of("Relu", 2), X, X)


def test_a_full_memory_is_not_called_a_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    node = node_of("Relu", 1)
    monkeypatch.setitem(operator_of(node).__dict__, "compute", full)
    with pytest.raises(torch.OutOfMemoryError):
        operator_of(node)(node, [X])


def test_a_step_takes_its_attributes_by_keyword_and_leaves_out_what_nobody_reads() -> None:
    x, weight, bias = torch.randn(2, 5, 4), torch.randn(4, 3), torch.randn(3)
    node = node_of("Linear", 4, domain=DOMAIN, activation="gelu", out_dtype="float32")
    made = operator_of(node)(node, [x, weight, None, bias])
    assert torch.equal(made[0], linear(x, weight, None, bias, activation="gelu", out_dtype="float32")[0])
    norm = node_of("Norm", 2, domain=DOMAIN)
    assert len(operator_of(norm)(norm, [x, weight[:, 0]])) == 1


def test_a_step_with_an_attribute_that_it_does_not_have_is_refused() -> None:
    node = node_of("Linear", 2, domain=DOMAIN, activations="gelu")
    assert "(vitesse.cuda:Linear, opset 1): attribute activations='gelu'" in refused(node, X, X)


@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "INT8", "UINT8", "INT64", "BOOL"]
)
def test_a_constant_keeps_its_bits_on_the_way_to_torch_and_back(kind: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2 if kind == "BOOL" else 256, 64 * 8).astype(np.uint8)
    dtype = ir.DataType[kind]
    stored = ir.Tensor(bits.view(dtype.numpy()), dtype=dtype, name="w")
    back = to_ir(to_torch(stored), "w")
    assert back.dtype == dtype
    assert back.tobytes() == stored.tobytes()


def test_a_constant_of_a_type_that_torch_lacks_is_named() -> None:
    stored = ir.StringTensor(np.array([b"cat"], dtype=object), name="labels")
    with pytest.raises(ModelError, match="'labels' has the type STRING"):
        to_torch(stored)
