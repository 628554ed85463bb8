"""A FAKE TensorRT module on a fake driver, so that what drives an engine can be tested without a GPU.

Its engines double their first input. It is stricter than the library where the library would be undefined: a
captured graph whose context was changed since, a context without memory to work in, or an address that was never set,
is an error.
It stands for nothing that NVIDIA ships, and says nothing about how that behaves.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from backends.cuda.fake_driver import FakeDriver
from vitesse.backends.cuda.driver import Driver

DataType = Enum("DataType", "FLOAT HALF INT8 INT32 INT64 BOOL UINT8 BF16 FP8")
TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = Enum("TensorLocation", "DEVICE HOST")
Strategy = Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
Specialization = Enum("Specialization", "LAZY EAGER NONE")
ComputeCapability = Enum("ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120")
EngineValidity = Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")
Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

Diagnostics = Enum(
    "Diagnostics",
    {
        "VERSION_MISMATCH": 1,
        "UNSUPPORTED_CC": 2,
        "OLD_CUDA_DRIVER": 4,
        "OLD_CUDA_RUNTIME": 8,
        "INSUFFICIENT_GPU_MEMORY": 16,
        "MALFORMED_ENGINE": 32,
        "CUDA_ERROR": 64,
    },
)

_NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64"}


@dataclass
class Network:
    """What a fake plan holds. `output` is how the output's shape follows: same, inverse (ten less the batch), data."""

    shape: tuple[int, ...] = (-1, 3, 4, 4)
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = (((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4)),)
    dtype: str = "FLOAT"
    output: str = "same"
    location: str = "DEVICE"
    scratch: int = 1000
    fails: str = ""

    def to_bytes(self) -> bytes:
        return b"fake" + json.dumps(asdict(self)).encode()


