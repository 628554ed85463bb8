"""INT8 and FP8 beside FP16: which forms TensorRT for RTX compiles, and what FP16 adds to the accuracy lost.

    python benchmarks/int8_half_forms.py               writes benchmarks/results/int8_half_forms.json, all of it
    python benchmarks/int8_half_forms.py --forms       measures the forms anew, and keeps the accuracy
    python benchmarks/int8_half_forms.py NAME          measures the accuracy of one model anew
    python benchmarks/int8_half_forms.py --tables      writes the tables of docs/quantisation.md from this file

Engines are compiled for GPUs that are not here, one capability at a time, and never run: their sizes and whether the
weights stand in them as stored say in what form they keep a layer, not how fast it is. Accuracy is that of the files,
their FP16 emulated, on the validation images of the shared data sets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from int8_forms_graphs import FLOAT, REACH, Convolutions, Linear, bottlenecks, perceptrons
from ledgers import CASES, ROOT, Case, environment_text, with_section
from onnx import TensorProto, helper, numpy_helper

from vitesse import stages
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.tensorrt.api import load_api
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.data.dataset import Dataset, open_dataset
from vitesse.environment import describe
from vitesse.errors import BackendError
from vitesse.lowering.opset import at_opset
from vitesse.measure import Candidate, opened
from vitesse.metadata import serialise
from vitesse.pipeline import HOLDOUT
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.half import find_islands, write_half
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.half_quantised import to_half_quantised
from vitesse.precision.insertion import Insertion
from vitesse.precision.layers import layers_of
from vitesse.precision.quantize import quantize
from vitesse.precision.ranges import Ranges
from vitesse.recipe import METHODS, HalfOptions, Int8Options
from vitesse.report.figures import METRICS, signed
from vitesse.verify.accuracy import evaluate

RESULTS = ROOT / "benchmarks" / "results" / "int8_half_forms.json"
PAGE = ROOT / "docs" / "quantisation.md"
SCRIPT = "python benchmarks/int8_half_forms.py"
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
NUMBERS = {"int8": "INT8", "fp8": "FP8"}
NAMES = ("detr_fashion", "vit_fashion")
THREADS = 2
# What a refusal is called in a table, by what stands in the library's message.
REFUSALS = {
    "FP32 GEMM is not supported": "no FP32 product",
    "HW-specific datatypes: fp8": "no FP8",
    "type mismatch between matmul operand scales": "scales differ",
}
Form = Callable[[onnx.ModelProto, onnx.ModelProto], onnx.ModelProto]


def quantisers(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Every quantiser, and whether it is one of weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield node, node.input[0] in stored


def half(plain: onnx.ModelProto, *, wide: Callable[[bool], bool]) -> onnx.ModelProto:
    """The graph in FP16, but for the quantisers that `wide` says, told whether they are those of weights."""
    names = [node.name for node, of_weights in quantisers(plain) if wide(of_weights)]
    return HalfGraph(plain).written(names)


def with_output_types(plain: onnx.ModelProto) -> onnx.ModelProto:
    """FP32 scales beside FP16 tensors without casts, which opset 23 allows."""
    model = at_opset(half(plain, wide=lambda _: False), 23)
    exact = {tensor.name: tensor for tensor in plain.graph.initializer}
    scales = {node.input[1] for node, _ in quantisers(model)}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(exact[tensor.name])
    for node, _ in quantisers(model):
        if node.op_type == "DequantizeLinear":
            node.attribute.append(helper.make_attribute("output_dtype", int(TensorProto.FLOAT16)))
    return model


def weights_only(plain: onnx.ModelProto) -> onnx.ModelProto:
    """Without the quantisers of activations."""
    model = half(plain, wide=lambda _: False)
    before = {node.output[0]: node.input[0] for node, of_weights in quantisers(model) if not of_weights}
    kept = [node for node in model.graph.node if node.output[0] not in before]
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = before.get(before.get(name, name), before.get(name, name))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


# Of a float32 graph and the same one with Q/DQ.
FORMS: Mapping[str, Form] = {
    "FP32, not quantised": lambda floats, _: floats,
    "FP16, not quantised": lambda floats, _: HalfGraph(floats).written(),
    "rest FP32": lambda _, plain: plain,
    "rest FP16, scales FP16": lambda _, plain: half(plain, wide=lambda _: False),
    "rest FP16, scales FP32 between casts": lambda _, plain: half(plain, wide=lambda _: True),
    "rest FP16, scales of activations FP32": lambda _, plain: half(plain, wide=lambda weights: not weights),
    "rest FP16, scales of weights FP32": lambda _, plain: half(plain, wide=lambda weights: weights),
    "rest FP16, scales FP32, `output_dtype`": lambda _, plain: with_output_types(plain),
    "rest FP16, only weights quantised": lambda _, plain: weights_only(plain),
}


def layers() -> Mapping[str, onnx.ModelProto]:
    """Float32 layers by what a table calls them."""
    return {
        "Two MLPs of a transformer, 384 → 1536 → 384, on 197 tokens": perceptrons(
            Linear(FLOAT), width=384, hidden=1536
        ),
        "Three bottlenecks of convolutions, 256 → 64 → 256 channels at 32 × 32": bottlenecks(
            Convolutions(FLOAT), width=256, inner=64, height=32, across=32
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(page_with_tables(PAGE.read_text()))
        return
    everything = not options.forms and not options.names
    if options.forms or everything:
        forms = [compiled(title, floats, number) for title, floats in layers().items() for number in NUMBERS]
        keep("forms", {"command": f"{SCRIPT} --forms", "environment": describe(), "groups": forms})
    for name in NAMES if everything else options.names:
        found = {"command": f"{SCRIPT} {name}", "environment": describe(), **accuracies(CASES[name])}
        keep(name, found)


def results() -> dict[str, Any]:
    """What was measured so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def keep(part: str, found: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps({**results(), part: found}, indent=1) + "\n")


