"""The main job on every model at hand, with its ledger and raw samples kept, and the tables made from them.

    python benchmarks/ledgers.py [NAME …]     runs (all, or those named) and writes benchmarks/results/ledgers/NAME.json
    python benchmarks/ledgers.py --tables     writes docs/results.md and the table in README.md from these files

The models and image sets lie in ../shared/data (or $VITESSE_SHARED_DATA); the ViT-B/16 has random weights, is made here
and needs torch. A gain is against `InferenceSession(model.onnx)` with default options, interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cells import in_cell

from vitesse.ledger import Ledger, Row, load_ledger
from vitesse.pipeline import optimize
from vitesse.recipe import DataOptions, Recipe, SearchOptions
from vitesse.report.figures import METRICS
from vitesse.report.progress import progress_bar

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ledgers"
DATA = Path(os.environ.get("VITESSE_SHARED_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """A run: title for the tables, model file or checkpoint, image folder, recipe, and what a reader must know.

    make: writes a model that lies nowhere to the path it is given.
    """

    title: str
    model: Path
    images: Path
    recipe: Recipe = field(default_factory=Recipe)
    note: str = ""
    make: Callable[[Path], None] | None = None


def random_vit(path: Path, *, patch: int, hidden: int, layers: int, heads: int) -> None:
    """Write a ViT of 1,000 classes at 224×224 with random weights; its MLPs are four times as wide."""
    import torch

    from vitesse.export.torch_onnx import Network, trace
    from vitesse.metadata import serialise
    from vitesse.sources.source import ExportOptions
    from vitesse.sources.vit import ViT, ViTConfig
    from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

    half = (0.5, 0.5, 0.5)
    rules = Preprocessing((224, 224), mean=half, std=half)
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, rules)
    torch.manual_seed(0)
    model = ViT(ViTConfig((224, 224), patch, hidden, layers, heads, 4 * hidden, 1000))
    images = {"images": torch.zeros(2, 3, 224, 224)}
    network = Network(model, images, ("logits",), spec, {"images": {0: "batch"}})
    path.write_bytes(serialise(trace(network, ExportOptions()), spec))


UNPACKED = "The file stores its weights as FP16 to be small; cleaning unpacks them, so the size grows first."
CASES = {
    "detr_fashion": Case(
        "DETR (3.2 M, 256×256)",
        ROOT / "examples/fashion/detr_fashion.onnx",
        DATA / "detr_fashion",
        note=UNPACKED,
    ),
    "vit_fashion": Case(
        "ViT (1.2 M, 56×56)", ROOT / "examples/fashion/vit_fashion.onnx", DATA / "vit_fashion"
    ),
    "detr_fashion_pth": Case(
        "DETR from its `.pth`, FP32 only",
        DATA / "detr_fashion/detr_fashion.pth",
        DATA / "detr_fashion",
        Recipe(spec=str(ROOT / "examples/fashion/detr.toml"), precisions=("fp32",)),
        "Exported by Vitesse from the checkpoint; needs torch.",
    ),
    "vit_fashion_npz": Case(
        "ViT from its `.npz`, FP32 only",
        DATA / "vit_fashion/vit_fashion.npz",
        DATA / "vit_fashion",
        Recipe(spec=str(ROOT / "examples/fashion/vit.toml"), precisions=("fp32",)),
        "Exported by Vitesse from the JAX checkpoint; needs torch.",
    ),
    "deimv2_atto": Case(
        "DEIMv2-Atto (0.5 M, 320×320)",
        DATA / "deimv2/deimv2_hgnetv2_atto_coco.onnx",
        DATA / "coco_ccby",
        Recipe(preset="deimv2"),
        "48 of the 53 photos: 5 are held out to calibrate INT8.",
    ),
    "deimv2_atto_fp32": Case(
        "DEIMv2-Atto, FP32 only",
        DATA / "deimv2/deimv2_hgnetv2_atto_coco.onnx",
        DATA / "coco_ccby",
        Recipe(preset="deimv2", precisions=("fp32",)),
        "All 53 photos: without INT8 nothing is held out.",
    ),
    "vit_b16_random": Case(
        "ViT-B/16 (86 M, 224×224, random weights)",
        Path("vit_b16_random.onnx"),
        DATA / "coco_ccby/images",
        Recipe(
            max_drop=100.0,
            data=DataOptions(limit=16, calib_images=16),
            search=SearchOptions(images=8, minutes=4.0),
        ),
        "Random weights: for speed only, the accuracy budget is off.",
        partial(random_vit, patch=16, hidden=768, layers=12, heads=12),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        write_tables()
        return
    for name in options.names or CASES:
        run(name, CASES[name])


def run(name: str, case: Case) -> None:
    keep_run(case, RESULTS / f"{name}.json", f"python benchmarks/ledgers.py {name}")


def keep_run(case: Case, file: Path, command: str) -> None:
    """Optimize and keep the ledger in `file`, and the raw samples beside it as `NAME.samples.json`."""
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        model = case.model
        if case.make is not None:
            model = Path(folder) / case.model.name
            case.make(model)
        with progress_bar() as progress:
            done = optimize(
                model, data=case.images, out=Path(folder) / "run", recipe=case.recipe, progress=progress
            )
        # Messages of runtimes name the file where it lay.
        kept = json.loads((done.folder / "ledger.json").read_text().replace(f"{folder}/", ""))
        kept["source"], kept["command"] = case.model.name, command
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept, indent=1) + "\n")
        samples = {
            path.stem: json.loads(path.read_text()) for path in sorted((done.folder / "samples").iterdir())
        }
        samples_file = file.with_name(f"{file.stem}.samples.json")
        samples_file.write_text(json.dumps(rounded(samples), separators=(",", ":")) + "\n")


def rounded(value: Any) -> Any:
    """Round every number to a tenth of a microsecond: what lies beyond is noise, and the files stay small."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


