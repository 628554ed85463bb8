"""What TensorRT for RTX compiles for which GPU, on a machine without one: models × precisions × compute capabilities.

    python benchmarks/aot_table.py [NAME …]   builds (all, or those named) and writes benchmarks/results/aot_rtx.json
    python benchmarks/aot_table.py --quick    builds a part of it; says where the committed results have it otherwise
    python benchmarks/aot_table.py --table    writes the tables of docs/tensorrt.md from this file

The graphs are made as `vitesse optimize` makes them (cleaned, fused, FP16 with islands, INT8 calibrated), and built as
`vitesse build` does, for a batch of 1 to 8. The engines are compiled, not run. DEIMv2 lies in ../shared/data (or
$VITESSE_SHARED_DATA); ViT-B/16 and DETR-R50 have random weights, are made here and need torch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from cells import in_cell
from ledgers import CASES, ROOT, environment_text, with_section

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.tensorrt.api import load_api, version_of
from vitesse.backends.tensorrt.building import build_artifact
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.compress import decoder
from vitesse.compress.lever import Situation
from vitesse.compress.rewriting import Changed, rewritten
from vitesse.data.dataset import open_calibration
from vitesse.data.split import Split
from vitesse.engines import BATCH, EngineRow, Order, build_file
from vitesse.environment import describe
from vitesse.metadata import serialise
from vitesse.precision.half import find_islands, write_half
from vitesse.precision.half_quantised import to_half_quantised
from vitesse.recipe import HalfOptions, SourceOptions
from vitesse.stages import CalibrationFeeds

RESULTS = ROOT / "benchmarks" / "results" / "aot_rtx.json"
PAGE = ROOT / "docs" / "tensorrt.md"
SCRIPT = "python benchmarks/aot_table.py"
TARGET = "tensorrt-rtx"
CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120")
FORMS = ("fp32", "fp16", "int8+fp16", "int8")
TITLES = {"fp32": "FP32", "fp16": "FP16", "int8+fp16": "INT8, the rest FP16", "int8": "INT8, the rest FP32"}
# Ranges and islands decide about accuracy, and hardly about what compiles.
IMAGES, QUICK_IMAGES = 8, 1


@dataclass(frozen=True)
class Subject:
    """A model of the table.

    Args:
        title: for the table.
        open: the ONNX artifact and the folder of images to calibrate on, made in the folder that is given.
        quick: what --quick builds: form → compute capabilities.
        open_quick: what --quick opens, where that is not the whole: equal layers compile to equal kernels.
    """

    title: str
    open: Callable[[Path], tuple[Artifact, Path]]
    quick: Mapping[str, Sequence[str]]
    open_quick: Callable[[Path], tuple[Artifact, Path]] | None = None


def example(name: str, folder: Path) -> tuple[Artifact, Path]:
    images = ROOT / "examples" / "fashion" / name
    return stages.open_model(images.parent / f"{name}_fashion.onnx"), images


def two_blocks(folder: Path) -> tuple[Artifact, Path]:
    """The trained ViT with the first of its blocks and the last, which works on the class token only."""
    artifact, images = example("vit", folder)
    store = Store(folder / "fewer")

    def leave_out(model: ir.Model) -> Changed:
        norms = (node for node in model.graph if node.op_type == "LayerNormalization")
        read = {norm.inputs[1].name: norm.inputs[0] for norm in norms}
        read["blocks.5.norm1.weight"].replace_all_uses_with(read["blocks.1.norm1.weight"])
        return Changed({"blocks": 4})

    return rewritten(fused(artifact, store), store, "two_blocks", leave_out).artifact, images


def two_decoder_layers(folder: Path) -> tuple[Artifact, Path]:
    """The trained DETR with the first of its decoder layers, which has constant queries, and one of the five others."""
    artifact, images = example("detr", folder)
    store = Store(folder / "fewer")
    feeds = CalibrationFeeds(open_calibration(images).spread(QUICK_IMAGES), artifact.spec)
    variants = decoder.variants(Situation(fused(artifact, store), feeds, store, None, SourceOptions()))
    return next(one for one in variants if one.stage == "decoder:2").make().artifact, images


def fused(artifact: Artifact, store: Store) -> Artifact:
    return stages.fuse(stages.clean(artifact, store).artifact, store).artifact


def deimv2(folder: Path) -> tuple[Artifact, Path]:
    case = CASES["deimv2_atto"]
    return stages.open_model(case.model, preset=case.recipe.preset), case.images


def random_weights(name: str, folder: Path, **fewer: int) -> tuple[Artifact, Path]:
    from peers_models import MODELS, random_images

    from vitesse.export.torch_onnx import trace

    model = MODELS[name]
    network = model.make(folder, model.options, **fewer)
    file = folder / f"{name}.onnx"
    file.write_bytes(serialise(trace(network, model.options), network.spec))
    return stages.open_model(file), random_images(folder / "images", model.size)


EVERYTHING = dict.fromkeys(FORMS, CAPABILITIES)
EVERY_GPU = {
    "fp32": ("sm75", "sm86"),
    "fp16": CAPABILITIES,
    "int8+fp16": CAPABILITIES,
    "int8": ("sm75", "sm86"),
}
TWO_GPUS = {"fp16": ("sm75", "sm86"), "int8+fp16": ("sm75", "sm86")}
SUBJECTS = {
    "vit_fashion": Subject("ViT (1.2 M, 56×56)", partial(example, "vit"), EVERYTHING, two_blocks),
    "detr_fashion": Subject("DETR (3.2 M, 256×256)", partial(example, "detr"), EVERY_GPU, two_decoder_layers),
    "deimv2_atto": Subject("DEIMv2-Atto (0.5 M, 320×320)", deimv2, TWO_GPUS),
    "vit_b16": Subject(
        "ViT-B/16 (86 M, 224×224, random weights)",
        partial(random_weights, "vit_b16"),
        TWO_GPUS,
        partial(random_weights, "vit_b16", layers=2),
    ),
    "detr_r50": Subject(
        "DETR-R50 (41 M, 480×640, random weights)", partial(random_weights, "detr_r50"), TWO_GPUS
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*SUBJECTS, []], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(page_with_table(PAGE.read_text()))
        return
    names = options.names or list(SUBJECTS)
    if options.quick:
        raise SystemExit("\n".join(line for name in names for line in surprises(name)) or 0)
    found = results()
    for name in names:
        found["models"][name] = compiled(name, EVERYTHING, together=True)
        keep(found)


def results() -> dict[str, Any]:
    """What was measured so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found or {"command": SCRIPT, "batch": list(BATCH), "models": {}}