class WatchedDriver(FakeDriver):
    """Notes which threads have called it: a real driver makes its GPU the current one of those threads alone."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        if name in _CALLS:
            object.__getattribute__(self, "threads").add(threading.get_ident())
        return object.__getattribute__(self, name)

    def check_current(self) -> None:
        """TensorRT works on the current GPU of the thread that calls it."""
        if threading.get_ident() not in self.threads:
            self.misuses.append("TensorRT was called on a thread whose current GPU nobody had set")


_CALLS = frozenset(name for name in vars(Driver) if not name.startswith("_") and name != "device")


@dataclass
class World:
    """What the tests look at: the driver, and everything that was asked of the module."""

    driver: WatchedDriver = field(default_factory=WatchedDriver)
    deserialised: list[bytes] = field(default_factory=list)
    engines: list[Any] = field(default_factory=list)
    made: list[weakref.ref[Any]] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)
    validity: tuple[Any, int] = (EngineValidity.VALID, 0)
    cache_accepted: bool = True
    capturable: bool = True

    @property
    def contexts(self) -> list[Any]:
        """The contexts that are alive, in the order in which they were made."""
        return [context for made in self.made if (context := made()) is not None]


class ILogger:
    def __init__(self) -> None: ...


ILogger.Severity = Severity  # type: ignore[attr-defined]


class Context:
    """An execution context. `version` goes up whenever it is changed, which makes graphs captured before undefined."""

    def __init__(self, engine: Any, *, memory: bool, exclusive: bool) -> None:
        self.engine, self.world, self.network = engine, engine.world, engine.network
        self.world.driver.check_current()
        self._exclusive = exclusive
        taken = {other.active_optimization_profile for other in self.world.contexts} if exclusive else set()
        self.active_optimization_profile = -1 if 0 in taken else 0
        self.version = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = (0, 0) if memory else None
        self.calls: list[str] = []
        if -1 not in self.network.shape:
            self.shapes["images"] = tuple(self.network.shape)
        self.world.made.append(weakref.ref(self))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.calls.append(f"profile {index}")
        taken = {other.active_optimization_profile for other in self.world.contexts if other is not self}
        if self._exclusive and index in taken:
            return False
        self.version += 1
        self.active_optimization_profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(f"shape {tuple(shape)}")
        self.version += 1
        if self.network.profiles:
            low, _, high = self.network.profiles[self.active_optimization_profile]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [] if "images" in self.shapes else ["images"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, *rest = self.shapes["images"]
        if name == "images":
            return (batch, *rest)
        return {"same": (batch, *rest), "inverse": (10 - batch, *rest), "data": (-1, 4)}[self.network.output]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(f"address {name}")
        self.addresses[name] = address
        return address % 4 == 0

    def execute_async_v3(self, stream: int) -> bool:
        self.world.driver.check_current()
        if self.network.fails:
            self.engine.log("ERROR", self.network.fails)
            return False
        if self.scratch is None:
            self.world.driver.misuses.append("a context ran without memory to work in")
            return False
        self.world.driver.kernel(stream, self._doubling(self.version))
        return True

    def _doubling(self, version: int) -> Callable[[], None]:
        driver, scratch = self.world.driver, self.scratch
        dtype = np.dtype(_NUMPY[self.network.dtype])
        source, shape = self.addresses["images"], self.shapes["images"]
        to, made = self.addresses["doubled"], self.get_tensor_shape("doubled")
        context, written = weakref.ref(self), self.network.scratch

        def act() -> None:
            alive = context()
            if alive is None:
                driver.misuses.append("work of a context ran that was destroyed before")
            elif alive.version != version:
                driver.misuses.append("a graph ran whose context was changed after it was captured")
            if scratch and scratch[0]:
                driver.poke(scratch[0], b"\1" * written)
            values = np.frombuffer(driver.peek(source, prod(shape) * dtype.itemsize), dtype)
            driver.poke(to, np.resize(values * dtype.type(2), made).tobytes())

        return act


class NewContext(Context):
    """From 10.1 on."""

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.network.scratch
        self.scratch = (address, size)


class OldContext(Context):
    """Before that: a property that can only be written."""

    def _set(self, address: int) -> None:
        self.scratch = (address, self.network.scratch)

    device_memory = property(None, _set)


class RtxContext(NewContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.world.capturable)


class Engine:
    """What all versions have."""

    context: type[Context] = NewContext
    exclusive = False

    def __init__(self, world: World, network: Network, log: Callable[[str, str], None]) -> None:
        self.world, self.network, self.log = world, network, log
        self.num_io_tensors = 2
        world.engines.append(self)

    def get_tensor_name(self, index: int) -> str:
        return ("images", "doubled")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4) if name == "doubled" and self.network.output == "data" else tuple(self.network.shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.network.dtype]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation[self.network.location if name == "images" else "DEVICE"]

    def create_execution_context(
        self, strategy: Any = Strategy.STATIC, *, runtime_config: Any = None
    ) -> Context:
        if runtime_config is not None:
            strategy = runtime_config.strategy
        made = self.context(self, memory=strategy is not Strategy.USER_MANAGED, exclusive=self.exclusive)
        made.config = runtime_config  # type: ignore[attr-defined]
        return made


class OldEngine(Engine):
    context = OldContext
    exclusive = True

    @property
    def device_memory_size(self) -> int:
        return self.network.scratch

    def create_execution_context_without_device_memory(self) -> Context:
        return self.context(self, memory=False, exclusive=True)


class NewEngine(Engine):
    @property
    def device_memory_size_v2(self) -> int:
        return self.network.scratch

    def create_runtime_config(self) -> Any:
        return Config()


class RtxEngine(NewEngine):
    context = RtxContext

    def create_runtime_config(self) -> Any:
        return RtxConfig(self.world)


class Config:
    strategy: Any = Strategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class RtxConfig(Config):
    cuda_graph_strategy: Any = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy: Any = Specialization.LAZY

    def __init__(self, world: World) -> None:
        self._world = world
        self.cache: Any = None

    def create_runtime_cache(self) -> Any:
        made = Cache(self._world)
        self._world.caches.append(made)
        return made

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class Cache:
    def __init__(self, world: World) -> None:
        self._world = world
        self.loaded = b""

    def deserialize(self, blob: bytes) -> bool:
        if self._world.cache_accepted:
            self.loaded = bytes(blob)
        return self._world.cache_accepted

    def serialize(self) -> bytes:
        return self.loaded + b"kernels;"


def fake_api(world: World, kind: str = "new", *, version: str = "10.13.0", name: str = "tensorrt") -> Any:
    """Make a module: "old" as 8.6 is, "new" as 10.x, "rtx" as TensorRT for RTX; each only as far as it is used."""
    engine = {"old": OldEngine, "new": NewEngine, "rtx": RtxEngine}[kind]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            world.driver.check_current()
            world.deserialised.append(bytes(content))
            if not content.startswith(b"fake"):
                self._logger.log(Severity.ERROR, "magicTag does not match")
                return None
            raw = json.loads(content[4:])
            return engine(
                world, Network(**raw), lambda severity, text: self._logger.log(Severity[severity], text)
            )

    made = SimpleNamespace(
        __name__=name,
        __version__=version,
        ILogger=ILogger,
        Runtime=Runtime,
        ICudaEngine=engine,
        Builder=type("Builder", (), {"build_serialized_network": None}),
        BuilderFlag=Enum("BuilderFlag", "FP16 INT8 TF32"),
        NetworkDefinitionCreationFlag=Enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
        IBuilderConfig=type("IBuilderConfig", (), {}),
    )
    if kind != "old":
        made.ExecutionContextAllocationStrategy = Strategy
    if kind == "rtx":
        made.IBuilderConfig.set_compute_capability = None
        made.IRuntimeCache = Cache
        made.ComputeCapability = ComputeCapability
        made.CudaGraphStrategy = CudaGraphStrategy
        made.DynamicShapesKernelSpecializationStrategy = Specialization
        made.EngineInvalidityDiagnostics = Diagnostics
        Runtime.get_engine_validity = lambda self, content: (world.validity[0], world.validity[1])  # type: ignore[attr-defined]
    return made
