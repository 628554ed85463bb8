"""Which forms of a layer in eight bits do ONNX Runtime and OpenVINO compute fast? Interleaved, raw rounds kept.

    python benchmarks/int8_forms.py [--seconds S]   writes benchmarks/results/int8_forms.json
    python benchmarks/int8_forms.py --tables        writes the tables of docs/quantisation.md from this file

Every form is loaded as it is written, without what `vitesse build` makes of it, on one thread, and raced against
float32 and the other forms in both runtimes. A form whose result is not that of float32, but for rounding, ends the
command.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from int8_forms_graphs import CONVOLUTIONS, FLOAT, LINEAR, bottlenecks, perceptrons
from ledgers import ROOT, environment_text, rounded, with_section
from spin_interference import wrapped

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.onnxruntime import RUNNING_GRAPH
from vitesse.backends.protocol import LoadOptions, Session, Tensors
from vitesse.benchmark.latency import interleave, latency_of, ratio_of
from vitesse.environment import describe
from vitesse.errors import BackendError
from vitesse.measure import Candidate, opened

RESULTS = ROOT / "benchmarks" / "results" / "int8_forms.json"
PAGE = ROOT / "docs" / "quantisation.md"
SCRIPT = "python benchmarks/int8_forms.py"
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
ALONE = LoadOptions(threads=1)
# Mean difference over mean result: rounding to eight bits in every layer stays below, another result does not.
MOST_ERROR = 0.15
_KERNEL = re.compile(r"Conv|Gemm|MatMul")


@dataclass(frozen=True)
class Group:
    """Forms of the same layers: name of the form → graph, and the shape of what they read."""

    title: str
    graphs: Mapping[str, onnx.ModelProto]
    shape: tuple[int, ...]


def linear_layers(*, rows: int = 197, width: int = 768, hidden: int = 3072) -> Group:
    graphs = {name: perceptrons(form, rows=rows, width=width, hidden=hidden) for name, form in LINEAR.items()}
    title = f"Two MLPs of a transformer, {width} → {hidden} → {width}, on {rows} tokens"
    return Group(title, graphs, (1, rows, width))


def convolutions(width: int, inner: int, height: int, across: int) -> Group:
    graphs = {
        name: bottlenecks(form, width=width, inner=inner, height=height, across=across)
        for name, form in CONVOLUTIONS.items()
    }
    title = f"Three bottlenecks of convolutions, {width} → {inner} → {width} channels at {height} × {across}"
    return Group(title, graphs, (1, width, height, across))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the three races, at least")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(page_with_tables(PAGE.read_text()))
        return
    groups = [linear_layers(), convolutions(256, 64, 60, 80), convolutions(2048, 512, 15, 20)]
    found = {
        "command": f"{SCRIPT} --seconds {options.seconds:g}",
        "environment": describe(),
        "threads": ALONE.threads,
        "groups": [measured(group, options.seconds) for group in groups],
    }
    RESULTS.write_text(json.dumps(rounded(found)) + "\n")


def measured(group: Group, seconds: float, min_rounds: int = 12) -> dict[str, Any]:
    """Race all forms of a group in both runtimes; a form that a runtime refuses is named with its reason."""
    print(group.title, flush=True)
    values = np.abs(np.random.default_rng(1).standard_normal(group.shape)).astype(np.float32)
    feeds: Tensors = {"x": values}
    refused: dict[str, str] = {}
    with TemporaryDirectory(prefix="vitesse-") as folder, ExitStack() as stack:
        sessions: dict[str, Session] = {}
        kernels = {}
        for at, (form, graph) in enumerate(group.graphs.items()):
            path = Path(folder) / f"form{at}.onnx"
            path.write_bytes(graph.SerializeToString())
            artifact = wrapped(path)
            kernels[form] = kernels_of(artifact)
            for runtime in RUNTIMES:
                candidate = Candidate(replace(artifact, backend=runtime), ALONE)
                try:
                    sessions[key(runtime, form)] = stack.enter_context(opened(candidate))
                except BackendError as error:
                    refused[key(runtime, form)] = error.what
        errors = check_agreement({name: result(one, feeds) for name, one in sessions.items()})
        run = interleave(sessions, [feeds], seconds=seconds, min_rounds=min_rounds)
    return {
        "title": group.title,
        "kernels": kernels,
        "refused": refused,
        "mean_error": errors,
        "samples": run.to_json(),
    }


def key(runtime: str, form: str) -> str:
    return f"{runtime}: {form}"


def result(session: Session, feeds: Tensors) -> np.ndarray[Any, Any]:
    return np.array(next(iter(session.run(feeds).outputs.values())))


def kernels_of(artifact: Artifact) -> dict[str, int]:
    """Count the layers' operators in the graph that ONNX Runtime runs, fused and renamed."""
    prefix = str(artifact.path.with_suffix(""))
    with backend("onnxruntime").load(artifact, replace(ALONE, profile_to=prefix)):
        running = onnx.load(f"{prefix}{RUNNING_GRAPH}", load_external_data=False)
    return dict(Counter(node.op_type for node in running.graph.node if _KERNEL.search(node.op_type)))


