"""Every operator in plain torch against ONNX Runtime on the CPU, and on meta tensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.operators.cases import CASES, Case, onnx_type  # noqa: E402
from vitesse.backends.torch_cuda.operators import OPERATORS, operator_of  # noqa: E402
from vitesse.backends.torch_cuda.operators.constants import to_ir, to_torch  # noqa: E402

NAMED = [
    pytest.param(name, at, id=f"{name}-{at}") for name, cases in CASES.items() for at in range(len(cases))
]


def model_of(name: str, case: Case) -> onnx.ModelProto:
    """A model of one node whose inputs are the case's."""
    names = ["" if array is None else f"x{at}" for at, array in enumerate(case.inputs)]
    made = [f"y{at}" for at in range(case.outputs)]
    node = helper.make_node(name, names, made, name="node under test", **case.attributes)
    inputs = [
        helper.make_tensor_value_info(name, onnx_type(array), array.shape)
        for name, array in zip(names, case.inputs, strict=True)
        if array is not None
    ]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=one) for one in made])
    opsets = [helper.make_opsetid("", case.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def expected_of(name: str, case: Case) -> list[NDArray[Any]]:
    """What ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    model = model_of(name, case)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = {
        f"x{at}": onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint8) if array.dtype.itemsize == 1 and array.dtype.kind not in "biu" else array,
            onnx_type(array),
        )
        for at, array in enumerate(case.inputs)
        if array is not None
    }
    return [one.numpy() for one in session.run_with_ort_values(None, values)]


def tensors_of(case: Case) -> list[torch.Tensor | None]:
    return [None if one is None else to_torch(ir.tensor(one)) for one in case.inputs]


def node_of(name: str, case: Case) -> ir.Node:
    return next(iter(ir.from_proto(model_of(name, case)).graph))


def same(made: torch.Tensor | None, expected: NDArray[Any], case: Case) -> bool:
    """Whether type, shape and numbers agree: floats to the last bits of float32 or FP16, others exactly."""
    assert made is not None
    array = to_ir(made, "y").numpy()
    if array.dtype == ml_dtypes.float8_e4m3fn:  # the runtime gives its bits
        array, expected = array.astype(np.float32), expected.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    if array.dtype != expected.dtype or array.shape != expected.shape:
        return False
    if array.dtype.kind != "f":
        return bool(np.array_equal(array, expected))
    tolerance = 2e-3 if array.dtype == np.float16 else 2e-5
    return bool(np.allclose(array, expected, tolerance, tolerance / 10, equal_nan=True))


@pytest.mark.parametrize(("name", "at"), NAMED)
def test_an_operator_computes_what_onnx_runtime_computes(name: str, at: int) -> None:
    case = CASES[name][at]
    node = node_of(name, case)
    made, expected = operator_of(node)(node, tensors_of(case)), expected_of(name, case)
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        assert same(one, other, case), f"{one}\n!=\n{other}"


@pytest.mark.parametrize(("name", "at"), NAMED)
def test_an_operator_knows_its_shapes_from_meta_tensors(name: str, at: int) -> None:
    case = CASES[name][at]
    node = node_of(name, case)
    operator = operator_of(node)
    if operator.by_value:
        pytest.skip("its shape depends on values")
    tensors = tensors_of(case)
    on_meta = [
        one if one is None or at in operator.host else one.to("meta") for at, one in enumerate(tensors)
    ]
    described = [(one.shape, one.dtype) for one in operator(node, on_meta) if one is not None]
    assert described == [(one.shape, one.dtype) for one in operator(node, tensors) if one is not None]


def test_every_standard_operator_has_a_case() -> None:
    assert {name for domain, name in OPERATORS if domain == ""} == CASES.keys()


def test_the_comparison_refuses_another_operator_another_type_and_another_shape() -> None:
    case = CASES["Add"][0]
    right = operator_of(node_of("Add", case))(node_of("Add", case), tensors_of(case))[0]
    assert right is not None
    expected = expected_of("Add", case)[0]
    assert same(right, expected, case)
    assert not same(right + 1e-3, expected, case)
    assert not same(right.double(), expected, case)
    assert not same(right[None], expected, case)
