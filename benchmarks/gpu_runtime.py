"""ONNX Runtime's CUDA provider as people call it, and as Vitesse does: latency, streams, memory, parity, a soak.

    python benchmarks/gpu_runtime_models.py FOLDER                      makes the models; needs torch
    python benchmarks/gpu_runtime.py race FOLDER --out race.json        latency, all candidates in turn
    python benchmarks/gpu_runtime.py streams FOLDER --out streams.json  batches × streams, all kept busy
    python benchmarks/gpu_runtime.py tune FOLDER --out tune.json        `vitesse tune` beside the whole grid
    python benchmarks/gpu_runtime.py soak MODEL.onnx… --out soak.json   100,000 runs of each over changing shapes
    python benchmarks/gpu_runtime.py --table                            docs/gpu.md, from results/gpu_runtime_*.json

The file is written after each model; the same command goes on with those that it lacks.
All but the last need an NVIDIA GPU, onnxruntime-gpu and cuda-bindings. `plain` is an `InferenceSession` with the
provider's default options and an IO binding between buffers on the GPU. `ours` runs between buffers on the GPU, too,
and once more from numpy to numpy, copies included. Times are wall times of a call with its synchronisation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime
from gpu_runtime_models import OURS, PLAIN, PRECISIONS, SIZES, artifact, path_of
from gpu_runtime_soak import soak

from vitesse.backends import backend
from vitesse.backends.closing import Closing
from vitesse.backends.cuda.arrays import DeviceArray
from vitesse.backends.cuda.bindings import cuda_driver
from vitesse.backends.protocol import LoadOptions, Outcome, Tensors
from vitesse.benchmark.latency import Interleaved, interleave
from vitesse.benchmark.points import Bench
from vitesse.benchmark.tune import tune
from vitesse.benchmark.watch import Watch
from vitesse.environment import describe
from vitesse.errors import VitesseError

BATCHES = (1, 8, 32)
STREAMS = (1, 2, 4)
PARITY_IMAGES = 4
# Of `tune`: the p99 that the latency setting has to keep, and the largest batch of the grid.
LATENCY_BOUND_MS = {"vit_b16": 5.0, "detr_r50": 16.0}
MOST_BATCH = {"vit_b16": 64, "detr_r50": 8}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("race", "streams", "tune", "soak"))
    parser.add_argument("sources", nargs="*", type=Path, metavar="FOLDER | MODEL.onnx")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--names", nargs="+", default=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        from gpu_runtime_table import write_page

        write_page()
        return
    if not given.sources or given.out is None:
        parser.error("name a folder or a model, and --out")
    measure = {"race": raced, "streams": streamed, "tune": tuned, "soak": soaked}[given.what]
    jobs = (
        {one.stem: one for one in given.sources}
        if given.what == "soak"
        else dict.fromkeys(given.names, given.sources[0])
    )
    found = begun(given.out)
    for name, source in jobs.items():
        if name not in found:
            found[name] = measure(source, name, given)
            record = {"command": command(given), "environment": environment(), "found": found}
            given.out.write_text(json.dumps(record) + "\n")


def begun(out: Path) -> dict[str, Any]:
    """What an earlier run has measured into the same file, on the same kind of machine."""
    if not out.exists():
        return {}
    record = json.loads(out.read_text())
    here = environment()
    for key in ("gpu", "cuda_driver", "onnxruntime"):
        if record["environment"][key] != here[key]:
            raise SystemExit(
                f"{out} was begun with {key} {record['environment'][key]}, here it is {here[key]}: name another --out"
            )
    found: dict[str, Any] = record["found"]
    return found


def command(given: argparse.Namespace) -> str:
    end = f"--runs {given.runs}" if given.what == "soak" else f"--seconds {given.seconds:g}"
    sources = " ".join(source.name for source in given.sources)
    return f"python benchmarks/gpu_runtime.py {given.what} {sources} --out {given.out.name} {end}"


def environment() -> dict[str, Any]:
    device = cuda_driver().device
    return {
        **describe(),
        "gpu": device.name,
        "cuda_driver": ".".join(map(str, device.driver_version)),
        "onnxruntime": onnxruntime.__version__,
    }


def raced(folder: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Outputs against the CPU, then latencies by batch and precision, each group in one interleaved run."""
    found: dict[str, Any] = {"parity": parity(folder, name), "batches": {}}
    for batch in given.batches:
        for precision in PRECISIONS:
            group = race(folder, name, batch, precision, given.seconds)
            found["batches"].setdefault(str(batch), {})[precision] = group
            shown = {key: round(one["p50_ms"], 3) for key, one in group["candidates"].items()}
            print(name, batch, precision, shown, group["refused"], group["observed"]["verdict"], flush=True)
    return found