# --- forms


def compiled(title: str, floats: onnx.ModelProto, number: str) -> dict[str, Any]:
    """Compile every form for every target."""
    plain = quantised(floats, number)
    rows = []
    for form, write in FORMS.items():
        model = write(floats, plain)
        row = {"form": form, "onnx_bytes": model.ByteSize(), "targets": {}}
        row["targets"] = {target: engine(model, target) for target in TARGETS}
        print(title, number, form, *map(form_cell, row["targets"].values()), sep=" | ", flush=True)
        rows.append(row)
    return {"title": title, "number": number, "rows": rows}


def quantised(floats: onnx.ModelProto, number: str) -> onnx.ModelProto:
    reach = {name: (-REACH, REACH) for node in floats.graph.node for name in (*node.input, *node.output)}
    ranges = Ranges(reach, "minmax", 1, True, {})
    return Insertion(floats, layers_of(floats), ranges, number=number, bits=8, correct=False).run()


def engine(model: onnx.ModelProto, target: str) -> dict[str, Any]:
    """Size of the engine and whether the quantised weights stand in it as stored, or the words of the refusal."""
    try:
        built = build_plan(
            load_api("tensorrt_rtx"),
            model.SerializeToString(),
            BuildOptions(compute_capabilities=(target,)),
        )
    except BackendError as error:
        return {"refused": " ".join(error.what.split())}
    held = [stored in built.plan for stored in stored_weights(model)]
    return {"bytes": len(built.plan), "weights_held": sum(held), "weights": len(held)}


def stored_weights(model: onnx.ModelProto) -> list[bytes]:
    """The beginning of every quantised weight."""
    names = {node.input[0] for node, of_weights in quantisers(model) if of_weights}
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in names]
    return [np.ascontiguousarray(array).tobytes()[:64] for array in arrays]


def form_table(group: Mapping[str, Any]) -> str:
    lines = [f"| form | {' | '.join(TARGETS)} |", f"|{'---|' * (1 + len(TARGETS))}"]
    for row in group["rows"]:
        cells = [form_cell(row["targets"][target]) for target in TARGETS]
        lines.append(f"| {' | '.join([row['form'], *cells])} |")
    return "\n".join(lines)


