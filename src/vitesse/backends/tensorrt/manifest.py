"""What is written beside every engine: what it was built from, with what, for what, and how to build it again.

A plan runs code when it is deserialised. The manifest holds its sha256, so that a plan that was damaged, cut off or
swapped is refused before the library sees one byte of it. The manifest is no signature: who can write both files can
make another plan pass, so that the folder of the engines must be as trusted as the program.

STAGE-HASH.plan               the serialised engine
STAGE-HASH.plan.json          the manifest
STAGE-HASH.plan.layers.json   the library's own layer information, where it gave any
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx

from vitesse._version import __version__
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.cuda.driver import Device
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan, Profile, ShapeRange
from vitesse.errors import BackendError, VitesseError
from vitesse.spec import ModelSpec, spec_from_mapping
from vitesse.storage import sha256_of, write_atomically

SCHEMA = 1
PLAN_SUFFIX = ".plan"
NO_GPU = "no GPU"

# Module of the library → name of the backend that runs its plans.
BACKENDS: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


class ManifestError(BackendError):
    """The manifest of a plan is absent, damaged, or of another schema."""


@dataclass(frozen=True)
class BuiltOn:
    """The machine of the build; without a GPU `gpu` says so and the rest is empty. Versions as "13.0"."""

    gpu: str = NO_GPU
    compute_capability: str = ""
    driver: str = ""
    cuda_runtime: str = ""


@dataclass(frozen=True)
class PlanManifest:
    """Everything that decides whether a plan runs somewhere, and how to build it again.

    Args:
        plan_sha256, plan_bytes: of the plan file.
        module: "tensorrt" or "tensorrt_rtx"; `version` is that of the library which built the plan.
        compute_capabilities: such as ("sm75", "sm86"); empty where the library chose and did not say.
        built_on: the machine of the build.
        onnx_sha256: of the graph file.
        rewritten_from: hash of the file that the graph was rewritten from for this library; "" where it is as it was.
        weights_sha256: of the graph's initialisers alone, whatever they are called (see `weights_sha256`).
        precision: the types of the network's products, such as "int8+fp16".
        profiles: the shapes the plan takes; empty = the graph's own, which are fixed.
        settings: what was set on the builder, in words.
        spec: how the model is fed and read.
        command: repeats the build; "" where it was built by a program.
        version_compatible: other versions of the same major release may run the plan.
        seconds: parsing and building.
        created: UTC, ISO 8601.
        vitesse: version of this package.
    """

    plan_sha256: str
    plan_bytes: int
    module: str
    version: str
    compute_capabilities: tuple[str, ...]
    built_on: BuiltOn
    onnx_sha256: str
    weights_sha256: str
    precision: str
    profiles: tuple[Profile, ...]
    settings: Mapping[str, str]
    spec: ModelSpec
    command: str = ""
    rewritten_from: str = ""
    version_compatible: bool = False
    seconds: float = 0.0
    created: str = ""
    vitesse: str = __version__
    schema: int = field(default=SCHEMA)

    def to_json(self) -> str:
        """Serialise, for a reader and for `read_manifest`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def manifest_path(plan: Path) -> Path:
    """Return where the manifest of a plan lies."""
    return plan.with_name(plan.name + ".json")


def layers_path(plan: Path) -> Path:
    """Return where the layer information of a plan lies, if the library gave any."""
    return plan.with_name(plan.name + ".layers.json")


