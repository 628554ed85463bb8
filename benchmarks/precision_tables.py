"""Every precision and lever on the models at hand, and the tables made from it.

    python benchmarks/precision_tables.py [NAME …] [--seconds S] [--limit N]
    python benchmarks/precision_tables.py --tables

The first runs `vitesse.optimize` with the recipes of benchmarks/recipes and writes
benchmarks/results/precision_NAME.json, the raw samples beside it; `vit_variants` stands for all three ViTs with random
weights. The second writes the tables of docs/precision.md from these files, and from those of gpu_precision.py.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cells import in_cell
from gpu_precision_table import gpu_table
from ledgers import DATA, ROOT, UNPACKED, Case, environment_line, gain_text, keep_run, random_vit
from precision_targets import precision_of, target_table

from vitesse.ledger import Ledger, Verdict, load_ledger
from vitesse.recipe import Recipe, load_recipe
from vitesse.report.figures import Cell, RowText, metric_name, row_texts

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "precision.md"
BEGIN, END = "<!-- precision:begin -->", "<!-- precision:end -->"
NOT_RUN = "not run"
# What a line shows of a row, by the key of its cell.
FIGURES = {
    "p50": "latency",
    "speed": "throughput",
    "memory": "memory",
    "accuracy": "accuracy",
    "gain": "gain",
}


def recipe(name: str, **changes: Any) -> Recipe:
    return replace(load_recipe(ROOT / "benchmarks" / "recipes" / f"{name}.toml"), **changes)


def variant(title: str, note: str = "", **sizes: int) -> Case:
    """A ViT with random weights at 224×224."""
    name = title.lower().replace("/", "").replace("-", "_").split(",")[0]
    make = partial(random_vit, **sizes)
    return Case(
        title, Path(f"{name}_random.onnx"), DATA / "coco_ccby/images", recipe("vit_variant"), note, make
    )


EXAMPLES = ROOT / "examples/fashion"
BUDGET_OFF = "The accuracy budget is off, so that every setting is measured."
DETECTORS = {
    "detr_fashion": Case(
        "DETR (3.2 M, 256×256)",
        EXAMPLES / "detr_fashion.onnx",
        DATA / "detr_fashion",
        recipe("detr_fashion"),
        UNPACKED,
    ),
    "deimv2": Case(
        "DEIMv2-Atto (0.5 M, 320×320)",
        DATA / "deimv2/deimv2_hgnetv2_atto_coco.onnx",
        DATA / "coco_ccby",
        recipe("deimv2"),
        "48 of the 53 photos: 5 are held out to calibrate.",
    ),
    "detr_levers": Case(
        "DETR made smaller",
        DATA / "detr_fashion/detr_fashion.pth",
        DATA / "detr_fashion",
        recipe("detr_levers", spec=str(EXAMPLES / "detr.toml")),
    ),
    "detr_decoder": Case(
        "DETR, every number of decoder layers",
        EXAMPLES / "detr_fashion.onnx",
        DATA / "detr_fashion",
        recipe("every_setting", levers=("decoder",)),
        BUDGET_OFF,
    ),
    "deimv2_queries": Case(
        "DEIMv2-Atto, every number of queries",
        DATA / "deimv2/deimv2_hgnetv2_atto_coco.onnx",
        DATA / "coco_ccby",
        recipe("every_setting", levers=("queries",), preset="deimv2"),
        BUDGET_OFF,
    ),
}
CLASSIFIERS = {
    "vit_fashion": Case(
        "ViT (1.2 M, 56×56)", EXAMPLES / "vit_fashion.onnx", DATA / "vit_fashion", recipe("vit_fashion")
    ),
    "vit_levers": Case(
        "ViT made smaller",
        DATA / "vit_fashion/vit_fashion.npz",
        DATA / "vit_fashion",
        recipe("vit_levers", spec=str(EXAMPLES / "vit.toml")),
    ),
    "vit_size": Case(
        "ViT, every input size",
        DATA / "vit_fashion/vit_fashion.npz",
        DATA / "vit_fashion",
        recipe("every_setting", levers=("size",), spec=str(EXAMPLES / "vit.toml")),
        BUDGET_OFF,
    ),
    "vit_tokens": Case(
        "ViT, every rate of merging tokens",
        EXAMPLES / "vit_fashion.onnx",
        DATA / "vit_fashion",
        recipe("every_setting", levers=("tokens",)),
        BUDGET_OFF,
    ),
}
VARIANTS = {
    "vit_b32": variant("ViT-B/32", patch=32, hidden=768, layers=12, heads=12),
    "vit_l16": variant("ViT-L/16", patch=16, hidden=1024, layers=24, heads=16),
    "vit_h14": variant(
        "ViT-H/14, 16 of its 32 blocks",
        "The whole model has 632 M parameters, 2.5 GB as FP32: more than the 2 GB that an ONNX file holds inside.",
        patch=14,
        hidden=1280,
        layers=16,
        heads=16,
    ),
}
CASES = {**DETECTORS, **CLASSIFIERS, **VARIANTS}
GROUPS = {"vit_variants": tuple(VARIANTS)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*CASES, *GROUPS, []], metavar="NAME")
    parser.add_argument("--seconds", type=float, help="per latency measurement (default: the recipe's)")
    parser.add_argument("--limit", type=int, help="validation images at most (default: the recipe's)")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(page_with_tables(PAGE.read_text()))
        return
    for asked in options.names or CASES:
        for name in GROUPS.get(asked, (asked,)):
            run(name, options.seconds, options.limit)


def run(name: str, seconds: float | None, limit: int | None) -> None:
    case = with_options(CASES[name], seconds, limit)
    asked = {"--seconds": seconds, "--limit": limit}
    given = [f"{option} {value:g}" for option, value in asked.items() if value is not None]
    keep_run(case, file_of(name), " ".join(["python benchmarks/precision_tables.py", name, *given]))
    # The next model may need all the memory that this one's graphs still hold.
    gc.collect()


def with_options(case: Case, seconds: float | None, limit: int | None) -> Case:
    measure, data = case.recipe.measure, case.recipe.data
    if seconds is not None:
        measure = replace(measure, seconds=seconds)
    if limit is not None:
        data = replace(data, limit=limit)
    return replace(case, recipe=replace(case.recipe, measure=measure, data=data))


def file_of(name: str) -> Path:
    return RESULTS / f"precision_{name}.json"


def found_ledgers() -> dict[str, Ledger]:
    return {name: load_ledger(file_of(name)) for name in CASES if file_of(name).is_file()}


def figure(cell: Cell) -> str:
    """A figure, or that there is none; the reason stands in the row's last column."""
    return NOT_RUN if cell.reason else cell.text


