"""Recorded surfaces: stand-ins for enterprise TensorRT modules, written down from lists of what each version has.

They have the names that a version has, lack those it lacks, and record what they are told. They are no proof that the
real library does what is recorded here; builds with it were not run.
"""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any, ClassVar

from vitesse.backends.tensorrt.api import Api

_FLAGS = {
    "8.2": "FP16 INT8 TF32",
    "8.6": "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS VERSION_COMPATIBLE",
    "10.13": "FP16 INT8 TF32 BF16 FP8 OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS VERSION_COMPATIBLE",
    "11.4": "TF32 REFIT STRIP_PLAN WEIGHT_STREAMING VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME STRICT_NANS",
}
_CREATION = {
    "8.2": "EXPLICIT_BATCH",
    "8.6": "EXPLICIT_BATCH",
    "10.13": "EXPLICIT_BATCH STRONGLY_TYPED",
    "11.4": "STRONGLY_TYPED",
}
DataType = IntEnum("DataType", "FLOAT HALF BF16 INT8 INT64", start=0)
LayerType = IntEnum("LayerType", "CONVOLUTION MATRIX_MULTIPLY CONSTANT SHAPE QUANTIZE", start=0)


class Logger:
    """The base of a logger."""


class Dims(tuple[int, ...]):
    """A shape."""


class Layer:
    """A layer with one output; `bound` is the type it was bound to."""

    num_outputs = 1

    def __init__(self, kind: LayerType, dtype: DataType) -> None:
        self.type, self._output = kind, SimpleNamespace(dtype=dtype)
        self.precision: DataType | None = None
        self.bound: DataType | None = None

    def get_output(self, index: int) -> Any:
        return self._output

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self.bound = dtype


class Network:
    """Made with flags; its layers are given, not parsed."""

    def __init__(self, flags: int, layers: list[Layer]) -> None:
        self.flags, self.layers, self.num_layers = flags, layers, len(layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class Profile:
    """Records shapes."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, name: str, low: Dims, usual: Dims, high: Dims) -> None:
        self.shapes[name] = (low, usual, high)


class _Config:
    def __init__(self) -> None:
        self.flags: list[str] = []
        self.profiles: list[Profile] = []

    def set_flag(self, flag: IntEnum) -> None:
        self.flags.append(flag.name)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class _OldConfig(_Config):
    max_workspace_size = 0


class _PoolConfig(_Config):
    builder_optimization_level = 3
    profiling_verbosity = None
    cache: object = None

    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[str, int] = {}

    def set_memory_pool_limit(self, pool: IntEnum, size: int) -> None:
        self.pools[pool.name] = size

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return TimingCache(content) if content[:4] in (b"", b"good", b"far ") else None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content.startswith(b"far "):  # of another GPU
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class _MonitoredConfig(_PoolConfig):
    progress_monitor: Any = None


class TimingCache:
    """`good` and one letter a tactic."""

    def __init__(self, content: bytes) -> None:
        self.content = content or b"good"

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        self.content = b"good" + bytes(sorted(set(self.content[4:]) | set(other.content[4:])))
        return True

    def serialize(self) -> bytes:
        return self.content


class Builder:
    """Builds a constant, or nothing when `refusal` is set, which it logs."""

    layers: ClassVar[list[Layer]] = []
    refusal = ""
    made: ClassVar[list[Builder]] = []

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        type(self).made.append(self)

    def create_network(self, flags: int = 0) -> Network:
        self.network = Network(flags, self.layers)
        return self.network

    def create_builder_config(self) -> Any:
        self.config = self.config_class()
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def _built(self) -> bytes | None:
        if not self.refusal:
            return b"plan"
        self.logger.log(SimpleNamespace(name="ERROR"), self.refusal)
        return None


class _NewBuilder(Builder):
    def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
        return self._built()


class _OldBuilder(Builder):
    def build_engine(self, network: Network, config: Any) -> Any:
        built = self._built()
        return None if built is None else SimpleNamespace(serialize=lambda: built)


class OnnxParser:
    """Takes everything, unless `errors` are set."""

    errors: ClassVar[list[Any]] = []

    def __init__(self, network: Network, logger: Any) -> None:
        self.num_errors = len(self.errors)

    def parse(self, model: bytes) -> bool:
        return not self.errors

    def parse_from_file(self, path: str) -> bool:
        return not self.errors

    def get_error(self, index: int) -> Any:
        return self.errors[index]


class Runtime:
    """Loads nothing, as without a GPU."""

    def __init__(self, logger: Any) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> None:
        return None


class _Engine:
    pass


class _ConfigurableEngine:
    def create_runtime_config(self) -> None: ...


class _ProgressMonitor:
    pass


def surface(version: str) -> Api:
    """A fresh module of a version: "8.2", "8.6", "10.13" or "11.4"."""
    old, modern = version == "8.2", version in ("10.13", "11.4")
    config = _OldConfig if old else _MonitoredConfig if modern else _PoolConfig
    builder = type("Builder", (_OldBuilder if old else _NewBuilder,), {"config_class": config, "made": []})
    names: dict[str, Any] = {
        "__name__": "tensorrt",
        "__version__": version,
        "Builder": builder,
        "BuilderFlag": IntEnum("BuilderFlag", _FLAGS[version], start=0),
        "NetworkDefinitionCreationFlag": IntEnum("CreationFlag", _CREATION[version], start=0),
        "IBuilderConfig": config,
        "OnnxParser": type("OnnxParser", (OnnxParser,), {}),
        "ILogger": Logger,
        "Dims": Dims,
        "DataType": DataType,
        "MemoryPoolType": IntEnum("MemoryPoolType", "WORKSPACE"),
        "ProfilingVerbosity": IntEnum("ProfilingVerbosity", "DETAILED"),
        "LayerInformationFormat": IntEnum("LayerInformationFormat", "JSON"),
        "Runtime": Runtime,
        "ICudaEngine": _ConfigurableEngine if modern else _Engine,
    }
    if not old:
        names["HardwareCompatibilityLevel"] = IntEnum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    if modern:
        names["IProgressMonitor"] = _ProgressMonitor
    made: Any = SimpleNamespace(**names)
    return made