def check_agreement(results: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """Mean difference to float32 over its mean: a form that computes something else has no speed."""
    wanted = results[key("onnxruntime", FLOAT)]
    errors = {
        name: float(np.abs(one - wanted).mean() / np.abs(wanted).mean()) for name, one in results.items()
    }
    for name, error in errors.items():
        if not error <= MOST_ERROR:
            raise SystemExit(f"{name} differs from {FLOAT} by {error:.3g} of its mean result")
    return errors


def table(group: Mapping[str, Any]) -> str:
    """One line a form: ONNX Runtime's kernels, p50 and gain over float32 on each runtime."""
    heads = [f"{name}, ms | gain (spread)" for name in RUNTIMES.values()]
    lines = [f"| form | ONNX Runtime's kernels | {' | '.join(heads)} |", f"|{'---|' * (2 + 2 * len(heads))}"]
    for form, kernels in group["kernels"].items():
        said = ", ".join(f"{count} {name}" for name, count in sorted(kernels.items()))
        cells = [time_cells(group["samples"]["rounds"], runtime, form) for runtime in RUNTIMES]
        lines.append(f"| {' | '.join([form, said or '–', *cells])} |")
    return "\n".join(lines)


def time_cells(rounds: Mapping[str, Any], runtime: str, form: str) -> str:
    """p50 in ms, and the median and quartiles over rounds of float32's time over this form's."""
    found, base = rounds.get(key(runtime, form)), rounds.get(key(runtime, FLOAT))
    if found is None:
        return "refused | –"
    p50 = latency_of([ms for block in found for ms in block]).p50
    if form == FLOAT or base is None:
        return f"{p50:.1f} | –"
    pairs = zip(base, found, strict=True)
    gain = ratio_of([statistics.median(a) / statistics.median(b) for a, b in pairs])
    return f"{p50:.1f} | {gain.value:.2f}× ({gain.spread[0]:.2f}–{gain.spread[1]:.2f})"


def section() -> str:
    if not RESULTS.is_file():
        return f"Not run: `{SCRIPT}`."
    found = json.loads(RESULTS.read_text())
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    parts = [
        f"`{found['command']}` on {environment_text(found['environment'])}; {threads}. ms: p50 of a call. gain: "
        "time of float32 over that of the form in the same runtime, its spread the interquartile range over the "
        "rounds. kernels: what stands in the graph that ONNX Runtime makes of the form."
    ]
    for group in found["groups"]:
        parts += [f"{group['title']}{disturbed(group['samples'])}:", table(group)]
        parts += [f"Refused, {name}: {' '.join(why.split())}" for name, why in group["refused"].items()]
    return "\n\n".join(parts)


def disturbed(samples: Mapping[str, Any]) -> str:
    """Say so where others took more than a tenth of a core meanwhile."""
    cores = samples["foreign_cores"]
    return f" (other processes kept {cores:.1f} cores busy meanwhile)" if cores and cores >= 0.1 else ""


def page_with_tables(page: str) -> str:
    """The page with the tables of the committed results between its marks."""
    return with_section(page, "forms", section())


if __name__ == "__main__":
    main()
