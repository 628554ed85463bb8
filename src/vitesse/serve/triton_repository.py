"""A run's artifact as a model repository of NVIDIA's Triton Inference Server.

REPO/NAME/config.pbtxt      what the server must know: tensors, batching, instances, warm-up
REPO/NAME/labels.txt        class names, where the model classifies
REPO/NAME/warmup/INPUT      the image sizes that the warm-up feeds, for models that are told them
REPO/NAME/1/model.onnx      the artifact itself, byte for byte; model.plan for an engine of TensorRT
REPO/NAME/README.md         how to start the server with it, and what it expects
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from vitesse.artifact import Artifact
from vitesse.backends import GPUS, backend
from vitesse.backends.protocol import TensorInfo
from vitesse.environment import usable_cores
from vitesse.errors import BackendError, UsageError
from vitesse.ledger import Verdict
from vitesse.run import Run, artifact_of, spec_of
from vitesse.selection import select
from vitesse.serve.triton_config import Plan, Warmup, config_text
from vitesse.sources.signature import graph_inputs, graph_outputs
from vitesse.spec import ModelSpec, Task
from vitesse.storage import storage_error
from vitesse.tuning import Setting, device_name, load_tuning

# As `vitesse serve` waits, where nothing was tuned.
DELAY_US = 2000
GPU_BATCH = 8
_ONNX_RUNTIMES = ("onnxruntime", "cuda")


@dataclass(frozen=True)
class Choices:
    """What the user said; None leaves it to the tuning, or to the target's defaults.

    Args:
        name: of the model in the repository; "" = the run folder's.
        batch: most items a call; instances: of the model; delay_us: microseconds a request waits for others.
    """

    name: str = ""
    batch: int | None = None
    instances: int | None = None
    delay_us: int | None = None


@dataclass(frozen=True)
class Written:
    """The model's folder, and remarks for the user."""

    folder: Path
    notes: tuple[str, ...]


def export_triton(run: Run, repository: Path, choices: Choices | None = None) -> Written:
    """Write the chosen artifact of a run as a model of a Triton repository; it appears there all at once.

    An artifact that Triton has no backend for (OpenVINO's, TensorRT for RTX's, torch-cuda's) is replaced by the run's
    best portable graph, and a note says so.

    Raises:
        UsageError: the name cannot be one, or is taken; a number is below 1; more than one item for a graph of one.
        RunFolderError: the run is unfinished, or its file was changed. StorageError: the folder cannot be written.
    """
    choices = choices or Choices()
    name = choices.name or re.sub(r"[^A-Za-z0-9_.-]", "_", run.folder.resolve().name)
    _check(name, choices)
    folder = repository / name
    if folder.exists():
        raise UsageError(
            f"{folder} is there already",
            expected="a new name",
            cause="a model that was exported before",
            fix="choose another with --name, or delete the folder",
        )
    artifact, notes = _artifact(run)
    gpu = run.ledger.target in GPUS
    inputs, outputs = _tensors(artifact)
    setting = _tuned(run, artifact, notes)
    plan = _plan(name, artifact, inputs, outputs, setting=setting, gpu=gpu, choices=choices)
    temporary = repository / f".{name}.{os.getpid()}.tmp"
    try:
        _write(temporary, artifact, plan)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise storage_error(folder, error) from error
    return Written(folder, tuple(notes))


def _check(name: str, choices: Choices) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"--name {name!r} is no name of a model",
            expected="letters, digits, _, . and -, not beginning with . or -",
        )
    least = {"batch": 1, "instances": 1, "delay_us": 0}
    for option, bound in least.items():
        value = getattr(choices, option)
        if value is not None and value < bound:
            raise UsageError(f"--{option.replace('_', '-')} {value}", expected=f"at least {bound}")


def _artifact(run: Run) -> tuple[Artifact, list[str]]:
    """What Triton can run: the chosen file, or a portable graph in its place."""
    chosen = run.artifact
    if chosen.backend == "tensorrt" or (chosen.path.suffix == ".onnx" and chosen.backend in _ONNX_RUNTIMES):
        return chosen, []
    stage, instead = _portable(run)
    note = f"{stage} in place of the chosen artifact: this repository cannot hold one for {chosen.backend}"
    return replace(instead, backend="onnxruntime"), [note]


def _portable(run: Run) -> tuple[str, Artifact]:
    """The best graph for ONNX Runtime on the run's kind of device, and its step."""
    if run.ledger.target in GPUS:
        found = select(run, "cuda")
        return found.row.stage, found.artifact
    rows = [
        row
        for row in run.ledger.rows
        if row.verdict is Verdict.PASS and row.artifact is not None and row.artifact.backend == "onnxruntime"
    ]
    return rows[-1].stage, artifact_of(run.folder, rows[-1], spec_of(run.folder))  # the source always passes


