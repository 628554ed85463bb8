"""The settings that `vitesse tune` found for a run, in RUN/tuning.json: one entry for each target and device."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vitesse.environment import describe, usable_cores
from vitesse.errors import RunFolderError
from vitesse.storage import write_atomically

SCHEMA = 1
FILE = "tuning.json"


@dataclass(frozen=True)
class Setting:
    """How to run: images a call, calls at once, CPU threads of each (0 = the runtime's default), CUDA graph or not.

    `cuda_graph` is None on a CPU. The figures are those measured with it: images per second, p99 of a call in
    milliseconds, memory in MB (1e6 bytes); `verdict` is `clean`, or says that the machine was slowed or not watched.
    """

    batch: int
    streams: int
    threads: int = 0
    cuda_graph: bool | None = None
    throughput_per_s: float | None = None
    p99_ms: float | None = None
    memory_mb: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Settings:
    """The setting for short answers and the one for most images per second; None where nothing keeps the limits."""

    latency: Setting | None
    throughput: Setting | None


@dataclass(frozen=True)
class Tuned:
    """One entry of the file.

    Args:
        target: as on the command line. device: the name of the processor or GPU.
        artifact_sha256: of the file that was measured.
        limits: `latency_ms`, `memory_mb`; None = none.
        points, skipped: figures of what was measured, and what was not with the reason.
        memory_model, search: how memory grows; how the search went, such as its distance from the best of the grid.
        environment: as `environment.describe`.
    """

    target: str
    device: str
    artifact_sha256: str
    settings: Settings
    limits: Mapping[str, float | None] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    memory_model: Mapping[str, Any] | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


def save_tuning(run: Path, tuned: Tuned) -> Path:
    """Write an entry into the run's file, in place of an older one for the same target and device.

    Raises:
        RunFolderError: the file that is there cannot be read. StorageError: it cannot be written.
    """
    path = run / FILE
    kept = [
        entry
        for entry in _entries(path)
        if (entry["target"], entry["device"]) != (tuned.target, tuned.device)
    ]
    content = {"schema": SCHEMA, "entries": [*kept, asdict(tuned)]}
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path


def load_tuning(
    run: Path,
    target: str,
    device: str,
    *,
    artifact_sha256: str,
    on_stale: Callable[[str], None] = lambda why: None,
) -> Settings | None:
    """Return the settings for a target on a device, or None: nobody tuned, or they are for something else.

    Args:
        device: the name that the tuning was made under, see `device_name`.
        artifact_sha256: of the file that is about to run.
        on_stale: hears why there are none.
    """
    try:
        entries = [entry for entry in _entries(run / FILE) if entry["target"] == target]
        here = next((entry for entry in entries if entry["device"] == device), None)
        settings = None if here is None else _settings(here["settings"])
    except (RunFolderError, KeyError, TypeError) as error:
        on_stale(f"{run / FILE} cannot be read: {error}")
        return None
    if here is None:
        others = ", ".join(str(entry["device"]) for entry in entries)
        on_stale(
            f"tuned for {others}, not for {device}"
            if others
            else f"not tuned for {target}: run `vitesse tune {run} --target {target}`"
        )
        return None
    if here["artifact_sha256"] != artifact_sha256:
        on_stale(
            f"tuned with the artifact {here['artifact_sha256'][:12]}…, this is {artifact_sha256[:12]}…: "
            f"run `vitesse tune {run} --target {target}` again"
        )
        return None
    return settings


def device_name(device: int | None) -> str:
    """Return the name that settings are kept under: the GPU's, or the processor's with its usable cores.

    Raises:
        BackendError: there is no such GPU.
    """
    if device is None:
        model, cores = describe()["cpu"]["model"] or "unknown processor", usable_cores()
        return f"{model}, {cores} core{'s' * (cores > 1)}"
    # Imported here because only GPUs need it.
    from vitesse.backends.cuda.bindings import cuda_driver

    return cuda_driver(device).device.name


def check_readable(run: Path) -> None:
    """Raise RunFolderError where the run's file is damaged: better before measuring than after."""
    _entries(run / FILE)


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        schema, entries = content["schema"], content["entries"]
        known = all(isinstance(entry["target"], str) and "device" in entry for entry in entries)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"cannot read {path}: {error}",
            expected="the file that `vitesse tune` writes",
            cause="it was edited or cut off",
            fix=f"delete {path} and tune again",
        ) from error
    if schema != SCHEMA or not known:
        raise RunFolderError(
            f"{path} has schema {schema}, this version reads {SCHEMA}",
            fix=f"delete {path} and tune again, or use the version of Vitesse that wrote it",
        )
    return list(entries)


def _settings(raw: Mapping[str, Any]) -> Settings:
    known = {one.name for one in fields(Setting)}
    made = {
        goal: None if value is None else Setting(**{name: value[name] for name in value if name in known})
        for goal, value in raw.items()
    }
    return Settings(made["latency"], made["throughput"])