def keep(found: dict[str, Any]) -> None:
    """Write the results, with where they come from."""
    found["environment"] = describe()
    found["tensorrt_rtx"] = version_of(load_api("tensorrt_rtx"))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def compiled(
    name: str, wanted: Mapping[str, Sequence[str]], *, quick: bool = False, together: bool = False
) -> dict[str, Any]:
    """Build one model in the forms and for the compute capabilities that are wanted.

    Args:
        quick: calibrate on one image, and build of equal layers only some, where the subject says so.

    Returns:
        Form → `engines`, capability → seconds and bytes, or the refusal; `onnx_bytes`, and what was `rewritten` before
        the build. With `together` also one plan for all capabilities that compiled, and one for these without sm75.
    """
    with tempfile.TemporaryDirectory(prefix="vitesse-") as temporary:
        folder = Path(temporary)
        subject = SUBJECTS[name]
        artifact, pictures = ((subject.open_quick if quick else None) or subject.open)(folder)
        split = open_calibration(pictures).spread(QUICK_IMAGES if quick else IMAGES)
        found = {}
        for form, graph in graphs(artifact, split, Store(folder / "graphs"), wanted):
            options = BuildOptions(compute_capabilities=tuple(wanted[form]))
            rows = build_file(graph, Order(TARGET, options, folder / "engines", rebuild=True))
            found[form] = {
                "onnx_bytes": graph.bytes,
                "rewritten": {name: count for row in rows for name, count in row.changes.items()},
                "engines": {row.capability: told(row, temporary) for row in rows},
            }
            if together:
                taken = [row.capability for row in rows if row.artifact is not None]
                found[form]["together"] = joint_plans(graph, taken, folder)
            print(name, form, json.dumps(found[form], indent=1), flush=True)
        return found


def graphs(
    artifact: Artifact, split: Split, store: Store, wanted: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Artifact]]:
    """Make the forms that are wanted, in the order of FORMS."""
    feeds = CalibrationFeeds(split, artifact.spec)
    whole = fused(artifact, store)
    if "fp32" in wanted:
        yield "fp32", whole
    options = HalfOptions()
    islands = find_islands(whole, feeds, options) if {"fp16", "int8+fp16"} & set(wanted) else None
    if "fp16" in wanted and islands is not None:
        yield "fp16", write_half(whole, store, islands, options).artifact
    if not {"int8", "int8+fp16"} & set(wanted):
        return
    eight = stages.quantize(whole, split, store)
    if "int8+fp16" in wanted and islands is not None:
        both = to_half_quantised(eight, store, islands.names, options, stage="int8+fp16")
        yield "int8+fp16", both.artifact
    if "int8" in wanted:
        yield "int8", eight.artifact


def joint_plans(graph: Artifact, taken: Sequence[str], folder: Path) -> dict[str, Any]:
    """One plan for several compute capabilities, to hold against those for one: does it have their kernels?"""
    sets = (tuple(taken), tuple(one for one in taken if one != "sm75"))
    found: dict[str, Any] = {}
    for some in (some for some in sets if len(some) > 1):
        built = build_artifact(
            load_api("tensorrt_rtx"),
            graph,
            BuildOptions(compute_capabilities=some),
            store=Store(folder / "engines"),
            name=TARGET,
            distrusts=backend(TARGET).distrusts,
            batch=BATCH,
        ).plan
        found[",".join(some)] = {"seconds": round(built.seconds, 2), "bytes": len(built.plan)}
    return found


