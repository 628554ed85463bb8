"""What a build is told to do: options → the configuration of one TensorRT module, and a record of it in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from vitesse.backends.tensorrt.api import Api, title_of
from vitesse.backends.tensorrt.features import Features
from vitesse.backends.tensorrt.graph_types import GraphTypes
from vitesse.backends.tensorrt.options import BuildOptions, Profile
from vitesse.backends.tensorrt.profiles import profile_text
from vitesse.errors import BackendError, UsageError

if TYPE_CHECKING:
    import tensorrt

NOT_THERE = "not set: this module has no such setting"
_LEVELS = range(6)
_FLAG_OF = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}
# Layers of a weakly typed network that compute nothing, or whose type is what they are for.
_UNBOUND = frozenset({"CONSTANT", "SHAPE", "QUANTIZE", "DEQUANTIZE", "CAST", "ASSERTION", "PLUGIN_V2"})
_FLOATS = frozenset({"FLOAT", "HALF", "BF16"})


class _OldConfig(Protocol):
    max_workspace_size: int


class _Ahead(Protocol):
    """The part of a configuration that builds for other GPUs; the type of `capability` is in such modules only."""

    num_compute_capabilities: int

    def set_compute_capability(self, capability: object, index: int) -> object: ...


def creation_flags(api: Api, features: Features) -> int:
    """Return the flags to make a network with: explicit batch where it must be said, strongly typed where it can."""
    wanted = ["EXPLICIT_BATCH"] * features.explicit_batch + ["STRONGLY_TYPED"] * (
        features.strong_typing == "flag"
    )
    return sum(1 << int(getattr(api.NetworkDefinitionCreationFlag, name)) for name in wanted)


def configure(
    api: Api, features: Features, config: tensorrt.IBuilderConfig, options: BuildOptions
) -> dict[str, str]:
    """Set everything but types, profiles and timing cache; return what was set, in words.

    Raises:
        UsageError: a level outside 0..5.
        BackendError: a GPU that the module cannot build for; the message names those it can.
    """
    settings = _compute_capabilities(api, features, config, options)
    if options.workspace_bytes:
        if features.memory_pools:
            config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        else:
            cast("_OldConfig", config).max_workspace_size = options.workspace_bytes
    settings["workspace"] = f"{options.workspace_bytes} bytes" if options.workspace_bytes else "no limit"
    if options.level is not None:
        if options.level not in _LEVELS:
            raise UsageError(f"builder level {options.level}", expected="0 (fast build) to 5 (fast engine)")
        if features.optimization_level:
            config.builder_optimization_level = options.level
        settings["level"] = str(options.level) if features.optimization_level else NOT_THERE
    if features.detailed_verbosity:
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    settings["layer information"] = "detailed" if features.detailed_verbosity else NOT_THERE
    if options.version_compatible:
        if features.version_compatible:
            config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
        settings["version compatible"] = "yes" if features.version_compatible else NOT_THERE
    return settings


def set_types(
    api: Api,
    features: Features,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    types: GraphTypes,
) -> str:
    """Let the builder compute in the graph's own types, and no others; return how, in words.

    A weakly typed builder chooses types by speed among those it is allowed: it is allowed those of the graph, and each
    layer is bound to the type it has there.

    Raises:
        BackendError: the graph has a type that this module cannot be allowed.
    """
    if features.strong_typing != "absent":
        return "strong: the types of the graph"
    wanted = [_FLAG_OF[kind] for kind in sorted(types.half | types.quantised)]
    lacking = [flag for flag in wanted if flag not in features.precision_flags]
    if lacking:
        raise BackendError(
            f"{title_of(api)} has no {', '.join(lacking)}, which the graph uses",
            expected=f"FP32, {', '.join(features.precision_flags)}",
            fix="build another stage of the run (--stage fp16), or install a newer TensorRT",
        )
    constraint = features.precision_constraints[:1] if wanted else ()
    for flag in (*wanted, *constraint):
        config.set_flag(getattr(api.BuilderFlag, flag))
    bound = sum(map(_bind, _layers(network))) if constraint else 0
    allowed = ", ".join(wanted) or "none"
    return f"weak: allowed {allowed}" + (f"; {constraint[0]}, {bound} layers bound" if constraint else "")


def add_profiles(
    api: Api,
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    profiles: tuple[Profile, ...],
) -> None:
    """Give the configuration its optimisation profiles.

    Raises:
        BackendError: the library does not take one.
    """
    for number, profile in enumerate(profiles, 1):
        made = builder.create_optimization_profile()
        for name, span in profile.inputs.items():
            low, usual, high = (api.Dims(list(shape)) for shape in (span.min, span.opt, span.max))
            made.set_shape(name, low, usual, high)
        if config.add_optimization_profile(made) < 0:
            raise BackendError(
                f"{title_of(api)} does not take profile {number}: {profile_text(profile)}",
                expected="min ≤ opt ≤ max, of inputs of the network",
            )


def _compute_capabilities(
    api: Api, features: Features, config: tensorrt.IBuilderConfig, options: BuildOptions
) -> dict[str, str]:
    wanted = options.compute_capabilities
    offered = features.compute_capabilities
    if not offered and wanted:
        raise BackendError(
            f"{title_of(api)} cannot build for {', '.join(wanted)}",
            expected="no GPU named: it builds for the GPU that is here",
            cause="only TensorRT for RTX builds for GPUs that are elsewhere",
            fix="build on a machine with that GPU, or with --target tensorrt-rtx",
        )
    unknown = [name for name in wanted if name not in offered]
    if unknown:
        raise BackendError(
            f"{title_of(api)} cannot build for {', '.join(unknown)}",
            expected=f"one or more of: {', '.join(offered)}",
            fix="use --target tensorrt for a GPU of a data centre" if "sm90" in unknown else "",
        )
    if not offered:
        return {"built for": "the GPU that is here"}
    ahead, kinds = cast("_Ahead", config), cast("Any", api).ComputeCapability
    ahead.num_compute_capabilities = max(1, len(wanted))
    for index, name in enumerate(wanted or ("current",)):
        ahead.set_compute_capability(getattr(kinds, name.upper()), index)
    return {"built for": ", ".join(wanted) or "the GPU that is here"}


def _layers(network: tensorrt.INetworkDefinition) -> Iterator[tensorrt.ILayer]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _bind(layer: tensorrt.ILayer) -> bool:
    """Bind a layer that computes floating-point numbers to the type of its first output, as the parser found it."""
    if layer.num_outputs < 1 or layer.type.name in _UNBOUND:
        return False
    kind = layer.get_output(0).dtype
    if kind.name not in _FLOATS:
        return False
    layer.precision = kind
    layer.set_output_type(0, kind)
    return True