def remark(row: RowText) -> str:
    """Verdict, why in one line, and what was not measured and why."""
    missing: dict[str, list[str]] = {}
    for key, name in FIGURES.items():
        if row.cells[key].reason:
            missing.setdefault(row.cells[key].reason, []).append(name)
    said = [f"{', '.join(names)} {NOT_RUN}: {why}" for why, names in missing.items()]
    why = row.reason.partition("\n")[0]
    return in_cell("; ".join([f"{row.verdict.value}: {why}", *said]))


def detector_table(ledger: Ledger) -> str:
    """One line a step: stage, ms, FPS, memory MB, AP, gain."""
    lines = [
        f"| stage | ms | FPS | memory MB | {metric_name(ledger)} | lost, points | gain (spread) | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, kept in zip(row_texts(ledger), ledger.rows, strict=True):
        keys = ("p50", "speed", "memory", "accuracy", "drop")
        figures = [figure(row.cells[key]) for key in keys]
        lines.append(line(row.stage, *figures, gain_text(kept) or NOT_RUN, remark(row)))
    return "\n".join(lines)


def classifier_table(ledger: Ledger) -> str:
    """One line a step: precision, images/s, memory, top-1 loss."""
    metric = metric_name(ledger)
    lines = [
        f"| precision | step | images/s | ms | memory MB | {metric} | loss, points | gain (spread) | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, kept in zip(row_texts(ledger), ledger.rows, strict=True):
        keys = ("speed", "p50", "memory", "accuracy", "drop")
        figures = [figure(row.cells[key]) for key in keys]
        begin = (precision_of(row.stage), row.stage)
        lines.append(line(*begin, *figures, gain_text(kept) or NOT_RUN, remark(row)))
    return "\n".join(lines)


def variant_table(ledgers: Mapping[str, Ledger]) -> str:
    """One line a variant and step, without accuracy: the weights are random."""
    lines = [
        "| variant | precision | step | images/s | ms | memory MB | gain (spread) | accuracy | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in VARIANTS.items():
        if name not in ledgers:
            lines.append(line(case.title, *["–"] * 2, *[NOT_RUN] * 4, "speed only", "–"))
            continue
        for row, kept in zip(row_texts(ledgers[name]), ledgers[name].rows, strict=True):
            figures = [figure(row.cells[key]) for key in ("speed", "p50", "memory")]
            begin = (case.title, precision_of(row.stage), row.stage)
            # What a passing row says of agreement would be taken for accuracy.
            said = "PASS" if row.verdict is Verdict.PASS else remark(row)
            lines.append(line(*begin, *figures, gain_text(kept) or NOT_RUN, "speed only", said))
    return "\n".join(lines)


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def section(title: str, name: str, case: Case, ledger: Ledger | None, table: Any) -> list[str]:
    if ledger is None:
        return [f"### {title}", f"Not run: `python benchmarks/precision_tables.py {name}`."]
    said = f"`{ledger.command}` on {environment_line(ledger)}. {case.note}".strip()
    return [f"### {title}", said, table(ledger)]


def tables() -> str:
    ledgers = found_ledgers()
    titles = {name: case.title for name, case in CASES.items()}
    parts = ["### Targets", target_table(ledgers, titles)]
    for cases, table in ((DETECTORS, detector_table), (CLASSIFIERS, classifier_table)):
        for name, case in cases.items():
            parts += section(case.title, name, case, ledgers.get(name), table)
    parts += ["### ViT by variant, random weights", *variant_notes(ledgers), variant_table(ledgers)]
    parts += ["### On a GPU", gpu_table()]
    return "\n\n".join(parts)


def variant_notes(ledgers: Mapping[str, Ledger]) -> Sequence[str]:
    measured = next((ledgers[name] for name in VARIANTS if name in ledgers), None)
    begin = "`python benchmarks/precision_tables.py vit_variants`"
    begin += "." if measured is None else f" on {environment_line(measured)}."
    return [" ".join([begin, *(f"{case.title}: {case.note}" for case in VARIANTS.values() if case.note)])]


def page_with_tables(page: str) -> str:
    """The page with the tables of the committed results between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    main()
