"""Q/DQ of FP8 in ONNX Runtime, whose optimiser takes it for that of integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusing import graph, normal
from quantising import quantised
from tiny_onnx import as_artifact
from vitesse.backends.onnxruntime import OnnxRuntimeBackend
from vitesse.backends.onnxruntime_files import quantises_to_fp8
from vitesse.backends.protocol import LoadOptions

E4M3 = TensorProto.FLOAT8E4M3FN


def two_convolutions() -> onnx.ModelProto:
    """A ReLU stands before numbers that are rounded: for unsigned integers the optimiser leaves it out."""
    return graph(
        "a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, v) d = Relu(c)"
        " e = MaxPool<kernel_shape=[2,2],strides=[2,2]>(d) y = Conv(e, u)",
        "float[1,3,6,6] x",
        "float[1,4,3,3] y",
        opset=19,
        w=normal(8, 3, 3, 3),
        v=normal(8, 8, 3, 3, seed=1),
        u=normal(4, 8, 1, 1, seed=2),
    )


def written(tmp_path: Path, number: str) -> Path:
    reach = dict.fromkeys("xbcde", (-8.0, 8.0))
    model, _ = quantised(tmp_path, two_convolutions(), reach, number=number)
    path = tmp_path / f"{number}.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("options", [LoadOptions(threads=1), LoadOptions(plain=True)], ids=["usual", "plain"])
def test_the_numbers_are_those_of_the_graph_as_it_stands(tmp_path: Path, options: LoadOptions) -> None:
    artifact = as_artifact(written(tmp_path, "fp8"))
    feeds = {"x": 4 * normal(1, 3, 6, 6, seed=3)}
    answers = []
    for one in (options, LoadOptions(threads=1, reference=True)):
        with OnnxRuntimeBackend().load(artifact, one) as engine, engine.session() as session:
            answers.append(session.run(feeds).outputs["y"].copy())
    np.testing.assert_array_equal(*answers)
    assert np.ptp(answers[0]) > 1


def test_a_file_is_asked_for_what_it_rounds_to(tmp_path: Path) -> None:
    assert quantises_to_fp8(written(tmp_path, "fp8"))
    assert not quantises_to_fp8(written(tmp_path, "int8"))
    onnx.save(two_convolutions(), tmp_path / "float.onnx")
    assert not quantises_to_fp8(tmp_path / "float.onnx")


def quantiser(*, constant: bool) -> onnx.ModelProto:
    """The type as a Constant node of the zero point, or as the attribute that opset 21 has for it."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])
    zero = helper.make_tensor("", E4M3, [], b"\0", raw=True)
    before = [helper.make_node("Constant", [], ["zero"], value=zero)] if constant else []
    given = ["x", "scale", "zero"] if constant else ["x", "scale"]
    said = {} if constant else {"output_dtype": E4M3}
    nodes = [*before, helper.make_node("QuantizeLinear", given, ["y"], **said)]
    x, y = (helper.make_tensor_value_info(name, kind, [2]) for name, kind in (("x", 1), ("y", E4M3)))
    made = helper.make_graph(nodes, "g", [x], [y], [scale])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.parametrize("constant", [True, False])
def test_every_way_to_write_the_type_is_seen(tmp_path: Path, constant: bool) -> None:
    model = quantiser(constant=constant)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "q.onnx")
    assert quantises_to_fp8(tmp_path / "q.onnx")


def test_what_cannot_be_read_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "damaged.onnx").write_bytes(b"\xffQuantizeLinear\xff")
    for name in ("empty", "damaged", "missing"):
        assert not quantises_to_fp8(tmp_path / f"{name}.onnx")
