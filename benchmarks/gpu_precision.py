"""Outputs and latency of ONNX files on an NVIDIA GPU, by ONNX Runtime's CUDA provider; needs numpy beside it.

    python gpu_precision.py DATA.npz LABEL=MODEL.onnx … --out FOLDER [--batches 1 32] [--seconds 6]

DATA.npz comes from `gpu_precision_scores.py prepare`, on a machine with the images; `score` there reads what this
writes: FOLDER/outputs.npz (every output on every image, batch 1) and FOLDER/times.json. The first label is what the
others are compared with. A label may end in `+tf32` (FP32 products may be rounded to TF32; otherwise they are not) and
`+graph` (the calls are replayed as one CUDA graph).

Times are of calls between buffers on the GPU, in rounds: in each one every file gets a block of calls, in turn. A file
that does not load or run keeps the runtime's message instead of figures; falling back to the CPU is an error, too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

if find_spec("torch"):
    # ONNX Runtime takes the CUDA libraries that torch has loaded.
    import torch  # noqa: F401

import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
WARM_UP_CALLS = 10
BLOCK_MS = 20.0  # of back-to-back calls of one file in a round
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
Feeds = Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="LABEL=MODEL.onnx")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring, for each batch size")
    parser.add_argument("--provider", default=CUDA)
    options = parser.parse_args()
    if options.provider not in ort.get_available_providers():
        raise SystemExit(f"onnxruntime {ort.__version__} has no {options.provider}: install onnxruntime-gpu")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    data = dict(np.load(options.data))
    models = dict(entry.split("=", 1) for entry in options.models)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {label: {"file": Path(path).name} for label, path in models.items()}
    outputs: dict[str, np.ndarray] = {}
    for label, path in models.items():
        attempt(
            found[label], lambda label=label, path=path: answers(label, path, data, options, outputs, found)
        )
    np.savez_compressed(options.out / "outputs.npz", names=data["names"], **outputs)
    times = {str(batch): race(models, data, batch, options) for batch in options.batches}
    text = json.dumps({"environment": environment(), "models": found, "batches": times}, indent=1)
    (options.out / "times.json").write_text(text + "\n")
    print(text)


def attempt(record: dict[str, Any], do: Callable[[], None]) -> None:
    """Do it, or record why it did not work: one file that is refused must not cost the others their figures."""
    try:
        do()
    except Exception as error:  # ONNX Runtime raises a dozen classes without a public base
        record["error"] = str(error)[:500]


def answers(
    label: str,
    path: str,
    data: Feeds,
    options: argparse.Namespace,
    outputs: dict[str, np.ndarray],
    found: dict[str, dict[str, Any]],
) -> None:
    """Run every image, batch 1; keep the outputs under LABEL/NAME and which operators ran on the CPU."""
    session = opened(label, path, options.provider, graph=False)
    names = [entry.name for entry in session.get_outputs()]
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index in range(len(data["names"])):
        for name, value in zip(names, session.run(names, feeds(session, data, [index])), strict=True):
            kept[name].append(value.astype(np.float32) if value.dtype == np.float16 else value)
    outputs.update({f"{label}/{name}": np.concatenate(values) for name, values in kept.items()})
    found[label]["on_cpu"] = on_cpu(label, path, data, options.provider)


def opened(
    label: str, path: str, provider: str, *, graph: bool, profile_to: str = ""
) -> ort.InferenceSession:
    """Load a file on the provider; raises RuntimeError where the runtime has fallen back to the CPU."""
    flags = label.split("+")[1:]
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if profile_to:
        settings.enable_profiling, settings.profile_file_prefix = True, profile_to
    chosen: Any = provider
    if provider == CUDA:
        graph = graph and "graph" in flags
        chosen = (CUDA, {"use_tf32": str(int("tf32" in flags)), "enable_cuda_graph": str(int(graph))})
    session = ort.InferenceSession(path, settings, providers=[chosen])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"the session runs on {session.get_providers()[0]}, not on {provider}")
    return session


def feeds(session: ort.InferenceSession, data: Feeds, images: list[int]) -> dict[str, np.ndarray]:
    """The model's inputs for some images: pixels normalised as they were, other inputs as they came."""
    given = {}
    for entry in session.get_inputs():
        if entry.name == str(data["image_input"]):
            pixels = np.divide(data["pixels"][images], data["divisor"], dtype=np.float32)
            value = (pixels - data["mean"]) / data["std"]
        else:
            value = data[f"feed/{entry.name}"][images]
        given[entry.name] = value.astype(NUMPY_TYPES.get(entry.type, value.dtype))
    return given


def on_cpu(label: str, path: str, data: Feeds, provider: str) -> dict[str, int]:
    """Operators, with counts, that another provider than the one asked for ran, from a profiled call."""
    with tempfile.TemporaryDirectory() as folder:
        session = opened(label, path, provider, graph=False, profile_to=str(Path(folder) / "profile"))
        session.run(None, feeds(session, data, [0]))
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = (event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"])
    return dict(Counter(node["op_name"] for node in nodes if node.get("provider", provider) != provider))


def race(models: Mapping[str, str], data: Feeds, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median ms of `batch` images a call, and how much faster than the first label, where that one runs."""
    calls: dict[str, Callable[[], float]] = {}
    refused: dict[str, dict[str, Any]] = {}
    for label, path in models.items():
        record: dict[str, Any] = {}
        attempt(
            record,
            lambda label=label, path=path: calls.update({label: call(label, path, data, batch, options)}),
        )
        if record:
            refused[label] = record
    rounds: dict[str, list[float]] = {label: [] for label in calls}
    order = list(calls)
    ends = time.perf_counter() + options.seconds
    while calls and (time.perf_counter() < ends or len(rounds[order[0]]) < 6):
        for label in order:
            rounds[label].append(block(calls[label]))
        order = order[1:] + order[:1]
    first = rounds.get(next(iter(models), ""))
    return {**{label: summary(samples, first) for label, samples in rounds.items()}, **refused}


def call(label: str, path: str, data: Feeds, batch: int, options: argparse.Namespace) -> Callable[[], float]:
    """A function that runs once between buffers on the device and returns its ms; warmed up."""
    device = "cuda" if options.provider == CUDA else "cpu"
    images = [index % len(data["names"]) for index in range(batch)]
    plain = opened(label, path, options.provider, graph=False)
    given = feeds(plain, data, images)
    shown = plain.run(None, given)
    session = opened(label, path, options.provider, graph=True)
    binding = session.io_binding()
    for name, value in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, 0))
    for entry, value in zip(session.get_outputs(), shown, strict=True):
        buffer = ort.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype, device, 0)
        binding.bind_ortvalue_output(entry.name, buffer)

    def once() -> float:
        began = time.perf_counter_ns()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter_ns() - began) / 1e6

    for _ in range(WARM_UP_CALLS):
        once()
    return once


def block(once: Callable[[], float]) -> float:
    """Median ms of the calls of one block; the first one wakes the device and is not counted."""
    once()
    samples = [once()]
    while sum(samples) < BLOCK_MS:
        samples.append(once())
    return statistics.median(samples)


def summary(samples: list[float], first: list[float] | None) -> dict[str, Any]:
    figures = {
        "p50_ms": statistics.median(samples),
        "rounds_ms": [round(value, 4) for value in samples],
    }
    if first is None:
        return figures
    ratios = [one / other for one, other in zip(first, samples, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {**figures, "gain": statistics.median(ratios), "gain_spread": [low, high]}


def environment() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        gpu = f"unknown: {error}"
    return {"gpu": gpu, "onnxruntime": ort.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