def form_cell(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return next((name for text, name in REFUSALS.items() if text in found["refused"]), "refused")
    held = f" ({found['weights_held']}/{found['weights']})" if found["weights"] else ""
    return f"{found['bytes'] / 1e3:.0f}{held}"


# --- accuracy


def accuracies(case: Case) -> dict[str, Any]:
    """Judge each number and method with float32 and with FP16 for the rest; the same layers, ranges and weights."""
    with TemporaryDirectory(prefix="vitesse-") as folder:
        store = Store(Path(folder))
        source = stages.open_model(case.model, preset=case.recipe.preset, spec=case.recipe.spec)
        data = open_dataset(case.images, spec=source.spec, holdout=HOLDOUT)
        graph = stages.fuse(stages.clean(source, store).artifact, store).artifact
        options = HalfOptions()
        images = data.calib.spread(options.images)
        islands = find_islands(graph, stages.CalibrationFeeds(images, graph.spec), options)
        original = evaluated(graph, data)
        found = {
            "metric": original.metric,
            "images": original.images,
            "original": original.value,
            "fp16": evaluated(write_half(graph, store, islands, options).artifact, data, emulate=True).value,
            "islands": len(islands.names),
        }
        rows = []
        for number, method in (*(("int8", method) for method in METHODS), ("fp8", "minmax")):
            plain, mixed = both(graph, store, data, case, islands.names, number, method)
            between = half(onnx.load(plain.path), wide=lambda _: True)
            casts = store.put(serialise(between, graph.spec), graph.spec, Provenance("casts"), suffix=".onnx")
            row = {"number": number, "method": method, "plain": evaluated(plain, data).value}
            row |= {"mixed": evaluated(mixed, data, emulate=True).value}
            row |= {"casts": evaluated(casts, data, emulate=True).value}
            row |= {"plain_bytes": plain.bytes, "mixed_bytes": mixed.bytes}
            rows.append(row)
            print(case.title, row, flush=True)
        return {**found, "rows": rows}


def both(
    graph: Artifact,
    store: Store,
    data: Dataset,
    case: Case,
    islands: tuple[str, ...],
    number: str,
    method: str,
) -> tuple[Artifact, Artifact]:
    """The file in eight bits, and the same with FP16 for the rest."""
    images = data.calib.spread(case.recipe.data.calib_images)
    options = Int8Options(method=method, weight_bits=8)
    found = calibrate_graph(
        graph,
        store,
        stages.CalibrationFeeds(images, graph.spec),
        options,
        symmetric=True,
        cache=store.folder,
        data_key=data.sha256,
    )
    names = [layer.name for layer in found.layers]
    made = quantize(found.artifact, store, names, found.ranges, options, number=number)
    mixed = to_half_quantised(made, store, islands, HalfOptions(), stage=f"{number}+fp16")
    return made.artifact, mixed.artifact


def evaluated(artifact: Artifact, data: Dataset, *, emulate: bool = False) -> Any:
    with opened(Candidate(artifact, LoadOptions(threads=THREADS, emulate=emulate))) as session:
        return evaluate(lambda feeds: session.run(feeds).outputs, data.val, artifact.spec).accuracy


def accuracy_table(found: Mapping[str, Any]) -> str:
    lines = [
        "| number | range | rest FP32 | rest FP16 | difference | rest FP16, scales FP32 between casts | file, MB |",
        f"|{'---|' * 7}",
    ]
    for row in found["rows"]:
        lost = [100 * (found["original"] - row[which]) for which in ("plain", "mixed", "casts")]
        sizes = " → ".join(f"{row[f'{which}_bytes'] / 1e6:.2f}" for which in ("plain", "mixed"))
        shown = [*lost[:2], lost[1] - lost[0], lost[2]]
        cells = [NUMBERS[row["number"]], row["method"], *map(signed, shown), sizes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_difference(found: Mapping[str, Any], number: str, form: str = "mixed") -> float:
    """Points that FP16 for the rest costs, on average over the ways of quantising; less than 0 is a gain."""
    rows = [row for row in found["rows"] if row["number"] == number]
    return float(np.mean([100 * (row["plain"] - row[form]) for row in rows]))


# --- the page


def section() -> str:
    found = results()
    return "\n\n".join((*form_parts(found.get("forms")), *accuracy_parts(found)))


def form_parts(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [f"Not run: `{SCRIPT} --forms`."]
    parts = [
        f"`{found['command']}` on {environment_text(found['environment'])}. kB of the engine for one compute "
        "capability; (n/m): of m quantised weights n stand in it byte for byte as in the file; the others may in "
        "another order. No engine was run."
    ]
    for group in found["groups"]:
        parts += [f"{group['title']}, {NUMBERS[group['number']]}:", form_table(group)]
    said = [f"*{name}*: “{text}”" for text, name in REFUSALS.items()]
    return [*parts, f"Refused: {'; '.join(said)}."]


def accuracy_parts(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for name in NAMES:
        one = found.get(name)
        if one is None:
            parts.append(f"{CASES[name].title}: not run: `{SCRIPT} {name}`.")
            continue
        fp16 = signed(100 * (one["original"] - one["fp16"]))
        parts += [
            f"{CASES[name].title}: {METRICS[one['metric']]} {one['original']:.4f} on {one['images']} images, in FP16 "
            f"{fp16} points lost with {one['islands']} islands; points lost with every layer quantised that may be, "
            f"of INT8 on average {signed(mean_difference(one, 'int8'))} more beside FP16 (scales FP32: "
            f"{signed(mean_difference(one, 'int8', 'casts'))}). `{one['command']}` on "
            f"{environment_text(one['environment'])}.",
            accuracy_table(one),
        ]
    return parts


def page_with_tables(page: str) -> str:
    """The page with the tables of the committed results between its marks."""
    return with_section(page, "half-forms", section())


if __name__ == "__main__":
    main()