def ledgers() -> Iterator[tuple[Case, Ledger]]:
    for name, case in CASES.items():
        if (RESULTS / f"{name}.json").is_file():
            yield case, load_ledger(RESULTS / f"{name}.json")


def summary_table() -> str:
    """One line a model: what was chosen, how much faster, at what cost."""
    lines = [
        "| model | chosen | p50 ms | gain (spread) | accuracy | lost, points | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, ledger in ledgers():
        row, source, final = ledger.chosen_row(), ledger.rows[0], ledger.final or {}
        assert row.accuracy is not None
        assert source.accuracy is not None
        assert row.artifact is not None
        assert source.artifact is not None
        metric = METRICS[row.accuracy.metric]
        lines.append(
            f"| {case.title} | {row.stage} | {final['baseline_p50_ms']:.2f} → {final['chosen_p50_ms']:.2f} "
            f"| **{final['gain']:.2f}×** ({final['gain_spread'][0]:.2f}–{final['gain_spread'][1]:.2f}) "
            f"| {metric} {source.accuracy.value:.4f} → {row.accuracy.value:.4f} | {row.accuracy.drop:.2f} "
            f"| {source.artifact.bytes / 1e6:.1f} → {row.artifact.bytes / 1e6:.1f} |"
        )
    return "\n".join(lines)


def step_table(ledger: Ledger) -> str:
    """Every step of one run."""
    lines = [
        "| step | accuracy | lost, points | gain (spread) | img/s | memory MB | verdict | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(step_line(row) for row in ledger.rows)])


def step_line(row: Row) -> str:
    accuracy = (
        ["–", "–"] if row.accuracy is None else [f"{row.accuracy.value:.4f}", f"{row.accuracy.drop:.2f}"]
    )
    more = ["–" if value is None else f"{value:.0f}" for value in (row.throughput_per_s, row.memory_mb)]
    gain = gain_text(row) or "–"
    return f"| {' | '.join([row.stage, *accuracy, gain, *more, row.verdict.value, in_cell(row.reason)])} |"


def gain_text(row: Row) -> str:
    """The gain with its spread; empty where it was not measured."""
    spread = "" if row.gain_spread is None else f" ({row.gain_spread[0]:.2f}–{row.gain_spread[1]:.2f})"
    return "" if row.gain is None else f"{row.gain:.2f}×{spread}"


def environment_line(ledger: Ledger) -> str:
    return environment_text(ledger.environment)


def environment_text(found: Mapping[str, Any]) -> str:
    """Processor, versions and day in one line, from what `vitesse.environment.describe` found."""
    cpu, packages = found["cpu"], found["packages"]
    flags = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in cpu["flags"]
    ]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("onnxruntime", "openvino") if name in packages
    )
    return (
        f"{cpu['model']}, {cpu['usable_cores']} cores, {', '.join(flags)}; {versions}; {found['date'][:10]}"
    )


def results_page() -> str:
    parts = [
        "# Results",
        "Made by `python benchmarks/ledgers.py --tables` from `benchmarks/results/ledgers/*.json`, which\n"
        "`python benchmarks/ledgers.py` measured; the raw samples lie beside them. A gain is the p50 of\n"
        "`InferenceSession(model.onnx)` with default options over the p50 of the step, interleaved, batch 1; its\n"
        "spread is the interquartile range over the rounds. How: [benchmarking.md](benchmarking.md). On another\n"
        "processor other steps win: INT8 above all depends on VNNI.",
        summary_table(),
    ]
    for case, ledger in ledgers():
        parts += [f"## {case.title}", f"{environment_line(ledger)}. {case.note}".strip(), step_table(ledger)]
    return "\n\n".join(parts) + "\n"


def readme_with_table(readme: str) -> str:
    """Return the README with the summary between its markers."""
    environment = environment_line(next(iter(ledgers()))[1])
    said = f"Measured with `python benchmarks/ledgers.py` on {environment} ([every step](docs/results.md)):"
    return with_section(readme, "results", f"{said}\n\n{summary_table()}")


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with `text` between its markers NAME:begin and NAME:end; ends the command where they lack."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    made, found = re.subn(
        pattern, lambda marks: f"{marks[1]}{text}\n{marks[2]}", page, count=1, flags=re.DOTALL
    )
    if not found:
        raise SystemExit(f"the page lacks <!-- {name}:begin --> and <!-- {name}:end -->, one below the other")
    return made


def write_tables() -> None:
    (ROOT / "docs" / "results.md").write_text(results_page())
    readme = ROOT / "README.md"
    readme.write_text(readme_with_table(readme.read_text()))


if __name__ == "__main__":
    main()
