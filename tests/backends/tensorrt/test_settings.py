"""What each kind of module is told, against recorded surfaces: a module has what its version has, and nothing more."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

import tiny_onnx_qdq as tiny
from tensorrt_surfaces import DataType, Layer, LayerType, surface
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.backends.tensorrt.profiles import parse_shapes
from vitesse.errors import BackendError, UsageError

PROFILES = parse_shapes("x=1x4..2x4..8x4")
HALF_NETWORK = (
    (LayerType.CONVOLUTION, DataType.HALF),
    (LayerType.MATRIX_MULTIPLY, DataType.FLOAT),
    (LayerType.CONSTANT, DataType.FLOAT),
    (LayerType.SHAPE, DataType.INT64),
    (LayerType.QUANTIZE, DataType.INT8),
)


def built(version: str, model: onnx.ModelProto, **options: Any) -> tuple[Any, Any]:
    """The recording builder, and the plan."""
    api: Any = surface(version)
    api.Builder.layers = [Layer(*one) for one in HALF_NETWORK]
    made = build_plan(api, model.SerializeToString(), BuildOptions(profiles=PROFILES, **options))
    (builder,) = api.Builder.made
    return builder, made


def test_8_6_allows_the_types_of_the_graph_and_binds_what_computes() -> None:
    builder, made = built("8.6", tiny.product("fp16"))
    assert builder.network.flags == 1  # EXPLICIT_BATCH is bit 0
    assert builder.config.flags == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert [layer.bound for layer in builder.network.layers] == [
        DataType.HALF,
        DataType.FLOAT,
        None,
        None,
        None,
    ]
    assert builder.network.layers[1].precision is DataType.FLOAT
    assert made.settings["types"] == "weak: allowed FP16; OBEY_PRECISION_CONSTRAINTS, 2 layers bound"
    assert (made.plan, made.version, made.precision) == (b"plan", "8.6", "fp16")


def test_8_6_allows_nothing_for_fp32() -> None:
    builder, made = built("8.6", tiny.product("fp32"))
    assert builder.config.flags == []
    assert [layer.bound for layer in builder.network.layers] == [None] * 5
    assert made.settings["types"] == "weak: allowed none"


def test_quantised_graphs_need_the_int8_flag_and_no_calibrator() -> None:
    builder, made = built("8.6", tiny.product("int8"))
    assert builder.config.flags == ["INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert not hasattr(builder.config, "int8_calibrator")
    assert made.precision == "int8"
    builder, made = built("8.6", tiny.product("int8+fp16"))
    assert builder.config.flags == ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]


@pytest.mark.parametrize(("kind", "flag"), [("bf16", "BF16"), ("fp8", "FP8")])
def test_a_type_that_the_module_lacks_is_refused(kind: str, flag: str) -> None:
    with pytest.raises(BackendError, match=f"tensorrt 8.6 has no {flag}, which the graph uses") as caught:
        built("8.6", tiny.product(kind))
    assert caught.value.expected == "FP32, FP16, INT8"


@pytest.mark.parametrize(("version", "flags"), [("10.13", 0b11), ("11.4", 0)])
@pytest.mark.parametrize("kind", ["fp16", "int8", "bf16", "fp8+fp16"])
def test_from_10_on_the_network_is_strongly_typed_and_no_flag_is_set(
    version: str, flags: int, kind: str
) -> None:
    builder, made = built(version, tiny.product(kind))
    assert builder.network.flags == flags
    assert builder.config.flags == []
    assert made.settings["types"] == "strong: the types of the graph"
    assert made.precision == kind
    assert [layer.bound for layer in builder.network.layers] == [None] * 5


def test_before_8_4_scratch_memory_is_an_attribute_and_the_engine_is_serialised() -> None:
    builder, made = built(
        "8.2", tiny.product("fp32"), workspace_bytes=1 << 20, level=3, version_compatible=True
    )
    assert builder.config.max_workspace_size == 1 << 20
    assert made.plan == b"plan"
    lacking = "not set: this module has no such setting"
    assert made.settings["level"] == made.settings["version compatible"] == lacking
    assert made.settings["layer information"] == lacking


def test_memory_level_verbosity_and_compatibility_are_set_where_they_are() -> None:
    builder, made = built(
        "10.13", tiny.product("fp32"), workspace_bytes=4 << 30, level=5, version_compatible=True
    )
    assert builder.config.pools == {"WORKSPACE": 4 << 30}
    assert builder.config.builder_optimization_level == 5
    assert builder.config.profiling_verbosity.name == "DETAILED"
    assert builder.config.flags == ["VERSION_COMPATIBLE"]
    assert made.settings["workspace"] == "4294967296 bytes"
    assert made.settings["version compatible"] == "yes"


def test_without_a_limit_the_library_keeps_its_own() -> None:
    builder, made = built("11.4", tiny.product("fp32"))
    assert builder.config.pools == {} and builder.config.builder_optimization_level == 3
    assert made.settings["workspace"] == "no limit"
    assert "level" not in made.settings


def test_a_level_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="builder level 6"):
        built("11.4", tiny.product("fp32"), level=6)


def test_every_profile_reaches_the_configuration() -> None:
    api: Any = surface("11.4")
    two = parse_shapes("x=1x4..2x4..8x4;x=9x4..16x4")
    build_plan(api, tiny.product("fp32").SerializeToString(), BuildOptions(profiles=two))
    small, large = api.Builder.made[0].config.profiles
    assert small.shapes == {"x": ((1, 4), (2, 4), (8, 4))}
    assert large.shapes == {"x": ((9, 4), (16, 4), (16, 4))}


def test_a_profile_that_the_library_refuses_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    api: Any = surface("11.4")
    monkeypatch.setattr(api.IBuilderConfig, "add_optimization_profile", lambda config, profile: -1)
    with pytest.raises(BackendError, match=r"does not take profile 1: x=1x4\.\.2x4\.\.8x4"):
        build_plan(api, tiny.product("fp32").SerializeToString(), BuildOptions(profiles=PROFILES))


@pytest.mark.parametrize("version", ["8.6", "10.13", "11.4"])
def test_an_enterprise_module_builds_for_no_gpu_that_is_elsewhere(version: str) -> None:
    with pytest.raises(BackendError, match=f"tensorrt {version} cannot build for sm86") as caught:
        built(version, tiny.product("fp32"), compute_capabilities=("sm86",))
    assert "only TensorRT for RTX" in caught.value.cause
    assert "--target tensorrt-rtx" in caught.value.fix


def test_an_unexplained_failure_says_that_it_is_one() -> None:
    api: Any = surface("8.2")
    api.Builder._built = lambda builder: None
    with pytest.raises(BackendError, match="for the GPU that is here: it gave no reason"):
        build_plan(api, tiny.product("fp32").SerializeToString(), BuildOptions(profiles=PROFILES))