def keep_plan(
    built: BuiltPlan,
    source: Artifact,
    options: BuildOptions,
    *,
    module: str,
    store: Store,
    command: str = "",
    device: Device | None = None,
) -> Artifact:
    """Write a plan and its manifest into `store`; the manifest last, so that a plan without one was never finished.

    Args:
        source: the ONNX artifact that the plan was built from.
        module: "tensorrt" or "tensorrt_rtx".
        command: what to type to build it again.
        device: the GPU of the build; None = built without one.

    Raises:
        StorageError: the files cannot be written.
    """
    backend = BACKENDS[module]
    # The file's name says for which GPUs it is, and in which types.
    built_for = "-".join(_capabilities(options, device))
    provenance = Provenance(f"{backend}-{built_for}-{built.precision}", source.sha256)
    kept = store.put(built.plan, source.spec, provenance, backend=backend, suffix=PLAN_SUFFIX)
    manifest = PlanManifest(
        plan_sha256=kept.sha256,
        plan_bytes=kept.bytes,
        module=module,
        version=built.version,
        compute_capabilities=_capabilities(options, device),
        built_on=_built_on(device),
        onnx_sha256=source.sha256 or sha256_of(source.path),
        weights_sha256=weights_sha256(onnx.load(source.path)),
        precision=built.precision,
        profiles=built.profiles,
        settings=dict(built.settings),
        spec=source.spec,
        command=command,
        rewritten_from=_rewritten_from(source),
        version_compatible=options.version_compatible,
        seconds=round(built.seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if built.layers:
        write_atomically(layers_path(kept.path), built.layers.encode())
    write_atomically(manifest_path(kept.path), manifest.to_json().encode())
    return kept


def read_manifest(plan: Path) -> PlanManifest:
    """Read the manifest beside a plan.

    Raises:
        ManifestError: it is absent, is not what `keep_plan` writes, or was written with another schema.
    """
    path = manifest_path(plan)
    if not path.is_file():
        raise ManifestError(
            f"{plan} has no manifest",
            expected=f"{path.name} beside it, as `vitesse build` writes it",
            cause="the plan was copied alone, its build was interrupted, or another program made it",
            fix="copy the two files together, or build it with `vitesse build`",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        schema = raw["schema"]
        if schema != SCHEMA:
            raise ManifestError(
                f"{path} has schema {schema!r}",
                expected=f"schema {SCHEMA}, which this version of Vitesse reads",
                cause="another version of Vitesse wrote it",
                fix=f"build the engine again: {raw.get('command') or 'vitesse build'}",
            )
        return _from_mapping(raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, VitesseError) as error:
        if isinstance(error, ManifestError):
            raise
        raise _damaged(path, error) from error


def plan_artifact(plan: Path) -> Artifact:
    """Return a kept plan as an artifact, with hash and spec from its manifest; raises ManifestError as that does."""
    manifest = read_manifest(plan)
    return Artifact(
        plan,
        manifest.plan_sha256,
        manifest.plan_bytes,
        manifest.spec,
        Provenance(f"build:{BACKENDS[manifest.module]}", manifest.onnx_sha256),
        BACKENDS[manifest.module],
    )


def weights_sha256(model: onnx.ModelProto) -> str:
    """Return one hash of the initialisers of the main graph: their types, shapes and bytes.

    Neither names nor order count, so that the same weights in a graph written otherwise have the same hash. External
    data must be loaded.
    """
    digests = sorted(_digest(tensor) for tensor in model.graph.initializer)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(tensor: onnx.TensorProto) -> bytes:
    array = onnx.numpy_helper.to_array(tensor)
    head = f"{tensor.data_type} {tuple(tensor.dims)} ".encode()
    return hashlib.sha256(head + array.tobytes()).digest()


def _rewritten_from(source: Artifact) -> str:
    rewritten = source.provenance.stage.startswith("lower:")
    return (source.provenance.parent_sha256 or "") if rewritten else ""


def _capabilities(options: BuildOptions, device: Device | None) -> tuple[str, ...]:
    if options.compute_capabilities:
        return tuple(name.lower() for name in options.compute_capabilities)
    return () if device is None else (capability_name(device.compute_capability),)


def capability_name(capability: tuple[int, int]) -> str:
    """Return "sm86" for (8, 6)."""
    return f"sm{capability[0]}{capability[1]}"


def _built_on(device: Device | None) -> BuiltOn:
    if device is None:
        return BuiltOn()
    driver, runtime = (".".join(map(str, v)) for v in (device.driver_version, device.runtime_version))
    return BuiltOn(device.name, capability_name(device.compute_capability), driver, runtime)


def _from_mapping(raw: Mapping[str, Any]) -> PlanManifest:
    """Build a manifest from parsed JSON; a missing or unknown key, or a value of another type, raises."""
    values = dict(raw)
    values["compute_capabilities"] = tuple(str(name) for name in raw["compute_capabilities"])
    values["built_on"] = BuiltOn(**raw["built_on"])
    values["profiles"] = tuple(_profile(entry) for entry in raw["profiles"])
    values["settings"] = {str(name): str(value) for name, value in raw["settings"].items()}
    values["plan_bytes"] = int(raw["plan_bytes"])
    values["spec"] = spec_from_mapping(raw["spec"])
    manifest = PlanManifest(**values)
    if manifest.module not in BACKENDS:
        raise ValueError(f"module {manifest.module!r} is none of {', '.join(BACKENDS)}")
    for name in ("plan_sha256", "version", "onnx_sha256", "weights_sha256", "command"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} is {values[name]!r}, not a text")
    return manifest


def _profile(raw: Mapping[str, Any]) -> Profile:
    def shape(sizes: list[int]) -> tuple[int, ...]:
        return tuple(int(size) for size in sizes)

    return Profile(
        {
            name: ShapeRange(shape(span["min"]), shape(span["opt"]), shape(span["max"]))
            for name, span in raw["inputs"].items()
        }
    )


def _damaged(path: Path, error: Exception) -> ManifestError:
    said = f"no {error}" if isinstance(error, KeyError) else str(error)
    return ManifestError(
        f"cannot read the manifest {path}: {said}",
        expected="the JSON that `vitesse build` writes beside a plan",
        cause="the file was edited, cut off, or is something else",
        fix="build the engine again with `vitesse build`",
    )
