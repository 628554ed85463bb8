"""Shows what spinning threads of an idle session do to the one being measured, and that the protocol is free of it.

    python benchmarks/spin_interference.py MODEL.onnx [--seconds 8]

Two sessions of the same file, loaded alike with ONNX Runtime's defaults, must come out at a ratio of 1.00 (A/A). Once
with the protocol of docs/benchmarking.md, once without waiting for idle threads between the blocks.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np

from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, TensorInfo, Tensors
from vitesse.benchmark import latency
from vitesse.environment import describe, usable_cores
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task
from vitesse.storage import sha256_of

PLAIN = LoadOptions(plain=True)


def wrapped(path: Path) -> Artifact:
    """The spec is not used: the feeds are random."""
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((1, 1)))
    return Artifact(path, sha256_of(path), path.stat().st_size, spec, Provenance("source"))


def random_feed(inputs: tuple[TensorInfo, ...]) -> Tensors:
    rng = np.random.default_rng(0)
    shapes = {info.name: [1 if isinstance(size, str) else size for size in info.shape] for info in inputs}
    return {
        info.name: (
            rng.random(shapes[info.name]) if "float" in info.dtype else np.ones(shapes[info.name]) * 300
        ).astype(info.dtype)
        for info in inputs
    }


def spinning_ms(artifact: Artifact, options: LoadOptions) -> float:
    """How long the process keeps using a core after the last call, in milliseconds (resolution 5 ms)."""
    with backend("onnxruntime").load(artifact, options) as engine, engine.session() as session:
        feed = random_feed(engine.inputs)
        for _ in range(10):
            session.run(feed)
        used, last, began = time.process_time(), 0.0, time.perf_counter()
        while (now := time.perf_counter() - began) < 0.3:
            time.sleep(0.005)
            if time.process_time() - used > 0.0025:
                last = now
            used = time.process_time()
        return last * 1e3


def measured(artifact: Artifact, seconds: float, entrants: dict[str, LoadOptions], *, settling: bool) -> dict:
    with ExitStack() as stack:
        if not settling:
            stack.enter_context(mock.patch.object(latency, "settle", lambda: True))
        sessions, feeds = {}, []
        for name, options in entrants.items():
            engine = stack.enter_context(backend("onnxruntime").load(artifact, options))
            sessions[name] = stack.enter_context(engine.session())
            feeds = [random_feed(engine.inputs)]
        run = latency.interleave(sessions, feeds, seconds=seconds)
    first, *others = entrants
    return {
        "p50_ms": {name: round(run.latency(name).p50, 3) for name in entrants},
        "ratio": {
            name: {
                "value": round(ratio.value, 3),
                "interquartile": [round(edge, 3) for edge in ratio.spread],
                "interval": [round(edge, 3) for edge in ratio.interval],
                "rounds": ratio.rounds,
            }
            for name in others
            for ratio in [run.ratio(first, name)]
        },
        "foreign_cores": run.foreign_cores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="per comparison")
    given = parser.parse_args()
    artifact, cores = wrapped(given.model), usable_cores()
    ours, alone = LoadOptions(threads=cores), LoadOptions(threads=1)
    found = {
        "spinning_after_a_call_ms": {
            "defaults": spinning_ms(artifact, PLAIN),
            f"{cores} threads, as Vitesse sets them": spinning_ms(artifact, ours),
            "1 thread": spinning_ms(artifact, alone),
        }
    }
    for settling in (True, False):
        key = "waiting for idle threads" if settling else "not waiting"
        found[key] = {
            "A/A": measured(artifact, given.seconds, {"a": PLAIN, "a again": PLAIN}, settling=settling),
            "defaults/1 thread": measured(
                artifact, given.seconds, {"defaults": PLAIN, "1 thread": alone}, settling=settling
            ),
        }
    print(json.dumps({**found, "environment": describe()}, indent=1))


if __name__ == "__main__":
    main()
