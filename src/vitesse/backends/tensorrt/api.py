"""What is used of a TensorRT module, as a type: `tensorrt` and `tensorrt_rtx` are two modules of this one type.

Only what every version from 8.6 on has stands here; what came or went later is looked for in `features.py`. The types
are those of the `tensorrt-stubs` package, which is needed for checking types only.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, cast

from vitesse.backends import TABLE
from vitesse.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    import tensorrt

MODULES = ("tensorrt", "tensorrt_rtx")


class Api(Protocol):
    """A TensorRT module."""

    @property
    def __version__(self) -> str: ...

    @property
    def Builder(self) -> type[tensorrt.Builder]: ...

    @property
    def BuilderFlag(self) -> type[tensorrt.BuilderFlag]: ...

    @property
    def NetworkDefinitionCreationFlag(self) -> type[tensorrt.NetworkDefinitionCreationFlag]: ...

    @property
    def IBuilderConfig(self) -> type[tensorrt.IBuilderConfig]: ...

    @property
    def OnnxParser(self) -> type[tensorrt.OnnxParser]: ...

    @property
    def ILogger(self) -> type[tensorrt.ILogger]: ...

    @property
    def Dims(self) -> type[tensorrt.Dims]: ...

    @property
    def DataType(self) -> type[tensorrt.DataType]: ...

    @property
    def MemoryPoolType(self) -> type[tensorrt.MemoryPoolType]: ...

    @property
    def ProfilingVerbosity(self) -> type[tensorrt.ProfilingVerbosity]: ...

    @property
    def LayerInformationFormat(self) -> type[tensorrt.LayerInformationFormat]: ...

    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...

    @property
    def ICudaEngine(self) -> type[tensorrt.ICudaEngine]: ...

    @property
    def IExecutionContext(self) -> type[tensorrt.IExecutionContext]: ...

    @property
    def TensorIOMode(self) -> type[tensorrt.TensorIOMode]: ...


if TYPE_CHECKING:
    # The type checker compares the whole recorded module with the protocol here.
    _stubs_satisfy_api: Api = tensorrt


def load_api(module: str) -> Api:
    """Import `tensorrt` or `tensorrt_rtx`; both may be loaded in one process.

    Raises:
        UsageError: another name.
        MissingExtra: it is not installed, does not load, or only its type stubs are there.
    """
    if module not in MODULES:
        raise UsageError(f"no TensorRT module is called {module!r}", expected=f"one of: {', '.join(MODULES)}")
    pip = next(entry.pip for entry in TABLE.values() if entry.package == module)
    if find_spec(module) is None:
        raise MissingExtra(f"{module} is not installed", fix=pip)
    try:
        loaded = import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are opened while it is imported
        raise MissingExtra(
            f"{module} is installed but does not load: {error}",
            cause="a missing system library, or a build for another platform or Python",
            fix=pip.replace("pip install", "pip install --force-reinstall"),
        ) from error
    if not hasattr(loaded, "Builder"):
        raise MissingExtra(f"only the type stubs of {module} are installed", expected="the library", fix=pip)
    return cast("Api", loaded)
