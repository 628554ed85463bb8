"""A graph in plain torch against ONNX Runtime on the CPU."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from fashion import DETR, VIT  # noqa: E402
from fusing import graph, normal, run  # noqa: E402
from vitesse.backends.torch_cuda.device import products  # noqa: E402
from vitesse.backends.torch_cuda.execute import Plain  # noqa: E402
from vitesse.backends.torch_cuda.operators import OPERATORS  # noqa: E402
from vitesse.backends.torch_cuda.specialise import specialise  # noqa: E402
from vitesse.errors import DataError, ModelError  # noqa: E402
from vitesse.fusion import clean_model, fuse_model  # noqa: E402
from vitesse.precision.emulation import emulated  # noqa: E402
from vitesse.precision.half_casts import HalfGraph  # noqa: E402

SIDES = {VIT: 56, DETR: 256}
E4M3 = ml_dtypes.float8_e4m3fn


def images(path: Path, batch: int) -> np.ndarray[Any, Any]:
    return normal(batch, 3, SIDES[path], SIDES[path])


def in_torch(
    model: onnx.ModelProto | ir.Model, device: torch.device, **feeds: Any
) -> list[np.ndarray[Any, Any]]:
    """All outputs in the graph's order."""
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    with products(tf32=False):
        made = Plain(graph, device).run({name: torch.as_tensor(array) for name, array in feeds.items()})
    assert list(made) == [value.name for value in graph.graph.outputs]
    return [tensor.cpu().numpy() for tensor in made.values()]


def errors(made: list[Any], expected: list[Any]) -> list[float]:
    """‖made − expected‖ / ‖expected‖ of each output, in float64."""
    pairs = [(np.float64(one), np.float64(other)) for one, other in zip(made, expected, strict=True)]
    return [float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs]


def fused(path: Path) -> onnx.ModelProto:
    return fuse_model(clean_model(onnx.load(path)).model).model


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("path", [VIT, DETR], ids=["vit", "detr"])
def test_a_model_of_any_batch_gives_the_numbers_of_onnx_runtime(
    path: Path, batch: int, device: torch.device
) -> None:
    model, feed = onnx.load(path), images(path, batch)
    expected = run(model, {"images": feed})
    assert max(errors(in_torch(model, device, images=feed), expected)) < 1e-5
    static = specialise(model, {"images": feed.shape})
    assert max(errors(in_torch(static, device, images=feed), expected)) < 1e-5


@pytest.mark.parametrize("path", [VIT, DETR], ids=["vit", "detr"])
def test_a_model_in_fp16_gives_the_numbers_of_its_emulation(path: Path, device: torch.device) -> None:
    half, feed = HalfGraph(fused(path)).written(), images(path, 2)
    expected = run(emulated(half), {"images": feed})
    assert max(errors(in_torch(half, device, images=feed), expected)) < 2e-3


def test_the_comparison_sees_a_bias_that_is_one_percent_off(device: torch.device) -> None:
    model, feed = onnx.load(VIT), images(VIT, 1)
    expected = run(model, {"images": feed})
    bias = next(one for one in model.graph.initializer if one.name.endswith("bias"))
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * np.float32(1.01), bias.name)
    )
    assert max(errors(in_torch(model, device, images=feed), expected)) > 2e-5


def test_a_linear_layer_quantised_to_fp8_gives_the_numbers_of_onnx_runtime(device: torch.device) -> None:
    model = graph(
        "q = QuantizeLinear(x, sx, zero) d = DequantizeLinear(q, sx, zero)"
        "v = DequantizeLinear<axis = 1>(w, sw) y = MatMul(d, v)",
        outputs="float[N,5,6] y",
        opset=23,
        check=False,
        sx=0.01,
        sw=np.abs(normal(6)) / np.float32(100),
        zero=np.zeros((), E4M3),
        w=(normal(8, 6) * 100).astype(E4M3),
    )
    feed = normal(3, 5, 8) * np.float32(2)  # some are beyond 4.48 and saturate
    assert max(errors(in_torch(model, device, x=feed), run(model, {"x": feed}))) < 1e-6


