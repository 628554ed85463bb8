"""What INT8 and FP8 cost in accuracy by number format, calibration method and bias correction: every layer lowered.

    python benchmarks/int8_methods.py [NAME …] [--limit N]   writes benchmarks/results/int8_methods.json
    python benchmarks/int8_methods.py --tables               writes the table of docs/quantisation.md from this file

Each model is cleaned and fused once and calibrated in one pass, whose histograms serve every method; models that were
not run keep their earlier rows. Every layer that `layers_of` returns is lowered, without a search; the file is built
for ONNX Runtime and judged on the validation images as `vitesse optimize` does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from ledgers import CASES, ROOT, Case, environment_text, with_section

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import LoadOptions
from vitesse.data.dataset import Dataset, open_dataset
from vitesse.environment import describe
from vitesse.ledger import Accuracy
from vitesse.measure import Candidate, opened
from vitesse.pipeline import HOLDOUT
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.layers import flops_share, layers_of
from vitesse.precision.quantize import quantize
from vitesse.precision.weights import weight_bits_here
from vitesse.recipe import METHODS, Int8Options
from vitesse.report.figures import METRICS, signed
from vitesse.verify.accuracy import against, evaluate

RESULTS = ROOT / "benchmarks" / "results" / "int8_methods.json"
PAGE = ROOT / "docs" / "quantisation.md"
SCRIPT = "python benchmarks/int8_methods.py"
NAMES = ("detr_fashion", "vit_fashion", "deimv2_atto")
THREADS = 2


@dataclass(frozen=True)
class Trial:
    """One way to lower everything. number: how activations are stored; smooth: SmoothQuant's alpha, 0 = none."""

    number: str
    method: str
    bias_correction: bool = True
    smooth: float = 0.0

    @property
    def symmetric(self) -> bool:
        return self.number != "uint8"

    @property
    def format(self) -> str:
        """What `quantize` calls the number: how activations are stored follows from their ranges."""
        return "fp8" if self.number == "fp8" else "int8"

    @property
    def options(self) -> Int8Options:
        return Int8Options(method=self.method, bias_correction=self.bias_correction, smooth=self.smooth)


TRIALS = (
    *(Trial("uint8", method) for method in METHODS),
    Trial("uint8", "percentile", bias_correction=False),
    Trial("uint8", "percentile", smooth=0.5),
    *(Trial("int8", method) for method in METHODS),
    Trial("fp8", "minmax"),
    Trial("fp8", "minmax", bias_correction=False),
)
NUMBERS = {"uint8": "uint8", "int8": "symmetric int8", "fp8": "FP8"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME")
    parser.add_argument("--limit", type=int, help="validation images at most (default: all)")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(page_with_table(PAGE.read_text()))
        return
    for name in options.names or NAMES:
        given = [] if options.limit is None else [f"--limit {options.limit}"]
        found = {
            "command": " ".join([SCRIPT, name, *given]),
            "environment": describe(),
            **measured(CASES[name], options.limit),
        }
        kept = {**results(), name: found}
        RESULTS.write_text(json.dumps({one: kept[one] for one in NAMES if one in kept}, indent=1) + "\n")


def results() -> dict[str, Any]:
    """What was measured so far, by name of the model."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def measured(case: Case, limit: int | None) -> dict[str, Any]:
    """Lower one model in every way of TRIALS and say what each costs, in points of its metric."""
    with TemporaryDirectory(prefix="vitesse-") as folder:
        store = Store(Path(folder))
        source = stages.open_model(case.model, preset=case.recipe.preset, spec=case.recipe.spec)
        data = open_dataset(case.images, spec=source.spec, holdout=HOLDOUT)
        original = accuracy(source, data, limit, plain=True)
        graph = stages.fuse(stages.clean(source, store).artifact, store).artifact
        model = onnx.load(graph.path)
        found = {
            "metric": original.metric,
            "images": original.images,
            "calibration_images": len(data.calib.spread(case.recipe.data.calib_images)),
            "original": original.value,
            "flops_share": flops_share(layers_of(model), model),
            "weight_bits": weight_bits_here(),
        }
        rows = []
        for trial in TRIALS:
            lowered = lower(graph, store, data, case.recipe.data.calib_images, trial)
            lost = against(accuracy(lowered, data, limit), original)
            rows.append({**asdict(trial), "value": lost.value, "drop": lost.drop})
            print(case.title, rows[-1], flush=True)
    return {**found, "rows": rows}


def lower(graph: Artifact, store: Store, data: Dataset, calib_images: int, trial: Trial) -> Artifact:
    """Calibrate, lower everything that may be, and build the file that ONNX Runtime runs."""
    calibrated = calibrate_graph(
        graph,
        store,
        stages.CalibrationFeeds(data.calib.spread(calib_images), graph.spec),
        trial.options,
        symmetric=trial.symmetric,
        cache=store.folder,
        data_key=f"{data.sha256} {calib_images}",
    )
    names = [layer.name for layer in calibrated.layers]
    made = quantize(calibrated.artifact, store, names, calibrated.ranges, trial.options, number=trial.format)
    return stages.build(made.artifact, "onnxruntime", store).artifact


def accuracy(artifact: Artifact, data: Dataset, limit: int | None, *, plain: bool = False) -> Accuracy:
    split = data.val if limit is None else data.val.spread(limit)
    options = LoadOptions(plain=True) if plain else LoadOptions(threads=THREADS)
    with opened(Candidate(artifact, options)) as session:
        return evaluate(lambda feeds: session.run(feeds).outputs, split, artifact.spec).accuracy


def table(found: Mapping[str, Any]) -> str:
    """One line a way to lower, one column a model: points lost."""
    shown = [name for name in NAMES if name in found]
    heads = [f"{CASES[name].title}, {found[name]['images']} images" for name in shown]
    lines = [
        f"| activations | range | bias correction | SmoothQuant | {' | '.join(heads)} |",
        f"|{'---|' * (4 + len(shown))}",
    ]
    lost = {name: {trial_of(row): row["drop"] for row in found[name]["rows"]} for name in shown}
    for trial in TRIALS:
        drops = [lost[name].get(trial) for name in shown]
        cells = ["not run" if drop is None else signed(drop) for drop in drops]
        how = [
            NUMBERS[trial.number],
            trial.method,
            "yes" if trial.bias_correction else "no",
            f"{trial.smooth:g}" if trial.smooth else "no",
        ]
        lines.append(f"| {' | '.join([*how, *cells])} |")
    return "\n".join(lines)


def trial_of(row: Mapping[str, Any]) -> Trial:
    return Trial(**{one.name: row[one.name] for one in fields(Trial)})


def description(name: str, found: Mapping[str, Any] | None) -> str:
    """What stands above the table about one model."""
    title = CASES[name].title
    if found is None:
        return f"* {title}: not run: `{SCRIPT} {name}`"
    return (
        f"* {title}: {METRICS[found['metric']]} {found['original']:.4f} on {found['images']} images, calibrated on "
        f"{found['calibration_images']}; {100 * found['flops_share']:.0f} % of the operations of convolutions and "
        f"linear layers lowered, weights of {found['weight_bits']} bits. `{found['command']}` on "
        f"{environment_text(found['environment'])}."
    )


def section() -> str:
    found = results()
    parts = ["\n".join(description(name, found.get(name)) for name in NAMES)]
    if found:
        parts += ["Points lost, of AP or top-1; less than 0 is a gain:", table(found)]
    return "\n\n".join(parts)


def page_with_table(page: str) -> str:
    """The page with the table of the committed results between its marks."""
    return with_section(page, "methods", section())


if __name__ == "__main__":
    main()
