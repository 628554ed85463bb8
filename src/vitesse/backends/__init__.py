"""The runtimes, as a table of strings: naming one loads it, listing them loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vitesse.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from vitesse.backends.protocol import Availability, Backend


@dataclass(frozen=True)
class Entry:
    """Where a runtime is wrapped, the package it needs, and how to install that."""

    module: str
    name: str
    package: str
    pip: str


TABLE: Mapping[str, Entry] = {
    "onnxruntime": Entry(
        "vitesse.backends.onnxruntime", "OnnxRuntimeBackend", "onnxruntime", "pip install onnxruntime"
    ),
    "openvino": Entry(
        "vitesse.backends.openvino", "OpenVinoBackend", "openvino", "pip install 'vitesse[openvino]'"
    ),
}

# The order is the order of trying; the first is always installed, as a dependency of the package.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "openvino"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}


def backend(name: str) -> Backend:
    """Import and return a runtime.

    Raises:
        UsageError: no runtime of that name is wrapped; the message lists those that are.
        MissingExtra: its package is absent or does not load; the message has the pip line.
    """
    entry = TABLE.get(name)
    if entry is None:
        raise UsageError(f"unknown backend {name!r}", expected=f"one of: {', '.join(TABLE)}")
    if find_spec(entry.package) is None:
        raise MissingExtra(
            f"{entry.package} is not installed", expected=f"it, for the backend {name!r}", fix=entry.pip
        )
    try:
        module = import_module(entry.module)
    except ImportError as error:
        raise MissingExtra(
            f"{entry.package} is installed but does not load: {error}",
            cause="a missing system library, or a build for another platform or Python",
            fix=entry.pip.replace("pip install", "pip install --force-reinstall"),
        ) from error
    made: Backend = getattr(module, entry.name)()
    return made


def available() -> dict[str, Availability]:
    """Probe every wrapped runtime; never raises. What does not work here says why and how to get it."""
    from vitesse.backends.protocol import Availability

    rows: dict[str, Availability] = {}
    for name in TABLE:
        try:
            rows[name] = backend(name).probe()
        except MissingExtra as error:
            rows[name] = Availability(False, reason=error.what, fix=error.fix)
        except Exception as error:  # a diagnosis must outlive whatever a broken installation raises
            rows[name] = Availability(False, reason=f"{type(error).__name__}: {error}", fix=TABLE[name].pip)
    return rows


def targets(target: str) -> tuple[str, ...]:
    """Return the backends to try for a target, in order.

    `cpu` stands for every installed CPU runtime; a runtime's own name stands for itself, installed or not.

    Raises:
        UsageError: unknown target; the message lists the known ones.
    """
    if target not in TARGETS:
        raise UsageError(
            f"unknown target {target!r}",
            expected=f"one of: {', '.join(TARGETS)}",
            fix="see `vitesse doctor` for what works here",
        )
    names = TARGETS[target]
    return names if len(names) == 1 else tuple(name for name in names if find_spec(TABLE[name].package))