def told(row: EngineRow, folder: str) -> dict[str, Any]:
    """Seconds and bytes, or why not; messages name the file where it lay."""
    if row.artifact is None:
        return {"refused": row.refusal.replace(f"{folder}/", "")}
    return {"seconds": round(row.seconds, 2), "bytes": row.artifact.bytes, "precision": row.precision}


def surprises(name: str) -> Iterator[str]:
    """What --quick builds and the committed table says otherwise, one line each."""
    committed = results()["models"].get(name)
    if committed is None:
        yield f"{name} is not in {RESULTS.name}: {SCRIPT} {name}"
        return
    for form, found in compiled(name, SUBJECTS[name].quick, quick=True).items():
        for capability, engine in found["engines"].items():
            before = committed[form]["engines"][capability]
            if ("refused" in engine) != ("refused" in before):
                yield f"{name} {form} {capability}: {in_words(before)} → {in_words(engine)}"


def in_words(engine: Mapping[str, Any]) -> str:
    return f"refused: {engine['refused']}" if "refused" in engine else f"{engine['bytes']} bytes"


def page_with_table(page: str) -> str:
    """Return the page with the tables between their markers."""
    return with_section(with_section(page, "aot", section()), "together", together_section())


def section() -> str:
    """Every model and form on a line, the refusals in words below, and how it was measured."""
    found = results()
    if not found["models"]:
        return f"Not run: `{SCRIPT}`."
    refusals: dict[str, int] = {}
    lines = [
        f"| model | graph | ONNX MB | {' | '.join(CAPABILITIES)} |",
        f"|---|---|---|{'---|' * len(CAPABILITIES)}",
    ]
    for name, subject in SUBJECTS.items():
        for form in FORMS:
            lines.append(f"| {subject.title} | {TITLES[form]} | {cells(found, name, form, refusals)} |")
    return "\n".join(
        [
            "\n".join(lines),
            *(f"\nRefused {number}: {in_cell(text)}" for text, number in refusals.items()),
            f"\n{rewrites_line(found)}",
            f"\n`{found['command']}` with TensorRT-RTX {found['tensorrt_rtx']}, without a GPU, on "
            f"{environment_text(found['environment'])}. MB of the engine and seconds of parsing and building.",
        ]
    )


def cells(found: Mapping[str, Any], name: str, form: str, refusals: dict[str, int]) -> str:
    """The figures of one line; a refusal's words get a number when they first come."""
    one = found["models"].get(name, {}).get(form)
    if one is None:
        return " | ".join(["not run"] * (1 + len(CAPABILITIES)))
    shown = [f"{one['onnx_bytes'] / 1e6:.1f}"]
    for capability in CAPABILITIES:
        engine = one["engines"].get(capability)
        if engine is None:
            shown.append("not run")
        elif "refused" in engine:
            said = first_words(engine["refused"])
            shown.append(f"refused {refusals.setdefault(said, len(refusals) + 1)}")
        else:
            shown.append(f"{engine['bytes'] / 1e6:.1f} MB, {engine['seconds']:.1f} s")
    return " | ".join(shown)


def first_words(refusal: str) -> str:
    """The cause of a refusal without the names of the file and of nodes, which differ from model to model."""
    likely = (
        line.partition(": ")[2] for line in refusal.splitlines() if line.strip().startswith("likely cause")
    )
    return next(likely, refusal.splitlines()[0]).partition(" (operator ")[0]


def rewrites_line(found: Mapping[str, Any]) -> str:
    """What had to be rewritten before the build."""
    said = []
    for name, forms in found["models"].items():
        for form, one in forms.items():
            counts = ", ".join(
                f"{count} {key.partition(':')[2]}" for key, count in one["rewritten"].items() if count
            )
            if counts:
                said.append(f"{SUBJECTS[name].title}, {TITLES[form]}: {counts}")
    return f"Rewritten before the build: {'; '.join(said) or 'nothing'}."


def together_section() -> str:
    """Engines for one compute capability beside one plan for several."""
    lines = ["| model | graph | each alone, MB | in one plan, MB |", "|---|---|---|---|"]
    for name, forms in results()["models"].items():
        for form, one in forms.items():
            alone = ", ".join(
                f"{capability} {engine['bytes'] / 1e6:.2f}"
                for capability, engine in one["engines"].items()
                if "bytes" in engine
            )
            joint = "; ".join(
                f"{some.replace(',', ' ')}: {engine['bytes'] / 1e6:.2f}"
                for some, engine in one["together"].items()
            )
            if joint:
                lines.append(f"| {SUBJECTS[name].title} | {TITLES[form]} | {alone} | {joint} |")
    return "\n".join(lines) if len(lines) > 2 else f"Not run: `{SCRIPT}`."


if __name__ == "__main__":
    main()
