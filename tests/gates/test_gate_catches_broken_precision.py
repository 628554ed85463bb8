"""Files in FP16, INT8 and FP8 that are broken on purpose, through the assessment that a run makes; and sound twins.

The models are the trained ones of the examples. Every fault is one that a converter or a calibration really makes.
Every file is taken to be faster than what it came from, so that its numbers alone decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tiny_graphs
from fashion import DETR, FOLDER, VIT, artifact_of
from vitesse import assess
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.assess import Assessor, Step
from vitesse.backends.protocol import Built, LoadOptions, Tensors
from vitesse.benchmark.latency import Ratio
from vitesse.data.dataset import open_dataset
from vitesse.data.images import Pixels
from vitesse.data.preprocess import feeds
from vitesse.fusion import clean_model, fuse_model
from vitesse.ledger import Row, Verdict
from vitesse.lowering.lower import lower_model
from vitesse.measure import Timing
from vitesse.metadata import serialise
from vitesse.precision.calibration import calibrate
from vitesse.precision.half_casts import HalfGraph
from vitesse.precision.layers import layers_of
from vitesse.precision.quantize import quantize
from vitesse.precision.ranges import Ranges
from vitesse.progress import Silent
from vitesse.recipe import Int8Options, MeasureOptions, Recipe
from vitesse.run import RunFolder
from vitesse.verify.gate import StepKind

IMAGES = 20
# One of 20 images weighs 5 points, which a sound file may lose by chance; these faults cost far more.
MAX_DROP = 6.0
RECIPE = Recipe(max_drop=MAX_DROP, measure=MeasureOptions(parity_images=8))
FASTER = Timing(over_before=Ratio(1.5, (1.4, 1.6), (1.4, 1.6), 12))
PLAIN = LoadOptions(threads=1)
# As the graph says, without the runtime's own fusions of Q/DQ, which take FP8 for INT8 (ONNX Runtime 1.31).
NODE_BY_NODE = LoadOptions(threads=1, reference=True)


class Subject:
    """A trained model, cleaned and fused, and the assessment of files made from it."""

    def __init__(self, path: Path, images: Path, folder: Path) -> None:
        self.source = artifact_of(path)
        self.dataset = open_dataset(images, spec=self.source.spec)
        self.store = Store(folder / "artifacts")
        fused = fuse_model(clean_model(onnx.load(path), keep=self.source.spec.outputs.values()).model).model
        self.fused = self.put(fused)
        few = replace(self.dataset, val=self.dataset.val.spread(IMAGES))
        self._assessor = Assessor(self.source, few, RECIPE, RunFolder(folder), Silent())

    @property
    def model(self) -> onnx.ModelProto:
        """A copy of the fused graph, to be broken."""
        return onnx.load(self.fused.path)

    def put(self, model: onnx.ModelProto) -> Artifact:
        spec = self.source.spec
        return self.store.put(serialise(model, spec), spec, Provenance("made"), suffix=".onnx")

    def judge(self, artifact: Artifact, options: LoadOptions = PLAIN) -> Row:
        return self._assessor.assess(Step("lowered", StepKind.PRECISION, Built(artifact), options))

    def calibration_images(self) -> list[Pixels]:
        return [pixels for _, pixels in self.dataset.calib.spread(8)]

    def fed(self, images: Sequence[Pixels]) -> list[Tensors]:
        return [feeds([pixels], self.source.spec) for pixels in images]

    def ranges(self, images: Sequence[Pixels], graph: Artifact | None = None) -> Ranges:
        """Symmetric ranges that cover all values of the images."""
        graph = graph or self.fused
        options = Int8Options(method="minmax")
        layers = layers_of(onnx.load(graph.path))
        return calibrate(graph, self.fed(images), layers, options, symmetric=True)

    def lowered(self, ranges: Ranges, graph: Artifact | None = None, number: str = "int8") -> Artifact:
        """Every layer that may be, in INT8 or FP8."""
        graph = graph or self.fused
        names = [layer.name for layer in layers_of(onnx.load(graph.path))]
        return quantize(graph, self.store, names, ranges, Int8Options(), number=number).artifact


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assess, "time_candidate", lambda *_: FASTER)


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(DETR, FOLDER / "detr", tmp_path_factory.mktemp("detr") / "run")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(VIT, FOLDER / "vit", tmp_path_factory.mktemp("vit") / "run")


def assert_sound(row: Row) -> None:
    assert row.verdict is Verdict.PASS, row.reason


def assert_rejected_for_its_points(row: Row, metric: str, *, at_least: float) -> None:
    assert row.verdict is Verdict.REJECTED, row.reason
    found = re.fullmatch(rf"loses ([\d.]+) points of {metric} \(budget 6\)", row.reason)
    assert found is not None, row.reason
    assert float(found[1]) >= at_least


# --- FP16


def with_large_values(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The last LayerNorm written out, as old exporters do, on `factor` times its input.

    It divides by the deviation, so that FP32 gives the same answers.
    """
    written = lower_model(model, ["layer_norm"]).model
    nodes = written.graph.node
    read = next(node for node in reversed(nodes) if node.op_type == "Sub").input[0]
    first = next(at for at, node in enumerate(nodes) if node.op_type == "ReduceMean" and read in node.input)
    for node in nodes[first:]:
        if node.op_type in ("ReduceMean", "Sub"):
            node.input[:] = ["large" if name == read else name for name in node.input]
    tiny_graphs.set_weight(written, "factor", np.array(factor, np.float32))
    nodes.insert(first, helper.make_node("Mul", [read, "factor"], ["large"], "enlarge"))
    return written


