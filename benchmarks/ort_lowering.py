"""Which rewrites of a transformer does ONNX Runtime's CPU provider reward? Interleaved, raw samples kept.

    python benchmarks/ort_lowering.py [--case NAME …] [--threads 1 2] [--rounds 40]
    python benchmarks/ort_lowering.py --table

The first writes benchmarks/results/ort_lowering.json (cases that were not run keep their earlier samples), the second
prints the table of docs/onnxruntime_lowering.md from it. Weights are random. Every candidate is loaded with ONNX
Runtime's default graph optimisation, so that only what it does not do by itself can win.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ort_lowering_graphs import CASES, Case, Form, layers

from vitesse.backends.onnxruntime_lowering import lower
from vitesse.benchmark.quiet import ForeignLoad, settle
from vitesse.environment import describe, usable_cores

RESULTS = Path(__file__).parent / "results" / "ort_lowering.json"
BASELINE = "standard operators"
Candidates = Mapping[str, tuple[onnx.ModelProto, Mapping[str, str]]]
QUIET_CORES = 0.2  # cores that other work may take from those a round uses
SAMPLE_S = 0.02
MOST_ATTEMPTS = 8  # rounds tried for each one wanted
NO_SKIP = {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}


def candidates(case: Case) -> Candidates:
    """Name → (graph, session configuration); the first is what the others are divided by."""

    def made(**changes: Any) -> tuple[onnx.ModelProto, Mapping[str, str]]:
        return layers(case, Form(**changes)), {}

    standard = layers(case, Form())
    found = {
        BASELINE: (standard, {}),
        "written out (as exported)": made(attention="written out", gelu="written out"),
        "lower(): Gemm on matrices": (lower(standard)[0], {}),
        "session without SkipLayerNormFusion": (standard, NO_SKIP),
        "MultiHeadAttention": made(attention="MultiHeadAttention"),
        "MultiHeadAttention with bias": made(attention="MultiHeadAttention with bias"),
        "SkipLayerNormalization": made(norm="SkipLayerNormalization"),
    }
    if case.memory:
        return found | {"keys and values of all layers in one MatMul": made(projections="packed")}
    return found | {
        "query, key, value in one MatMul": made(projections="packed"),
        "com.microsoft.Attention": made(attention="com.microsoft.Attention"),
        "FastGelu with bias": made(gelu="FastGelu"),
        "BiasGelu": made(gelu="BiasGelu"),
    }


def session(model: onnx.ModelProto, threads: int, configuration: Mapping[str, str]) -> Any:
    """A session with ONNX Runtime's default optimisation level."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in configuration.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, threads: int
) -> tuple[dict[str, list[float]], int]:
    """Milliseconds per call, one sample per round and candidate, and the number of rounds that were tried.

    Every round runs all candidates in turn; a round during which other work needed the cores of this one is dropped.
    """
    calls: dict[str, int] = {}
    for name, run in runs.items():
        for _ in range(5):
            run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, round(SAMPLE_S / (time.perf_counter() - start)))
    shared = min(calls.values())
    samples: dict[str, list[float]] = {name: [] for name in runs}
    allowed = max(0, usable_cores() - threads) + QUIET_CORES
    kept = attempts = 0
    while kept < rounds and attempts < MOST_ATTEMPTS * rounds:
        attempts += 1
        load, this = ForeignLoad(), {}
        for name, run in runs.items():
            settle()  # worker threads of the candidate before spin on for a while
            for _ in range(2):
                run()
            start = time.perf_counter()
            for _ in range(shared):
                run()
            this[name] = (time.perf_counter() - start) / shared * 1e3
        if (load.cores() or 0.0) > allowed:
            continue
        kept += 1
        for name, value in this.items():
            samples[name].append(value)
    if kept < 2:
        raise SystemExit(
            f"the machine was busy with other work in {attempts} of {attempts} rounds: repeat when idle"
        )
    return samples, attempts


def check_agreement(outputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """Largest difference to the baseline, by candidate; a candidate that computes something else has no speed.

    Tanh and erf GELU differ by up to 5e-4 per layer.
    """
    reference = outputs[BASELINE]
    differences = {name: float(np.abs(output - reference).max()) for name, output in outputs.items()}
    for name, difference in differences.items():
        if difference > (0.05 if "FastGelu" in name else 1e-3):
            raise SystemExit(f"{name} differs from {BASELINE} by {difference:.3g}")
    return differences


def measure(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """Samples of all candidates of one case."""
    sessions = {name: session(model, threads, how) for name, (model, how) in candidates(case).items()}
    feeds = case.feeds()
    differences = check_agreement({name: s.run(None, feeds)[0] for name, s in sessions.items()})

    def call(target: Any) -> Callable[[], Any]:
        return lambda: target.run(None, feeds)

    samples, tried = interleaved({name: call(s) for name, s in sessions.items()}, rounds, threads)
    return {"ms": samples, "max_abs_difference": differences, "rounds_tried": tried}


def ratio(samples: Mapping[str, list[float]], name: str) -> tuple[float, float, float]:
    """Baseline over candidate: median and quartiles of the per-round ratios; above 1 is faster."""
    rounds = [a / b for a, b in zip(samples[BASELINE], samples[name], strict=True)]
    low, middle, high = statistics.quantiles(rounds, n=4)
    return middle, low, high


def table(results: Mapping[str, Any]) -> str:
    """Markdown: one row per candidate, one column per case and number of threads."""
    keys = list(results["cases"])
    names = list(dict.fromkeys(name for key in keys for name in results["cases"][key]["ms"]))
    lines = ["| | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    medians = [f"{statistics.median(results['cases'][key]['ms'][BASELINE]):.3g} ms" for key in keys]
    lines.append(f"| {BASELINE} | " + " | ".join(medians) + " |")
    for name in names[1:]:
        cells = []
        for key in keys:
            samples = results["cases"][key]["ms"]
            cells.append("{:.2f} ({:.2f}–{:.2f})".format(*ratio(samples, name)) if name in samples else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cases": {}}
    if given.table:
        print(table(results))
        return
    for name in given.case:
        for threads in given.threads:
            key = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            results["cases"][key] = {**measure(CASES[name], threads, given.rounds), "environment": describe()}
            RESULTS.write_text(json.dumps(results) + "\n")
            print(
                key,
                {n: f"{ratio(results['cases'][key]['ms'], n)[0]:.3f}" for n in results["cases"][key]["ms"]},
            )


if __name__ == "__main__":
    main()
