"""The race of compress.py: original, pruned, distilled, and the same in INT8, interleaved at batch 1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from compress_training import CASES, given, validation, weights
from ledgers import ROOT

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Session
from vitesse.benchmark.latency import interleave
from vitesse.data.dataset import open_dataset
from vitesse.data.preprocess import feeds
from vitesse.data.split import Split
from vitesse.environment import describe, usable_cores
from vitesse.sources.trainable import open_trainable, save_trainable
from vitesse.storage import write_atomically
from vitesse.verify.accuracy import evaluate

RUNTIMES = {"cpu": "onnxruntime", "cuda": "torch-cuda"}
FED = 32  # images that the race goes round
# Race, called as the case whose network is in it beside the original → that network's title.
RACES: Mapping[str, str] = {
    "vit": "pruned, distilled",
    "detr": "pruned, distilled",
    "student": "3 decoder layers, distilled",
}
# Of each kernel that a build for the GPU tries for a step, and the seconds that it measures a step for.
TACTICS, STEP_SECONDS = 8, 0.1


def measure(
    models: Path, sources: Path, out: Path, seconds: float, devices: Sequence[str], names: Sequence[str]
) -> None:
    """Write out/compress_latency_cpu_RACE.json, and _cuda_ where there is a GPU."""
    for device in devices:
        runtime = RUNTIMES[device]
        available = backend(runtime).probe()
        if not available.available:
            print(f"{device}: not run: {available.reason}")
            continue
        for name in names:
            kind = CASES[name].kind
            artifacts = graphs(models, sources, name, quantised=device == "cpu" and name == kind)
            rows, raw = race(artifacts, validation(sources, kind), runtime, seconds)
            found = {
                "command": f"python benchmarks/compress.py latency MODELS --sources SOURCES --race {name} "
                f"--seconds {seconds:g}",
                "environment": describe(),
                "runtime": runtime,
                "threads": usable_cores(),
                "kind": kind,
                "rows": rows,
                "samples": raw,
            }
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(
                out / f"compress_latency_{device}_{name}.json", (json.dumps(found) + "\n").encode()
            )


def graphs(models: Path, sources: Path, name: str, *, quantised: bool) -> Mapping[str, Artifact]:
    """Export, clean and fuse each network of a race; and quantise them, calibrated on the examples."""
    kind = CASES[name].kind
    folders = {"original": models / f"original_{kind}"}
    save_trainable(open_trainable(weights(sources, kind), given(kind)), folders["original"])
    folders[RACES[name]] = models / name
    found = {}
    for title, folder in folders.items():
        store = Store(models / "graphs" / kind / folder.name)
        cleaned = stages.clean(stages.open_model(folder, store=store), store).artifact
        found[title] = stages.fuse(cleaned, store).artifact
        if quantised:
            images = ROOT / "examples" / "fashion" / kind
            found[f"{title}, INT8"] = stages.quantize(found[title], images, store).artifact
    return found


def race(
    artifacts: Mapping[str, Artifact], images: Path, runtime: str, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Latency, gain over the original and accuracy of each, and the raw samples."""
    spec = artifacts["original"].spec
    split = open_dataset(images, spec=spec, holdout=0).val
    with ExitStack() as stack:
        sessions = {name: opened(stack, one, runtime) for name, one in artifacts.items()}
        fed = [feeds([sample.read()], spec) for sample in split.spread(FED).samples]
        run = interleave(sessions, fed, seconds=seconds)
        rows = []
        for name, session in sessions.items():
            latency, ratio = run.latency(name), run.ratio("original", name)
            rows.append(
                {
                    "name": name, "p50_ms": latency.p50, "p99_ms": latency.p99, "gain": ratio.value,
                    "interval": ratio.interval, "score": score(session, split, artifacts[name]),
                    "bytes": artifacts[name].bytes,
                }
            )  # fmt: skip
    return rows, run.to_json()


def opened(stack: ExitStack, artifact: Artifact, runtime: str) -> Session:
    """Build for the runtime and open one session."""
    engine = stack.enter_context(
        backend(runtime).load(built(artifact, runtime), LoadOptions(threads=usable_cores()))
    )
    return stack.enter_context(engine.session())


def built(artifact: Artifact, runtime: str) -> Artifact:
    """Build for the runtime; on the GPU for one image alone, which is all that is timed."""
    store, target = Store(artifact.path.parent), backend(runtime)
    if runtime != RUNTIMES["cuda"]:
        return target.build(artifact, store).artifact
    # Imported here because it needs torch's CUDA build.
    from vitesse.backends.torch_cuda.backend import TorchCudaBackend
    from vitesse.backends.torch_cuda.building import BuildOptions

    assert isinstance(target, TorchCudaBackend)
    options = BuildOptions(batch=(1, 1, 1), tactics=TACTICS, seconds=STEP_SECONDS)
    return target.build_for(artifact, store, options).artifact


def score(session: Session, split: Split, artifact: Artifact) -> float:
    """The metric in points, of the very session that was timed."""
    found = evaluate(lambda given: session.run(given).outputs, split, artifact.spec)
    return 100 * found.accuracy.value