def race(folder: Path, name: str, batch: int, precision: str, seconds: float) -> dict[str, Any]:
    feeds = images(name, batch)
    refused: dict[str, str] = {}
    with ExitStack() as stack, Watch(0) as watch:
        sessions = {}
        for label, opened in candidates(folder, name, precision, feeds).items():
            try:
                sessions[label] = stack.enter_context(opened)
                sessions[label].run(feeds)
            except (VitesseError, RuntimeError) as error:
                sessions.pop(label, None)
                refused[label] = str(error)[:300]
        run = interleave(sessions, [feeds], seconds=seconds)
        return {
            "candidates": figures(run),
            "refused": refused,
            "observed": watch.observed().to_json(),
            "run": run.to_json(),
        }


def figures(run: Interleaved) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label in run.rounds:
        latency = run.latency(label)
        found[label] = {"p50_ms": latency.p50, "p99_ms": latency.p99}
        if PLAIN in run.rounds:
            ratio = run.ratio(PLAIN, label)
            found[label] |= {"gain": ratio.value, "gain_interval": list(ratio.interval)}
    return found


def candidates(folder: Path, name: str, precision: str, feeds: Tensors) -> dict[str, Any]:
    """Label → something to enter that gives a session."""
    ours = artifact(folder, name, OURS, precision)
    return {
        PLAIN: plain(path_of(folder, name, PLAIN, precision), feeds),
        "ours, no graph": ours_on_device(ours, feeds, LoadOptions(cuda_graph=False)),
        OURS: ours_on_device(ours, feeds, LoadOptions()),
        "ours, numpy to numpy": from_numpy(ours, LoadOptions()),
    }


class Plain(Closing):
    """A user's own session: default options, bound to buffers on the GPU."""

    def __init__(self, path: Path, feeds: Tensors) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CUDAExecutionProvider"])
        shown = self._session.run(None, dict(feeds))
        self._binding = self._session.io_binding()
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(
                name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            )
        for entry, array in zip(self._session.get_outputs(), shown, strict=True):
            room = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cuda", 0)
            self._binding.bind_ortvalue_output(entry.name, room)

    def run(self, feeds: Tensors) -> Outcome:
        began = perf_counter_ns()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return Outcome({}, (perf_counter_ns() - began) / 1e6)

    def close(self) -> None:
        self._binding = self._session = None


class OnDevice(Closing):
    """Vitesse's session on arrays that lie on the GPU."""

    def __init__(self, session: Any, arrays: Mapping[str, DeviceArray]) -> None:
        self._session, self._arrays = session, arrays

    def run(self, feeds: Tensors) -> Outcome:
        began = perf_counter_ns()
        self._session.run_on_device(self._arrays)
        self._session.synchronize()
        return Outcome({}, (perf_counter_ns() - began) / 1e6)

    def close(self) -> None:
        pass


@contextmanager
def plain(path: Path, feeds: Tensors) -> Iterator[Plain]:
    with Plain(path, feeds) as session:
        yield session


@contextmanager
def from_numpy(ours: Any, options: LoadOptions) -> Iterator[Any]:
    with backend("cuda").load(ours, options) as engine, engine.session() as session:
        yield session