def layer_norm_nodes(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes from the large values to the quotient that makes them small again."""
    names, kinds = zip(*((node.name, node.op_type) for node in model.graph.node), strict=True)
    first, last = names.index("enlarge"), max(at for at, kind in enumerate(kinds) if kind == "Div")
    return list(names[first : last + 1])


def test_fp16_of_the_trained_vit_is_sound_and_judged_by_emulation(vit: Subject) -> None:
    row = vit.judge(vit.put(HalfGraph(vit.model).written()))
    assert_sound(row)
    assert any(note.startswith("numbers by emulation") for note in row.notes)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        # Squares of about 10⁷ are infinite, the quotient by their root is zero.
        (1e3, "the output `logits` is the same for all 8 images"),
        # The input itself is infinite, and infinite − infinite is NaN.
        (1e6, "the output `logits` holds NaN in all 8 images (first: {image})"),
    ],
)
def test_a_layer_norm_that_overflows_fails_in_fp16_without_islands(
    vit: Subject, factor: float, said: str
) -> None:
    model = with_large_values(vit.model, factor)
    row = vit.judge(vit.put(HalfGraph(model).written()))
    first = vit.dataset.val.spread(IMAGES).spread(8).samples[0].path.name
    assert (row.verdict, row.reason) == (Verdict.FAIL, said.format(image=first))
    assert row.unmeasured["latency_ms"] == "the outputs are broken"

    half = HalfGraph(model)
    mended = half.written(layer_norm_nodes(half.float_model))
    assert_sound(vit.judge(vit.put(mended)))


# --- INT8


def scaled(ranges: Ranges, factor: float) -> Ranges:
    by_tensor = {name: (factor * low, factor * high) for name, (low, high) in ranges.by_tensor.items()}
    return replace(ranges, by_tensor=by_tensor)


def test_int8_with_its_ranges_is_sound_and_with_a_tenth_of_them_loses_nearly_all(detr: Subject) -> None:
    ranges = detr.ranges(detr.calibration_images())
    assert_sound(detr.judge(detr.lowered(ranges)))
    assert_rejected_for_its_points(detr.judge(detr.lowered(scaled(ranges, 0.1))), "AP", at_least=50)


def test_int8_calibrated_on_black_images_is_rejected(detr: Subject) -> None:
    black = [np.zeros_like(pixels) for pixels in detr.calibration_images()]
    row = detr.judge(detr.lowered(detr.ranges(black)))
    assert_rejected_for_its_points(row, "AP", at_least=10)


def with_rounded_boxes(subject: Subject, levels: int) -> onnx.ModelProto:
    """The box head's last layer in steps: `levels` of them on either side of zero."""
    model = subject.model
    boxes = subject.source.spec.outputs["boxes"]
    raw = next(node for node in model.graph.node if boxes in node.output).input[0]
    shown = subject.model
    shown.graph.output.append(helper.make_tensor_value_info(raw, TensorProto.FLOAT, None))
    run = tiny_graphs.runner(shown)
    peak = max(np.abs(run(feed)[raw]).max() for feed in subject.fed(subject.calibration_images()))
    tiny_graphs.set_weight(model, "step", np.array(peak / levels, np.float32))
    tiny_graphs.set_weight(model, "zero", np.array(0, np.int8))
    tiny_graphs.insert_after(model, raw, "DequantizeLinear", "step", "zero")
    tiny_graphs.insert_after(model, f"{raw}_before", "QuantizeLinear", "step", "zero")
    return model


def test_a_box_head_in_steps_of_four_bits_is_rejected_and_in_steps_of_eight_is_sound(detr: Subject) -> None:
    assert_sound(detr.judge(detr.put(with_rounded_boxes(detr, 127))))
    row = detr.judge(detr.put(with_rounded_boxes(detr, 7)))
    assert_rejected_for_its_points(row, "AP", at_least=15)


# --- FP8


def with_large_activations(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """LayerNorms that give `factor` times as much to linear layers, whose weights take it back: equal in FP32."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for norm in [node for node in model.graph.node if node.op_type == "LayerNormalization"]:
        readers = [node for node in model.graph.node if norm.output[0] in node.input]
        if all(node.op_type == "MatMul" and node.input[1] in weights for node in readers):
            factors = {norm.input[1]: factor, norm.input[2]: factor}
            for name, by in (factors | {node.input[1]: 1 / factor for node in readers}).items():
                value = tiny_graphs.weight(model, name) * np.float32(by)
                tiny_graphs.set_weight(model, name, value)
    return model


def test_fp8_with_scale_1_saturates_at_448_and_is_rejected(vit: Subject) -> None:
    graph = vit.put(with_large_activations(vit.model, 1000))
    ranges = vit.ranges(vit.calibration_images(), graph)
    assert sum(high > 448 for _, high in ranges.by_tensor.values()) > 5
    assert_sound(vit.judge(vit.lowered(ranges, graph, "fp8"), NODE_BY_NODE))

    scale_1 = replace(ranges, by_tensor=dict.fromkeys(ranges.by_tensor, (-448.0, 448.0)))
    row = vit.judge(vit.lowered(scale_1, graph, "fp8"), NODE_BY_NODE)
    assert_rejected_for_its_points(row, "top-1", at_least=50)
