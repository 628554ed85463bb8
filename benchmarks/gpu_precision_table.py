"""The table of what gpu_precision.py measured, for docs/precision.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cells import in_cell
from ledgers import ROOT

from vitesse.report.figures import METRICS, signed

RESULTS = ROOT / "benchmarks" / "results"
PREFIX = "gpu_precision_"
NOT_RUN = "not run"


def gpu_table() -> str:
    """Every model of every case: latency by batch size, gain over the first one, accuracy lost on this device."""
    files = sorted(RESULTS.glob(f"{PREFIX}*.json"))
    if not files:
        return "Not run: `benchmarks/gpu_precision.py` needs an NVIDIA GPU."
    return "\n\n".join(
        case_table(file.stem.removeprefix(PREFIX), json.loads(file.read_text())) for file in files
    )


def case_table(name: str, found: Mapping[str, Any]) -> str:
    batches = list(found["batches"])
    environment = found["environment"]
    accuracies = found["accuracy"]
    metric = next((METRICS[one["metric"]] for one in accuracies.values()), "accuracy")
    images = next((one["images"] for one in accuracies.values()), 0)
    heads = [f"batch {batch}: ms | gain (spread)" for batch in batches]
    lines = [
        f"**{name}**: `{found['command']}` on {environment['gpu']}, ONNX Runtime {environment['onnxruntime']}, "
        f"CUDA provider; {metric} on {images} images.",
        "",
        f"| file | {' | '.join(heads)} | {metric} | lost, points | remarks |",
        f"|{'---|' * (4 + 2 * len(batches))}",
    ]
    for label, model in found["models"].items():
        times = [time_cells(found["batches"][batch].get(label, {})) for batch in batches]
        accuracy = accuracies.get(label)
        worth = [NOT_RUN] * 2 if accuracy is None else [f"{accuracy['value']:.4f}", signed(accuracy["drop"])]
        said = remarks(model, [found["batches"][batch].get(label, {}) for batch in batches])
        lines.append(f"| {' | '.join([label, *times, *worth, in_cell(said)])} |")
    return "\n".join(lines)


def time_cells(times: Mapping[str, Any]) -> str:
    if "p50_ms" not in times:
        return f"{NOT_RUN} | {NOT_RUN}"
    gain = NOT_RUN
    if "gain" in times:
        low, high = times["gain_spread"]
        gain = f"{times['gain']:.2f}× ({low:.2f}–{high:.2f})"
    return f"{times['p50_ms']:.3f} | {gain}"


def remarks(model: Mapping[str, Any], times: list[Mapping[str, Any]]) -> str:
    errors = dict.fromkeys(one["error"] for one in (model, *times) if "error" in one)
    on_cpu = ", ".join(f"{count} {name}" for name, count in model.get("on_cpu", {}).items())
    return "; ".join([*errors, *([f"on the CPU: {on_cpu}"] if on_cpu else [])]) or "–"
