"""How execution contexts are made: scratch memory of ours, and what TensorRT for RTX chooses at run time.

Each setting is made only where the module has it; `applied` says in words what was set. TensorRT for RTX compiles its
kernels on the GPU: a runtime cache keeps them beside the plan, so that the next process need not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.driver import Device
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.tensorrt.api import Api
from vitesse.backends.tensorrt.features import Features, features_of
from vitesse.backends.tensorrt.manifest import capability_name
from vitesse.errors import BackendError, StorageError
from vitesse.storage import write_atomically

if TYPE_CHECKING:
    import tensorrt

_DIGEST_BYTES = 32
_WHOLE_GRAPH = "WHOLE_GRAPH_CAPTURE"
# A call with a new shape waits for its own kernels. With LAZY the first calls run slower stand-ins, and what is
# measured then is not what will run.
_SPECIALIZATION = "EAGER"
_USER_MANAGED = "USER_MANAGED"


class _Cache(Protocol):
    """TensorRT for RTX's IRuntimeCache."""

    def deserialize(self, blob: bytes) -> bool: ...

    def serialize(self) -> tensorrt.IHostMemory: ...


class _Config(Protocol):
    """An IRuntimeConfig with what TensorRT for RTX adds to it."""

    cuda_graph_strategy: object
    dynamic_shapes_kernel_specialization_strategy: object

    def create_runtime_cache(self) -> _Cache: ...

    def set_runtime_cache(self, cache: _Cache) -> bool: ...

    def set_execution_context_allocation_strategy(self, strategy: object) -> None: ...


class _OldContext(Protocol):
    """An IExecutionContext before `set_device_memory`."""

    device_memory: int


class RuntimeSettings(Closing):
    """Makes the contexts of one engine, all alike.

    Args:
        plan: the plan file; the runtime cache lies beside it.
        options: `plain` leaves everything at the library's defaults.

    `library_graphs`: the library captures CUDA graphs by itself. `user_scratch`: the contexts come without device
    memory and must be given some with `lend` before they run. `applied`: what was set, in words. `notes`: what went
    wrong without harm, such as a cache that could not be read.
    """

    def __init__(
        self, api: Api, engine: tensorrt.ICudaEngine, options: LoadOptions, *, plan: Path, device: Device
    ) -> None:
        self._engine: tensorrt.ICudaEngine | None = engine
        self._features: Features = features_of(api)
        self.applied: dict[str, str] = {}
        self.notes: list[str] = []
        self.library_graphs = False
        self._cache: _Cache | None = None
        self._cache_path = runtime_cache_path(plan, device)
        self._config: _Config | None = None
        strategy = getattr(getattr(api, "ExecutionContextAllocationStrategy", None), _USER_MANAGED, None)
        if self._features.runtime_config and not options.plain:
            self._config = self._configured(api, options, strategy)
        self._strategy = strategy
        self.user_scratch = not options.plain and (
            strategy is not None or hasattr(engine, "create_execution_context_without_device_memory")
        )
        if self.user_scratch:
            self.applied["scratch memory"] = "one block a session, lent to its contexts"

    def create(self) -> tensorrt.IExecutionContext:
        """Make a context.

        Raises:
            BackendError: the library makes none, most often for want of memory.
        """
        context = self._created()
        if context is None:
            raise BackendError(
                "TensorRT made no execution context",
                expected="memory for one more",
                cause="the device's memory is used up, or another context of this engine holds its only profile",
                fix="fewer streams, or an engine with a profile per stream",
            )
        return context

    def _created(self) -> tensorrt.IExecutionContext | None:
        engine = self._opened()
        if self._config is not None:
            return engine.create_execution_context(
                runtime_config=cast("tensorrt.IRuntimeConfig", self._config)
            )
        if self.user_scratch and self._strategy is not None:
            return engine.create_execution_context(self._strategy)
        if self.user_scratch:
            return engine.create_execution_context_without_device_memory()
        return engine.create_execution_context()

    def scratch_bytes(self) -> int:
        """Return the bytes that a context works in, for the most demanding profile; 0 where it brings its own."""
        if not self.user_scratch:
            return 0
        name = (
            "device_memory_size_v2"
            if hasattr(self._engine, "device_memory_size_v2")
            else "device_memory_size"
        )
        return int(getattr(self._engine, name))

    def lend(self, context: tensorrt.IExecutionContext, address: int, size: int) -> None:
        """Give a context the memory it works in. Contexts that share a block must run one after the other."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            cast("_OldContext", context).device_memory = address

    def close(self) -> None:
        """Write the runtime cache, where there is one; a folder that cannot be written is only noted."""
        cache, self._cache, self._config, self._engine = self._cache, None, None, None
        if cache is None:
            return
        content = bytes(cache.serialize())
        try:
            write_atomically(self._cache_path, hashlib.sha256(content).digest() + content)
        except StorageError as error:
            self.notes.append(f"the runtime cache was not kept: {error.what}")

    def _opened(self) -> tensorrt.ICudaEngine:
        if self._engine is None:
            raise BackendError("this engine is closed", expected="an open one", fix="backend.load(artifact)")
        return self._engine

    def _configured(self, api: Api, options: LoadOptions, strategy: object | None) -> _Config:
        config = cast("_Config", self._opened().create_runtime_config())
        if strategy is not None:
            config.set_execution_context_allocation_strategy(strategy)
        if options.cuda_graph and _WHOLE_GRAPH in self._features.cuda_graph_strategies:
            config.cuda_graph_strategy = _member(api, "CudaGraphStrategy", _WHOLE_GRAPH)
            self.library_graphs = True
            self.applied["CUDA graphs"] = "captured whole by the library, per shape"
        if _SPECIALIZATION in self._features.kernel_specializations:
            config.dynamic_shapes_kernel_specialization_strategy = _member(
                api, "DynamicShapesKernelSpecializationStrategy", _SPECIALIZATION
            )
            self.applied["kernels for new shapes"] = "compiled before the first call with the shape returns"
        if self._features.runtime_cache:
            self._cache = config.create_runtime_cache()
            self._read_cache(self._cache)
            config.set_runtime_cache(self._cache)
        return config

    def _read_cache(self, cache: _Cache) -> None:
        """Load the kernels of earlier processes; like a plan they are code, and are loaded only whole."""
        try:
            kept = self._cache_path.read_bytes()
        except OSError:
            self.applied["runtime cache"] = "begun"
            return
        digest, content = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            self.notes.append(f"the runtime cache {self._cache_path} is damaged and was not used")
        elif not cache.deserialize(content):
            self.notes.append(f"the runtime cache {self._cache_path} is for another GPU, driver or version")
        else:
            self.applied["runtime cache"] = "taken over from an earlier process"
            return
        self.applied["runtime cache"] = "begun anew"


def runtime_cache_path(plan: Path, device: Device) -> Path:
    """Return where the kernels compiled for a plan on such a GPU are kept."""
    return plan.with_name(f"{plan.name}.{capability_name(device.compute_capability)}.cache")


def _member(api: Api, enum: str, name: str) -> object:
    """Return a member of an enumeration that `features_of` found in the module."""
    return getattr(getattr(api, enum), name)
