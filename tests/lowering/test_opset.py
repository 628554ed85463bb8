"""Another opset: the same numbers in ONNX Runtime, the names that runtimes read, a refusal where it would differ."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from compiling import compiled
from fashion import DETR, VIT
from fusing import Arrays, graph, normal, ops, run
from vitesse.errors import ModelError, UsageError
from vitesse.fusion import clean_model, fuse_model
from vitesse.lowering.opset import at_opset
from vitesse.profile.modules import modules_of

IMAGE: Arrays = {"x": normal(1, 3, 6, 6)}
MAPS = ("float[1,3,6,6] x", "float[a,b,c,d] y")
# What computes the same in another version: body, inputs, outputs, its opset, the one to write, and the feeds.
SAME = {
    "MaxPool": ("y = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)", *MAPS, 22, 21, IMAGE),
    "AveragePool": ("y = AveragePool<kernel_shape=[2, 2], dilations=[1, 1]>(x)", *MAPS, 22, 18, IMAGE),
    "Resize": ('y = Resize<mode="linear">(x, , factors)', *MAPS, 23, 18, IMAGE),
    "ReduceMax": ("y = ReduceMax<keepdims=1>(x, last)", *MAPS, 23, 18, IMAGE),
    "Cast": ("h = Cast<to=10, saturate=1>(x) y = Cast<to=1>(h)", *MAPS, 24, 18, IMAGE),
    "Gelu": ("y = Gelu(x)", *MAPS, 20, 18, IMAGE),
    "Attention": ("y = Attention(x, x, x)", *MAPS, 23, 19, IMAGE),
    "RMSNormalization": ("y = RMSNormalization<axis=-1>(x, gain)", *MAPS, 23, 19, IMAGE),
    "GroupNormalization": ("y = GroupNormalization<num_groups=3>(x, three, three)", *MAPS, 21, 18, IMAGE),
    "Pad": ('y = Pad<mode="reflect">(x, edges)', *MAPS, 23, 18, IMAGE),
}
CONSTANTS = {
    "factors": np.array([1, 1, 2, 2], np.float32),
    "last": np.array([-1]),
    "gain": normal(6, seed=1),
    "three": normal(3, seed=2),
    "edges": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "step": np.array(0.1, np.float32),
    "zero": np.array(0, np.int8),
}


def made(body: str, inputs: str, outputs: str, opset: int) -> onnx.ModelProto:
    """A graph with those constants that it reads."""
    words = set(re.findall(r"\w+", body))
    return graph(body, inputs, outputs, opset, **{name: CONSTANTS[name] for name in words & set(CONSTANTS)})


@pytest.mark.parametrize("name", SAME)
def test_an_operator_computes_the_same_in_the_older_version(name: str) -> None:
    body, inputs, outputs, before, version, feeds = SAME[name]
    model = made(body, inputs, outputs, before)
    kept = model.SerializeToString()
    older = at_opset(model, version)
    assert older.opset_import[0].version == version
    np.testing.assert_allclose(run(older, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-6)
    assert model.SerializeToString() == kept, "the model that was given stays as it is"


@pytest.mark.parametrize("name", ["Gelu", "Attention", "RMSNormalization", "GroupNormalization"])
def test_operators_that_were_not_there_or_meant_something_else_are_written_out(name: str) -> None:
    body, inputs, outputs, before, version, _ = SAME[name]
    assert ops(at_opset(made(body, inputs, outputs, before), version))[name] == 0


def test_a_maxpool_of_opset_22_is_one_of_opset_12_again() -> None:
    body, inputs, outputs, before, version, _ = SAME["MaxPool"]
    older = at_opset(made(body, inputs, outputs, before), version)
    assert onnx.defs.get_schema("MaxPool", older.opset_import[0].version, "").since_version == 12
    assert onnx.defs.get_schema("MaxPool", before, "").since_version == 22


SAMPLED = ("float[1,3,6,6] x, float[1,4,5,2] g", "float[1,3,4,5] y")
GRID: Arrays = {**IMAGE, "g": np.random.default_rng(1).uniform(-1.2, 1.2, (1, 4, 5, 2)).astype(np.float32)}


def mode_of(model: onnx.ModelProto) -> str:
    node = next(node for node in model.graph.node if node.op_type == "GridSample")
    return next((entry.s.decode() for entry in node.attribute if entry.name == "mode"), "not given")


@pytest.mark.parametrize(
    ("given", "older"),
    [('mode="linear"', "bilinear"), ('mode="cubic"', "bicubic"), ("align_corners=1", "bilinear")],
)
def test_grid_sample_has_the_mode_name_of_its_opset(given: str, older: str) -> None:
    model = graph(f"y = GridSample<{given}>(x, g)", *SAMPLED, 20)
    lowered = at_opset(model, 19)
    assert mode_of(lowered) == older
    np.testing.assert_allclose(run(lowered, GRID)[0], run(model, GRID)[0], rtol=1e-5, atol=1e-6)


def test_grid_sample_is_renamed_on_the_way_up_too() -> None:
    model = graph('y = GridSample<mode="bilinear">(x, g)', *SAMPLED, 19)
    raised = at_opset(model, 20)
    assert (mode_of(raised), raised.opset_import[0].version) == ("linear", 20)
    np.testing.assert_allclose(run(raised, GRID)[0], run(model, GRID)[0], rtol=1e-5, atol=1e-6)


VOLUME = "float[1,3,4,5,6] x, float[1,2,2,2,3] g", "float[1,3,2,2,2] y"
HALF = "float16[1,3,6,6] x", "int8[1,3,6,6] y"
REFUSED = {
    "volumes": ("y = GridSample(x, g)", *VOLUME, 20, 19, "images only, not volumes"),
    "mode wrap": ('y = Pad<mode="wrap">(x, edges)', *MAPS, 19, 18, "its mode cannot be wrap yet"),
    "new coordinates": (
        'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel_symmetric">(x, , factors)',
        *MAPS, 19, 18, "cannot be half_pixel_symmetric yet",
    ),
    "dilated pooling": (
        "y = AveragePool<kernel_shape=[2, 2], dilations=[2, 2]>(x)", *MAPS, 19, 18,
        r"dilations = .*2, 2.* is not there yet",
    ),
    "ceiling": ("y = AveragePool<kernel_shape=[2, 2], ceil_mode=1>(x)", *MAPS, 19, 18, "ceil_mode cannot be 1 yet"),
    "no such operator": ("y = Swish(x)", *MAPS, 24, 23, "there is none yet"),
    "new type": (
        "y = MaxPool<kernel_shape=[2, 2]>(x)", "bfloat16[1,3,6,6] x", "bfloat16[a,b,c,d] y", 22, 21,
        r"does not take tensor\(bfloat16\) yet",
    ),
    "scale of another type": (
        "y = QuantizeLinear(x, step, zero)", *HALF, 23, 21, r"tensor\(float16\) beside tensor\(float\) yet",
    ),
    "type as an attribute": (
        "y = QuantizeLinear<output_dtype=3>(x, step)", "float[1,3,6,6] x", "int8[1,3,6,6] y", 21, 19,
        "output_dtype = 3 is not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_mean_something_else_is_refused_by_the_operators_name(name: str) -> None:
    body, inputs, outputs, before, version, why = REFUSED[name]
    model = made(body, inputs, outputs, before)
    model.graph.node[0].name = "the_node"
    operator = model.graph.node[0].op_type
    with pytest.raises(
        ModelError, match=rf"{operator} `the_node` cannot be written in opset {version}: .*{why}"
    ):
        at_opset(model, version)
    at_opset(model, before + 1)  # and upwards nothing stands in the way


def test_an_attention_that_cannot_be_written_out_is_refused_with_the_rewrites_own_reason() -> None:
    model = graph("y = Attention<softcap=30.0>(x, x, x)", *MAPS, 23)
    with pytest.raises(ModelError, match=r"Attention (.|\n)*there is none yet; it caps the scores"):
        at_opset(model, 19)


@pytest.mark.parametrize("version", [17, 99])
def test_versions_that_are_not_written_are_refused(version: int) -> None:
    with pytest.raises(UsageError, match=rf"opset {version}(.|\n)*18 to"):
        at_opset(graph("y = Neg(x)", *MAPS, 20), version)


def test_the_version_it_has_changes_nothing_and_local_functions_are_refused() -> None:
    model = graph("y = Neg(x)", *MAPS, 20)
    assert at_opset(model, 20) is model
    text = """<ir_version: 8, opset_import: ["": 20, "local": 1]> g (float[2] x) => (float[2] y) { y = local.twice(x) }
              <domain: "local", opset_import: ["": 20]> twice (a) => (b) { b = Add(a, a) }"""
    with pytest.raises(ModelError, match="local functions"):
        at_opset(onnx.parser.parse_model(text), 19)


def fused(path: Path) -> onnx.ModelProto:
    return fuse_model(clean_model(onnx.load(path)).model).model


@pytest.mark.parametrize("path", [VIT, DETR], ids=lambda path: path.stem)
def test_a_fused_network_is_written_for_opset_19_with_the_same_numbers_and_modules(path: Path) -> None:
    model = fused(path)
    assert model.opset_import[0].version == 23
    older = at_opset(model, 19)
    assert older.opset_import[0].version == 19 and ops(older)["Attention"] == 0
    entry = model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in entry.type.tensor_type.shape.dim]
    feeds = {entry.name: np.random.default_rng(0).random(shape, np.float32)}
    for one, other in zip(run(model, feeds), run(older, feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())

    def modules(graph: onnx.ModelProto) -> set[tuple[str, ...]]:
        return {place.path for place in modules_of(graph).places}

    assert modules(older) == modules(model)


def test_tensorrt_compiles_what_was_written_for_an_older_opset() -> None:
    assert compiled(at_opset(fused(VIT), 19), "sm86")
    assert compiled(at_opset(graph("y = GridSample(x, g)", *SAMPLED, 22), 19), "sm86")
