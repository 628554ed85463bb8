"""ONNX → serialised engine: one path for every TensorRT, which asks the module what it has."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, cast

import onnx

from vitesse.backends.tensorrt.api import Api, title_of, version_of
from vitesse.backends.tensorrt.features import Features, features_of
from vitesse.backends.tensorrt.graph_types import graph_types
from vitesse.backends.tensorrt.layers import inspect
from vitesse.backends.tensorrt.logger import Log
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan
from vitesse.backends.tensorrt.parsing import check_quantisation, name_of, not_built, parse, read_graph
from vitesse.backends.tensorrt.profiles import check_profiles
from vitesse.backends.tensorrt.progress import interruptible, monitor
from vitesse.backends.tensorrt.settings import NOT_THERE, add_profiles, configure, creation_flags, set_types
from vitesse.backends.tensorrt.timing_cache import TimingCache, save_timing_cache, use_timing_cache
from vitesse.progress import Progress, Silent
from vitesse.sources.signature import graph_inputs

if TYPE_CHECKING:
    import tensorrt


class _OldBuilder(Protocol):
    def build_engine(self, network: object, config: object) -> tensorrt.ICudaEngine | None: ...


def build_plan(
    api: Api, model: Path | bytes, options: BuildOptions, progress: Progress | None = None
) -> BuiltPlan:
    """Build the engine of a model.

    The types of the graph are the types of the engine: networks are strongly typed where the module has that, and
    bound to the graph's types where it does not. INT8 and FP8 come as Q/DQ only; nothing is calibrated here.

    Args:
        model: an ONNX file, whose weights may lie beside it, or its bytes.
        progress: one stage of 100 steps.

    Raises:
        UsageError: the profiles do not fit the model, or there are none and a dimension is free.
        BackendError: the library refuses the model, the options or the GPU; says where and what to do.
        KeyboardInterrupt: Ctrl-C; heard between two steps of the library, and a second one kills the process.
    """
    start = perf_counter()
    name, title = name_of(model), title_of(api)
    graph = read_graph(model, name)
    check_quantisation(graph, name, title)
    check_profiles(graph_inputs(graph), options.profiles)
    log = Log(api, verbose=options.verbose)
    build = _Build(api, features_of(api), model, graph, options, progress or Silent(), log)
    try:
        # Parsing, too: a KeyboardInterrupt that Python raises within a callback of the library is swallowed there.
        made = interruptible(build.run, build.stop)
        layers = "" if options.compute_capabilities else _layers(api, made.plan, log)
        return replace(made, seconds=perf_counter() - start, layers=layers, log=log.lines)
    finally:
        log.clear()


@dataclass
class _Build:
    """One build: what it works with, and the event that stops it."""

    api: Api
    features: Features
    model: Path | bytes
    graph: onnx.ModelProto
    options: BuildOptions
    progress: Progress
    log: Log
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> BuiltPlan:
        """Parse, configure and build."""
        api, features, options = self.api, self.features, self.options
        builder = api.Builder(self.log.native)
        network = builder.create_network(creation_flags(api, features))
        config = builder.create_builder_config()
        settings = configure(api, features, config, options)
        parser = parse(api, network, self.model, self.graph, self.log)
        types = graph_types(self.graph)
        settings["types"] = set_types(api, features, network, config, types)
        add_profiles(api, builder, config, options.profiles)
        cache = self._timing_cache(config)
        goal = f"for {settings['built for']}"
        self.progress.stage("build", f"{types.precision} engine {goal}", 100)
        if features.progress_monitor:
            config.progress_monitor = monitor(cast("Any", api).IProgressMonitor, self.progress, self.stop)
        plan = _serialised(features, builder, network, config)
        del parser  # until here it owned weights of the network
        if plan is None:
            raise not_built(title_of(api), name_of(self.model), goal, self.graph, self.log)
        if cache is not None:
            settings["timing cache"] = save_timing_cache(config, cache)
        elif options.timing_cache is not None:
            settings["timing cache"] = NOT_THERE
        return BuiltPlan(plan, version_of(api), types.precision, 0.0, options.profiles, settings=settings)

    def _timing_cache(self, config: tensorrt.IBuilderConfig) -> TimingCache | None:
        path = self.options.timing_cache
        return None if path is None or not self.features.timing_cache else use_timing_cache(config, path)


def _serialised(
    features: Features,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
) -> bytes | None:
    """Return the plan, or None where the library gave none and logged why."""
    if features.build_serialized_network:
        memory: tensorrt.IHostMemory | None = builder.build_serialized_network(network, config)
    else:
        engine = cast("_OldBuilder", builder).build_engine(network, config)
        memory = None if engine is None else engine.serialize()
    return None if memory is None else bytes(memory)


def _layers(api: Api, plan: bytes, log: Log) -> str:
    """Ask the engine for its layers; it must be loaded for that, which only the GPU it was built for can."""
    runtime = api.Runtime(log.native)
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    return "" if engine is None else inspect(api, engine)
