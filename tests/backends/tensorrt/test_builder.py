"""Real builds with TensorRT for RTX, which needs no GPU for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

import fashion
import tiny_onnx_qdq as tiny
from tensorrt_surfaces import surface
from vitesse.backends.tensorrt.api import load_api
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan
from vitesse.backends.tensorrt.profiles import default_profiles, parse_shapes
from vitesse.errors import BackendError, UsageError
from vitesse.sources.signature import graph_inputs

PLAN = b"vtrt"


@pytest.fixture(scope="module")
def rtx() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    return load_api("tensorrt_rtx")


@cache
def sm86(model: Path) -> BuiltPlan:
    """FP32 with a batch of 1 to 8."""
    profiles = default_profiles(graph_inputs(onnx.load(model)), (1, 1, 8))
    return build_plan(
        load_api("tensorrt_rtx"), model, BuildOptions(profiles, compute_capabilities=("sm86",), level=2)
    )


@pytest.mark.parametrize("model", [fashion.VIT, fashion.DETR], ids=["vit_fashion", "detr_fashion"])
def test_a_trained_model_is_built_for_a_gpu_that_is_not_here(rtx: Any, model: Path) -> None:
    made = sm86(model)
    assert made.plan[:4] == PLAN
    fp32 = 4 * sum(math.prod(one.dims) for one in onnx.load(model).graph.initializer)
    assert 0.9 * fp32 < len(made.plan) < 2 * fp32
    assert (made.version, made.precision) == (rtx.__version__, "fp32")
    (profile,) = made.profiles
    (span,) = profile.inputs.values()
    assert (span.min[0], span.opt[0], span.max[0]) == (1, 1, 8)
    assert made.seconds > 0
    assert made.settings == {
        "built for": "sm86",
        "workspace": "no limit",
        "level": "2",
        "layer information": "detailed",
        "types": "strong: the types of the graph",
    }
    assert made.layers == ""  # an engine for another GPU cannot be opened here


def test_two_profiles_make_another_engine_that_keeps_both(rtx: Any) -> None:
    profiles = parse_shapes("images=1x3x56x56;images=2x3x56x56..8x3x56x56")
    made = build_plan(rtx, fashion.VIT, BuildOptions(profiles, compute_capabilities=("sm86",)))
    assert made.profiles == profiles
    assert made.plan[:4] == PLAN and made.plan != sm86(fashion.VIT).plan


def test_one_plan_serves_several_gpus(rtx: Any) -> None:
    profiles = parse_shapes("x=1x4..8x4")
    options = BuildOptions(profiles, compute_capabilities=("sm80", "sm86", "sm89", "sm120"))
    made = build_plan(rtx, tiny.product("fp16").SerializeToString(), options)
    assert made.settings["built for"] == "sm80, sm86, sm89, sm120"
    assert made.plan[:4] == PLAN


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8", "int8+fp16", "fp8+fp16"])
def test_each_precision_of_a_graph_is_the_engines(rtx: Any, kind: str) -> None:
    options = BuildOptions(parse_shapes("x=1x4..8x4"), compute_capabilities=("sm89",))
    made = build_plan(rtx, tiny.product(kind).SerializeToString(), options)
    assert (made.precision, made.plan[:4]) == (kind, PLAN)


def test_a_gpu_that_rtx_does_not_know_is_refused_with_those_it_does(rtx: Any) -> None:
    options = BuildOptions(parse_shapes("x=1x4..8x4"), compute_capabilities=("sm86", "sm90"))
    with pytest.raises(BackendError, match="cannot build for sm90") as caught:
        build_plan(rtx, tiny.product("fp32").SerializeToString(), options)
    assert "sm75, sm80, sm86, sm89, sm120" in caught.value.expected
    assert "--target tensorrt" in caught.value.fix


def test_a_free_dimension_without_a_profile_is_our_error_before_the_librarys(rtx: Any) -> None:
    with pytest.raises(
        UsageError, match="no optimisation profile for the free dimensions of images"
    ) as caught:
        build_plan(rtx, fashion.VIT, BuildOptions(compute_capabilities=("sm86",)))
    assert '--shapes "images=1x3x56x56..1x3x56x56..8x3x56x56"' in caught.value.fix


def test_fixed_shapes_need_no_profile(rtx: Any) -> None:
    model = tiny.product("fp32")
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 2
    made = build_plan(rtx, model.SerializeToString(), BuildOptions(compute_capabilities=("sm86",)))
    assert made.profiles == () and made.plan[:4] == PLAN


def test_a_verbose_build_keeps_the_librarys_whole_log(rtx: Any) -> None:
    options = BuildOptions(parse_shapes("x=1x4..8x4"), compute_capabilities=("sm86",), verbose=True)
    made = build_plan(rtx, tiny.product("fp32").SerializeToString(), options)
    assert any(line.startswith("INFO: ") for line in made.log)
    assert any(line.startswith("VERBOSE: ") for line in made.log)


def test_version_compatible_engines_need_a_part_that_rtx_lacks(rtx: Any) -> None:
    options = BuildOptions(
        parse_shapes("x=1x4..8x4"), compute_capabilities=("sm86",), version_compatible=True
    )
    try:
        made = build_plan(rtx, tiny.product("fp32").SerializeToString(), options)
    except BackendError as error:
        assert "lean runtime" in error.cause
    else:
        assert made.settings["version compatible"] == "yes"


def test_a_second_module_is_used_beside_the_real_one_without_confusion(rtx: Any) -> None:
    fake: Any = surface("10.13")
    content = tiny.product("fp16").SerializeToString()
    profiles = parse_shapes("x=1x4..8x4")
    plans: list[Callable[[], BuiltPlan]] = [
        lambda: build_plan(fake, content, BuildOptions(profiles)),
        lambda: build_plan(rtx, content, BuildOptions(profiles, compute_capabilities=("sm86",))),
    ]
    for order in (plans, plans[::-1]):
        made = {built.version: built.plan[:4] for built in (build() for build in order)}
        assert made == {"10.13": b"plan", rtx.__version__: PLAN}
