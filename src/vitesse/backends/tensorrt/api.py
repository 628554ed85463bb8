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

    Builder: type[tensorrt.Builder]
    BuilderFlag: type[tensorrt.BuilderFlag]
    NetworkDefinitionCreationFlag: type[tensorrt.NetworkDefinitionCreationFlag]
    IBuilderConfig: type[tensorrt.IBuilderConfig]
    OnnxParser: type[tensorrt.OnnxParser]
    ILogger: type[tensorrt.ILogger]
    Dims: type[tensorrt.Dims]
    DataType: type[tensorrt.DataType]
    MemoryPoolType: type[tensorrt.MemoryPoolType]
    ProfilingVerbosity: type[tensorrt.ProfilingVerbosity]
    LayerInformationFormat: type[tensorrt.LayerInformationFormat]
    Runtime: type[tensorrt.Runtime]
    ICudaEngine: type[tensorrt.ICudaEngine]
    IExecutionContext: type[tensorrt.IExecutionContext]
    TensorIOMode: type[tensorrt.TensorIOMode]


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


def title_of(api: Api) -> str:
    """Return name and version for messages, such as `tensorrt_rtx 1.7.1.116`."""
    return f"{getattr(api, '__name__', 'tensorrt')} {version_of(api)}"


def version_of(api: Api) -> str:
    """Return the version of the library."""
    return str(getattr(api, "__version__", "of unknown version"))
