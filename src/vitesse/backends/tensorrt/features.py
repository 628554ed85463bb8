"""What a TensorRT module can do, found by looking for names in it, never by its version number.

Published pages disagree with released modules about what was removed when, and TensorRT for RTX counts its versions
otherwise; only the module itself tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitesse.backends.tensorrt.api import Api

_PRECISION_FLAGS = ("FP16", "INT8", "BF16", "FP8")
# The stricter one comes first: it fails a build that would compute in another type, the other one warns.
_CONSTRAINT_FLAGS = ("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS")
_NO_TARGETS = frozenset({"NONE", "CURRENT"})


@dataclass(frozen=True)
class Features:
    """Facts about one module.

    Args:
        strong_typing: "always", "flag" (a network is strongly typed when it is made with a flag), or "absent".
        explicit_batch: networks must be made with the flag of that name, or may be.
        precision_flags: which of FP16, INT8, BF16, FP8 the builder of a weakly typed network can be allowed.
        precision_constraints: flags that bind layers to their types, the stricter one first.
        memory_pools: scratch memory is a pool; otherwise `max_workspace_size`.
        build_serialized_network: builds bytes; otherwise an engine that is serialised afterwards.
        optimization_level: the effort of the builder can be set, 0 to 5.
        detailed_verbosity: the engine can keep the detailed information of its layers.
        compute_capabilities: GPUs that it can build for without having them, such as "sm86".
        progress_monitor: tells how far a build is, and can stop it.
        timing_cache: measured tactics can be kept. (TensorRT for RTX has the calls, and warns that they do nothing.)
        version_compatible: engines for other versions of the same major release.
        hardware_compatibility: levels such as "AMPERE_PLUS".
        runtime_config, runtime_cache: contexts are made with settings; kernels compiled on the GPU are kept.
        engine_validity: a plan can be asked whether it runs here.
        cuda_graph_strategies, kernel_specializations: what TensorRT for RTX does by itself while it runs.
    """

    strong_typing: Literal["always", "flag", "absent"]
    explicit_batch: bool
    precision_flags: tuple[str, ...]
    precision_constraints: tuple[str, ...]
    memory_pools: bool
    build_serialized_network: bool
    optimization_level: bool
    detailed_verbosity: bool
    compute_capabilities: tuple[str, ...]
    progress_monitor: bool
    timing_cache: bool
    version_compatible: bool
    hardware_compatibility: tuple[str, ...]
    runtime_config: bool
    runtime_cache: bool
    engine_validity: bool
    cuda_graph_strategies: tuple[str, ...]
    kernel_specializations: tuple[str, ...]


def features_of(api: Api) -> Features:
    """Look at a module; nothing is created or called."""
    precision = _members(api.BuilderFlag, _PRECISION_FLAGS)
    return Features(
        strong_typing=_typing(api, precision),
        explicit_batch=hasattr(api.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"),
        precision_flags=precision,
        precision_constraints=_members(api.BuilderFlag, _CONSTRAINT_FLAGS),
        memory_pools=hasattr(api.IBuilderConfig, "set_memory_pool_limit"),
        build_serialized_network=hasattr(api.Builder, "build_serialized_network"),
        optimization_level=hasattr(api.IBuilderConfig, "builder_optimization_level"),
        detailed_verbosity=hasattr(api.IBuilderConfig, "profiling_verbosity"),
        compute_capabilities=_compute_capabilities(api),
        progress_monitor=hasattr(api, "IProgressMonitor") and hasattr(api.IBuilderConfig, "progress_monitor"),
        timing_cache=hasattr(api.IBuilderConfig, "create_timing_cache"),
        version_compatible=hasattr(api.BuilderFlag, "VERSION_COMPATIBLE"),
        hardware_compatibility=_enum(api, "HardwareCompatibilityLevel", except_for=frozenset({"NONE"})),
        runtime_config=hasattr(api.ICudaEngine, "create_runtime_config"),
        runtime_cache=hasattr(api, "IRuntimeCache"),
        engine_validity=hasattr(api.Runtime, "get_engine_validity"),
        cuda_graph_strategies=_enum(api, "CudaGraphStrategy"),
        kernel_specializations=_enum(api, "DynamicShapesKernelSpecializationStrategy"),
    )


def _typing(api: Api, precision_flags: tuple[str, ...]) -> Literal["always", "flag", "absent"]:
    """Where no precision can be allowed, the graph alone decides, whether or not the flag is still accepted."""
    if not precision_flags:
        return "always"
    return "flag" if hasattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else "absent"


def _compute_capabilities(api: Api) -> tuple[str, ...]:
    if not hasattr(api.IBuilderConfig, "set_compute_capability"):
        return ()
    return tuple(name.lower() for name in _enum(api, "ComputeCapability", except_for=_NO_TARGETS))


def _members(enum: object, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if hasattr(enum, name))


def _enum(api: Api, name: str, except_for: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Names of the members of an enumeration that not every module has, as ordered there."""
    members = getattr(getattr(api, name, None), "__members__", {})
    return tuple(member for member in members if member not in except_for)