def _tensors(artifact: Artifact) -> tuple[Sequence[TensorInfo], Sequence[TensorInfo]]:
    if artifact.path.suffix == ".onnx":
        graph = onnx.load(artifact.path, load_external_data=False)
        return graph_inputs(graph), graph_outputs(graph)
    with backend(artifact.backend).load(artifact) as engine:  # a plan tells its tensors only to its library
        return engine.inputs, engine.outputs


def _tuned(run: Run, artifact: Artifact, notes: list[str]) -> Setting | None:
    try:
        device = device_name(0 if run.ledger.target in GPUS else None)
    except BackendError as error:
        notes.append(f"not tuned for this machine: {error.what}")
        return None
    found = load_tuning(
        run.folder, run.ledger.target, device, artifact_sha256=artifact.sha256, on_stale=notes.append
    )
    return None if found is None else found.throughput


def _plan(
    name: str,
    artifact: Artifact,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    *,
    setting: Setting | None,
    gpu: bool,
    choices: Choices,
) -> Plan:
    free = all(info.shape and isinstance(info.shape[0], str) for info in (*inputs, *outputs))
    if not free and (choices.batch or 1) > 1:
        raise UsageError(
            f"--batch {choices.batch} for a graph that takes one image",
            expected="--batch 1, or a graph with a free batch axis",
            fix="export the model again with --dynamic batch",
        )
    usual = setting.batch if setting is not None else GPU_BATCH if gpu else 1
    batch = (choices.batch or usual) if free else 0
    streams = setting.streams if setting is not None else 1 if gpu else usable_cores()
    delay = DELAY_US
    if setting is not None and setting.p99_ms is not None:
        delay = min(delay, round(1000 * setting.p99_ms))  # to wait longer than a call takes gains nothing
    plan = Plan(
        name=name,
        backend="tensorrt" if artifact.backend == "tensorrt" else "onnxruntime",
        file="model.plan" if artifact.backend == "tensorrt" else "model.onnx",
        inputs=inputs,
        outputs=outputs,
        batch=batch,
        preferred=(batch,) if batch > 1 else (),
        delay_us=choices.delay_us if choices.delay_us is not None else delay,
        instances=choices.instances or streams,
        gpu=gpu,
        threads=0 if gpu else (setting.threads if setting is not None else 1),
        labels=artifact.spec.labels if artifact.spec.task is Task.CLASSIFICATION else (),
    )
    return replace(plan, warmups=_warmups(plan, artifact.spec))


def _warmups(plan: Plan, spec: ModelSpec) -> tuple[Warmup, ...]:
    """Every size that images are laid into, largest first, with one item and with a full batch."""
    rules = spec.preprocessing
    sizes = sorted(rules.buckets or (rules.size,), key=lambda size: -size[0] * size[1])
    counts = sorted({1, plan.batch}, reverse=True) if plan.batch else [0]
    return tuple(Warmup(size, count, rules.layout, spec.image_input) for size in sizes for count in counts)


def _write(folder: Path, artifact: Artifact, plan: Plan) -> None:
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(artifact.path, folder / "1" / plan.file)
    (folder / "config.pbtxt").write_text(config_text(plan), encoding="utf-8")
    if plan.labels:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in plan.labels), encoding="utf-8")
    (folder / "README.md").write_text(_readme(plan, artifact), encoding="utf-8")
    for warmup in plan.warmups:
        for info in plan.told_sizes:
            (folder / "warmup").mkdir(exist_ok=True)
            values = np.array(warmup.sizes(artifact.spec, info.name), dtype=info.dtype)
            (folder / "warmup" / warmup.file(info.name)).write_bytes(values.tobytes())


def _readme(plan: Plan, artifact: Artifact) -> str:
    batching = (
        f"up to {plan.batch} items a call" if plan.batch else "none: the graph's batch axis is not free"
    )
    tag = (
        "The engine runs with the version of TensorRT that built it, on that kind of GPU: choose TAG to fit."
        if plan.backend == "tensorrt"
        else "Choose a TAG whose ONNX Runtime knows the graph's operator set."
    )
    return f"""# {plan.name}

Written by `vitesse export-triton`: the step `{artifact.provenance.stage}` with sha256 {artifact.sha256}.

    docker run --rm {"--gpus=all " if plan.gpu else ""}-p8000:8000 -v REPOSITORY:/models \\
        nvcr.io/nvidia/tritonserver:TAG tritonserver --model-repository=/models --load-model={plan.name} \\
        --model-control-mode=explicit

Batching: {batching}; instances: {plan.instances} on the {"GPU" if plan.gpu else "CPU"}.
The server takes tensors, not pictures: preprocess as the spec in the model file says (`vitesse.spec`), with
`vitesse.data.preprocess.feeds`, and read the outputs with `vitesse.data.postprocess.decode`.
{tag}
"""
