"""What a model is refused for: where in the network, in whose words, and what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tiny_onnx_qdq as tiny
from tensorrt_surfaces import surface
from vitesse.backends.tensorrt.api import load_api
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.backends.tensorrt.profiles import parse_shapes
from vitesse.errors import BackendError, ModelError

OPTIONS = BuildOptions(parse_shapes("x=1x4..8x4"))
AHEAD = BuildOptions(OPTIONS.profiles, compute_capabilities=("sm86",))


def refused(
    model: onnx.ModelProto | bytes | Path, api: Any = None, options: BuildOptions = OPTIONS
) -> BackendError:
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    with pytest.raises(BackendError) as caught:
        build_plan(api or surface("11.4"), content, options)
    return caught.value


def odd() -> onnx.ModelProto:
    """Two operators nobody has, and one that has a rewrite."""
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], "/encoder/Foo", domain="other"),
        helper.make_node("Gelu", ["a"], ["b"], "/encoder/layers.1/Gelu"),
        helper.make_node("Bar", ["b"], ["y"], "/decoder/Bar", domain="other"),
    ]
    return tiny.model(nodes, opset=20)


@pytest.fixture
def rtx() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    return load_api("tensorrt_rtx")


def test_the_real_parser_tells_every_error_with_its_place(rtx: Any) -> None:
    error = refused(odd(), rtx, AHEAD)
    first, *lines = error.what.splitlines()
    assert first.startswith("tensorrt_rtx 1.") and first.endswith(
        "refuses the model while parsing it: 2 errors"
    )
    assert [line.strip().partition(": ")[0] for line in lines] == [
        "operator Foo, domain 'other', node '/encoder/Foo', of the module encoder",
        "operator Bar, domain 'other', node '/decoder/Bar', of the module decoder",
    ]
    assert all("Plugin not found" in line for line in lines)
    assert error.fix.count("no rewrite of") == 2


def test_an_operator_with_a_rewrite_names_it_and_a_parser_without_names_gives_the_number() -> None:
    api: Any = surface("8.6")
    api.OnnxParser.errors = [SimpleNamespace(desc=lambda: "no importer", node=lambda: 1)]
    error = refused(odd(), api)
    assert error.what == (
        "tensorrt 8.6 refuses the model while parsing it: 1 error\n"
        "    operator Gelu, domain 'ai.onnx', node '/encoder/layers.1/Gelu', of the module encoder.layers.1: "
        "no importer"
    )
    assert error.fix == "--lower gelu writes Gelu in more basic operators"


def test_a_number_within_a_function_is_not_taken_for_one_of_the_graph() -> None:
    api: Any = surface("10.13")
    inside = SimpleNamespace(
        desc=lambda: "no importer", node=lambda: 1, node_name=lambda: "", node_operator=lambda: "Einsum"
    )
    api.OnnxParser.errors = [inside, SimpleNamespace(desc=lambda: "the whole", node=lambda: -1)]
    error = refused(odd(), api)
    assert error.what.splitlines()[1:] == ["    no importer", "    the whole"]
    assert error.fix == ""


@pytest.mark.parametrize("kind", ["noise", "truncated", "empty", "absent"])
def test_what_is_no_onnx_is_refused_before_the_library_takes_it_for_an_empty_network(
    kind: str, tmp_path: Path
) -> None:
    content = {
        "noise": b"xx" * 40,
        "truncated": tiny.product("fp32").SerializeToString()[:-20],
        "empty": b"",
        "absent": tmp_path / "absent.onnx",
    }[kind]
    error = refused(content)
    assert error.what.endswith("cannot be read as ONNX")
    assert "truncated or damaged" in error.cause


def test_the_library_really_takes_noise_for_an_empty_network(rtx: Any) -> None:
    """The reason for looking first; when this fails, the look has become unnecessary."""
    from vitesse.backends.tensorrt.logger import Log

    log = Log(rtx)
    builder = rtx.Builder(log.native)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, log.native)
    assert parser.parse(b"xx" * 40) and network.num_layers == 0


@pytest.mark.parametrize(
    ("model", "has"),
    [
        (tiny.product("uint8", zero_point=128), "UINT8 values"),
        (tiny.product("uint8"), "UINT8 values"),
        (tiny.product("int8", zero_point=3), "a zero point that is not 0"),
    ],
    ids=["uint8", "uint8 with zero point 0", "asymmetric int8"],
)
def test_quantisation_for_cpus_is_refused_with_its_cause(model: onnx.ModelProto, has: str) -> None:
    error = refused(model)
    assert error.what == (
        "tensorrt 11.4 cannot run the quantisation of the model: operator QuantizeLinear, domain 'ai.onnx', "
        f"node '/encoder/layers.0/quantised', of the module encoder.layers.0 has {has}, and 1 more like it"
    )
    assert error.expected == "activations quantised as INT8 with zero point 0"
    assert error.cause == "the graph was quantised for CPUs"
    assert error.fix == "vitesse quantize MODEL --activations int8"


def test_uint8_without_a_zero_point_is_found_too() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], "dq"),
    ]
    model = tiny.model(nodes, [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])])
    assert "node 'q' has UINT8 values" in refused(model).what


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_symmetric_quantisation_passes(kind: str) -> None:
    assert build_plan(surface("11.4"), tiny.product(kind).SerializeToString(), OPTIONS).precision == kind


def test_turing_without_fp32_products_is_explained(rtx: Any) -> None:
    turing = BuildOptions(OPTIONS.profiles, compute_capabilities=("sm75",))
    error = refused(tiny.product("fp32"), rtx, turing)
    assert "cannot build the model for sm75" in error.what
    assert "FP32 GEMM is not supported" in error.what
    assert error.cause.startswith(
        "TensorRT for RTX has no FP32 matrix product for Turing (compute capability 7.5)"
    )
    assert "'/encoder/layers.0/product', of the module encoder.layers.0" in error.cause
    assert error.fix == "build the FP16 graph: --stage fp16"
    assert build_plan(rtx, tiny.product("fp16").SerializeToString(), turing).precision == "fp16"


@pytest.mark.parametrize(
    ("said", "cause", "fix"),
    [
        ("cudaError 35: CUDA driver version is insufficient", "there is no GPU here", "tensorrt-rtx:sm86"),
        ("cudaError 100: no CUDA-capable device is detected", "there is no GPU here", "tensorrt-rtx:sm86"),
        ("Unable to load library: libnvinfer_lean.so.1", "a lean runtime", "without version compatibility"),
        ("something about /encoder/Cast and Cast", "", ""),
    ],
)
def test_failures_in_the_librarys_words_get_their_meaning(said: str, cause: str, fix: str) -> None:
    api: Any = surface("11.4")
    api.Builder.refusal = said
    error = refused(tiny.product("fp32"), api)
    assert said in error.what
    assert cause in error.cause and fix in error.fix


def beside(tmp_path: Path) -> Path:
    model = tiny.product("fp32")
    weight = next(one for one in model.graph.initializer if one.name == "w")
    values = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


def test_weights_beside_the_file_are_read_from_there(rtx: Any, tmp_path: Path) -> None:
    made = build_plan(rtx, beside(tmp_path), AHEAD)
    assert made.plan[:4] == b"vtrt"


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    path = beside(tmp_path)
    model = onnx.load(path, load_external_data=False)
    entry = next(one for one in model.graph.initializer if one.name == "w").external_data[0]
    entry.value = "../elsewhere.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="points outside the model's folder"):
        build_plan(surface("11.4"), path, OPTIONS)


def test_bytes_whose_weights_lie_elsewhere_ask_for_the_path(tmp_path: Path) -> None:
    error = refused(beside(tmp_path).read_bytes())
    assert error.what == "the weight 'w' of the model lies outside it"
    assert error.fix == "give the path instead of the bytes"
