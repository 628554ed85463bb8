"""What stripping the auxiliary heads gains, and what exporting a DETR costs: DETR-R50 at 800×1333, random weights.

    python benchmarks/export_detr.py            measures and writes benchmarks/results/export_detr.json
    python benchmarks/export_detr.py --table    writes the table in docs/export.md from it

Needs torch. Every graph is made by `vitesse export` in a process of its own, whose time and peak memory are taken
(exporting and verifying at two batches). Latency is that of plain ONNX Runtime sessions at batch 1, interleaved.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Session, Tensors
from vitesse.benchmark.latency import interleave
from vitesse.environment import describe, usable_cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "export_detr.json"
PAGE = ROOT / "docs" / "export.md"
SIZE = (800, 1333)
AUX, STRIPPED, OPEN = "export --keep-aux", "export", "export --dynamic batch,height,width"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    AUX: ("--keep-aux",),
    STRIPPED: (),
    OPEN: ("--dynamic", "batch,height,width"),
}
CLEANED = "export --keep-aux, then the stage clean"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(page_with_table(PAGE.read_text()))
        return
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        found = measure(Path(folder), options.seconds)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    checkpoint = random_checkpoint(folder / "detr_r50.pth")
    rows, artifacts = {}, {}
    for number, (name, options) in enumerate(VARIANTS.items()):
        path = folder / f"{number}.onnx"
        rows[name] = exported(checkpoint, path, options)
        artifacts[name] = stages.open_model(path)
    artifacts[CLEANED] = stages.clean(artifacts[AUX], Store(folder)).artifact
    rows[CLEANED] = counted(artifacts[CLEANED])
    run, differences = compared(artifacts, seconds)
    for name, row in rows.items():
        row["p50_ms"] = run.latency(name).p50
        row["gain_over_aux"] = run.ratio(AUX, name).value
        row["gain_interval"] = run.ratio(AUX, name).interval
        row["largest_difference_to_aux"] = differences[name]
    return {
        "command": "python benchmarks/export_detr.py",
        "environment": describe(),
        "threads": usable_cores(),
        "graphs": rows,
        "latency": run.to_json(),
    }


def random_checkpoint(path: Path) -> Path:
    """A state dict of DETR-R50 with random weights under the names of facebookresearch/detr."""
    import torch

    from vitesse.sources.detr import DETR, DETRConfig

    torch.manual_seed(0)
    config = DETRConfig(
        stem=64,
        widths=(64, 128, 256, 512),
        channels=(256, 512, 1024, 2048),
        depths=(3, 4, 6, 3),
        hidden=256,
        heads=8,
        feedforward=2048,
        encoder_layers=6,
        decoder_layers=6,
        queries=100,
        logits=92,
    )
    torch.save({"model": DETR(config).state_dict()}, path)
    return path


def exported(checkpoint: Path, path: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Export in a process of its own: seconds and peak memory (MB of 1e6 bytes) of exporting and verifying."""
    command = [sys.executable, "-m", "vitesse", "export", str(checkpoint), "-o", str(path)]
    size = "x".join(map(str, SIZE))
    before, began = children_peak(), time.perf_counter()
    done = subprocess.run([*command, "--size", size, *options], check=True, capture_output=True, text=True)
    took = time.perf_counter() - began
    print(done.stdout)
    found = counted(stages.open_model(path))
    # The peak of all children so far: exact for the first and whenever it rises, else an upper bound.
    return {**found, "seconds": took, "peak_mb": max(children_peak(), before), "said": said(done.stdout)}


def said(stdout: str) -> dict[str, str]:
    """What `vitesse export` printed, without the name of the temporary file."""
    lines = (line.strip().partition(": ") for line in stdout.splitlines()[1:])
    return {key: value for key, _, value in lines}


def children_peak() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6


def counted(artifact: Artifact) -> dict[str, Any]:
    graph = onnx.load(artifact.path).graph
    operators = [node.op_type for node in graph.node]
    interesting = ("LayerNormalization", "BatchNormalization", "Gather", "Softmax", "MatMul", "Gemm")
    return {
        "nodes": len(operators),
        "bytes": artifact.bytes,
        "operators": {name: operators.count(name) for name in interesting},
    }


def compared(artifacts: Mapping[str, Artifact], seconds: float) -> tuple[Any, dict[str, float]]:
    """Latency of all graphs in one interleaved run, and how far the last layer's outputs lie from the original's."""
    feeds = {name: fed(artifact) for name, artifact in artifacts.items()}
    wanted = outputs(artifacts[AUX], feeds[AUX])
    differences = {
        name: max(
            float(np.abs(found[key] - wanted[key]).max())
            for found in [outputs(artifact, feeds[name])]
            for key in ("logits", "boxes")
        )
        for name, artifact in artifacts.items()
    }
    with ExitStack() as stack:
        sessions = {
            name: Feeding(opened(stack, artifact, LoadOptions(plain=True)), feeds[name])
            for name, artifact in artifacts.items()
        }
        return interleave(sessions, [feeds[AUX]], seconds=seconds, min_rounds=8), differences


class Feeding:
    """A session that takes its own feeds, because the graphs do not all have the same inputs."""

    def __init__(self, session: Session, feeds: Tensors) -> None:
        self._session, self._feeds = session, feeds

    def run(self, feeds: Tensors) -> Any:
        return self._session.run(self._feeds)


def opened(stack: ExitStack, artifact: Artifact, options: LoadOptions) -> Session:
    engine = stack.enter_context(backend("onnxruntime").load(artifact, options))
    return stack.enter_context(engine.session())


def fed(artifact: Artifact) -> Tensors:
    """The same noise for every graph; the open one is told that the image covers all of it."""
    noise = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32)
    sizes = artifact.spec.valid_size_input
    return {artifact.spec.image_input: noise} | ({sizes: np.array([SIZE], np.int64)} if sizes else {})


def outputs(artifact: Artifact, feeds: Tensors) -> dict[str, Any]:
    """With every optimisation of the runtime off."""
    with ExitStack() as stack:
        found = opened(stack, artifact, LoadOptions(reference=True)).run(feeds).outputs
        return {name: np.array(value) for name, value in found.items()}


def table() -> str:
    found = json.loads(RESULTS.read_text())
    cpu = found["environment"]["cpu"]
    versions = found["environment"]["packages"]
    lines = [
        f"`{found['command']}` on {cpu['model']}, {found['threads']} cores; torch {versions['torch']}, "
        f"onnxruntime {versions['onnxruntime']}; {found['environment']['date'][:10]}:",
        "",
        "| graph | nodes | LayerNorm | Gather | MB | p50 ms | faster than with auxiliary heads (95 %) | max difference "
        "to it | export and verify |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["graphs"].items():
        low, high = row["gain_interval"]
        cost = f"{row['seconds']:.0f} s, {row['peak_mb'] / 1e3:.1f} GB" if "seconds" in row else ""
        lines.append(
            f"| `{name}` | {row['nodes']} | {row['operators']['LayerNormalization']} | {row['operators']['Gather']} "
            f"| {row['bytes'] / 1e6:.1f} | {row['p50_ms']:.0f} | {row['gain_over_aux']:.3f}× ({low:.3f}–{high:.3f}) "
            f"| {row['largest_difference_to_aux']:.1g} | {cost} |"
        )
    return "\n".join(lines)


BEGIN, END = "<!-- export:begin -->", "<!-- export:end -->"


def page_with_table(page: str) -> str:
    """The page with the table of the committed results between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    main()