@contextmanager
def ours_on_device(ours: Any, feeds: Tensors, options: LoadOptions) -> Iterator[OnDevice]:
    with from_numpy(ours, options) as session, on_device(feeds) as arrays:
        yield OnDevice(session, arrays)


@contextmanager
def on_device(feeds: Tensors) -> Iterator[dict[str, DeviceArray]]:
    """Copy arrays to the GPU."""
    driver = cuda_driver()
    stream = driver.create_stream()
    arrays = {}
    for name, array in feeds.items():
        address = driver.malloc(array.nbytes)
        driver.copy(address, array.ctypes.data, array.nbytes, stream)
        arrays[name] = DeviceArray(address, array.shape, array.dtype, stream, 0, feeds, driver)
    driver.synchronize(stream)
    try:
        yield arrays
    finally:
        driver.synchronize(stream)
        for one in arrays.values():
            driver.free(one.address)
        driver.destroy_stream(stream)


def parity(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """Largest difference over the largest value of each output: GPU (TF32 off) against the exported file on the CPU."""
    found: dict[str, dict[str, float]] = {}
    feeds = images(name, PARITY_IMAGES)
    reference = artifact(folder, name, PLAIN, "fp32")
    with backend("cuda").load(reference, LoadOptions(reference=True)) as engine, engine.session() as session:
        wanted = {key: np.array(value) for key, value in session.run(feeds).outputs.items()}
    for precision in PRECISIONS:
        ours = artifact(folder, name, OURS, precision)
        with backend("cuda").load(ours, LoadOptions(tf32=False)) as engine, engine.session() as session:
            for _ in range(3):  # plainly, captured, replayed
                outputs = session.run(feeds).outputs
            found[precision] = {
                key: float(np.abs(outputs[key] - value).max() / np.abs(value).max())
                for key, value in wanted.items()
            }
    print(name, "parity", found, flush=True)
    return found


def streamed(folder: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Batches × streams, with and without CUDA graphs."""
    found: dict[str, Any] = {}
    pairs = [(batch, streams) for batch in given.batches for streams in STREAMS]
    for precision in PRECISIONS:
        for graph in (True, False):
            ours = artifact(folder, name, OURS, precision)
            options = LoadOptions(cuda_graph=graph)
            with Bench(ours, lambda batch: images(name, batch), options, 0) as bench:
                points = bench.measure(pairs, given.seconds, rounds=1)
            found[f"{precision}{'+graph' if graph else ''}"] = [point.figures() for point in points]
            for point in points:
                print(name, precision, graph, {k: v for k, v in point.figures().items() if v}, flush=True)
    return found


def tuned(folder: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The FP16 graph's grid of batches × streams: what the search tried and chose, and the best of the whole."""
    ours = artifact(folder, name, OURS, "fp16")
    tried: list[tuple[int, int]] = []
    found = tune(
        ours,
        lambda batch: images(name, batch),
        options=LoadOptions(),
        device=0,
        latency_bound_ms=LATENCY_BOUND_MS[name],
        most_batch=MOST_BATCH[name],
        seconds=given.seconds,
        exhaustive=True,
        on_point=lambda points: tried.extend(point.pair for point in points),
    )
    result = {
        "latency_bound_ms": LATENCY_BOUND_MS[name],
        "latency": None if found.latency is None else found.latency.figures(),
        "throughput": None if found.throughput is None else found.throughput.figures(),
        "gap": found.gap,
        "latency_gap": found.latency_gap,
        "memory": None if found.memory is None else asdict(found.memory),
        "tried": tried,
        "points": [point.to_json() for point in found.points],
        "skipped": [asdict(one) for one in found.skipped],
    }
    print(name, {key: value for key, value in result.items() if key not in ("points", "tried")}, flush=True)
    return result


def soaked(model: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Many runs over changing shapes."""
    return soak(model, given.runs)


def images(name: str, batch: int) -> dict[str, np.ndarray]:
    """Random images, normalised: what they show costs no time."""
    shape = (batch, 3, *SIZES[name])
    return {"images": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


if __name__ == "__main__":
    main()