def test_what_decides_shapes_is_computed_on_the_cpu_wherever_the_images_lie() -> None:
    # Meta tensors have no values: reading one from the device to find out a shape would fail.
    model = ir.load(DETR)
    feeds = {"images": torch.empty(3, 3, 256, 256, device="meta")}
    made = Plain(model, torch.device("meta")).run(feeds)
    assert {name: tuple(one.shape) for name, one in made.items()} == {
        "logits": (3, 25, 11),
        "boxes": (3, 25, 4),
    }
    assert {one.device.type for one in made.values()} == {"meta"}


def test_tensors_are_dropped_when_they_were_read_for_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    counts = []

    def relu(x: torch.Tensor) -> torch.Tensor:
        made = torch.relu(x)
        alive.add(made)
        counts.append(len(alive))
        return made

    monkeypatch.setitem(OPERATORS["", "Relu"].__dict__, "compute", relu)
    chain = " ".join(f"t{at + 1} = Relu(t{at})" for at in range(20))
    model = graph(f"t0 = Relu(x) {chain} y = Add(t20, t0)")
    in_torch(model, torch.device("cpu"), x=normal(1, 5, 8))
    assert max(counts) == 3  # the first one, read again at the end, the one read and the one made


def test_outputs_may_be_inputs_constants_and_computed_from_shapes(device: torch.device) -> None:
    model = graph(
        "y = Identity(x) shape = Shape(x) three = Identity(c)",
        outputs="float[N,5,8] y, int64[3] shape, float[3] three",
        c=normal(3),
    )
    static = specialise(model, {"x": (2, 5, 8)})
    for one in (ir.from_proto(model), static):
        made = in_torch(one, device, x=normal(2, 5, 8))
        for found, expected in zip(made, run(model, {"x": normal(2, 5, 8)}), strict=True):
            assert np.array_equal(found, expected)


def test_writing_into_an_output_leaves_the_next_run_as_it_was() -> None:
    model = graph("y = Add(x, x) c = Neg(k)", outputs="float[N,5,8] y, float[2] c", k=normal(2))
    plain = Plain(specialise(model, {"x": (1, 5, 8)}), torch.device("cpu"))
    first = plain.run({"x": torch.ones(1, 5, 8)})
    first["c"].fill_(torch.nan)
    assert torch.equal(plain.run({"x": torch.ones(1, 5, 8)})["c"], -torch.as_tensor(normal(2)))


@pytest.mark.parametrize(
    ("feeds", "what", "expected"),
    [
        ({}, "inputs []", "inputs ['x']"),
        ({"x": torch.ones(1, 5, 8), "z": torch.ones(1)}, "inputs ['x', 'z']", "inputs ['x']"),
        ({"x": torch.ones(5, 8)}, "input 'x' is (5, 8) torch.float32", "torch.float32 of shape [N,5,8]"),
        ({"x": torch.ones(1, 5, 8).half()}, "input 'x' is (1, 5, 8) torch.float16", "torch.float32 of shape"),
    ],
)
def test_feeds_that_are_not_the_inputs_are_refused(feeds: Any, what: str, expected: str) -> None:
    plain = Plain(ir.from_proto(graph("y = Relu(x)")), torch.device("cpu"))
    with pytest.raises(DataError) as error:
        plain.run(feeds)
    assert str(error.value).startswith(what)
    assert f"expected: {expected}" in str(error.value)


def test_an_operator_that_is_not_there_is_refused_before_anything_runs() -> None:
    model = graph("y = CustomThing(x)", check=False)
    with pytest.raises(ModelError, match=r"node 'y' \(CustomThing, opset 17\)"):
        Plain(ir.from_proto(model), torch.device("cpu"))
