"""What a row of the table of models shows: exported, held against the framework, fused, quantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from fusing import run
from sources.model_rows import ModelRow
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import TensorInfo, Tensors
from vitesse.export.check import noise
from vitesse.export.torch_onnx import TorchSource
from vitesse.fusion import clean_model, fuse_model
from vitesse.metadata import serialise
from vitesse.precision.calibration import calibrate
from vitesse.precision.layers import layers_of
from vitesse.precision.quantize import quantize
from vitesse.recipe import Int8Options
from vitesse.sources.signature import graph_inputs
from vitesse.sources.source import AXES, Exported, ExportOptions, Source
from vitesse.spec import Decode

CALIBRATION_FEEDS = 4
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Examined:
    """What came out of one row.

    Args:
        difference, fused_difference: largest absolute difference of the exported, and of the cleaned and fused
            graph, to the framework's own answer, over all outputs and shapes; without optimisations of the runtime.
        largest: the largest absolute output of the framework, which says what a difference means.
        shapes: (batch, height, width) of the images it was compared on.
        dynamic: axes that are open in the graph itself.
        int8_layers: convolutions and linear layers that INT8 quantises; 0 where it does not apply.
        int8_cosine: of quantised to fused outputs, the worst output; NaN where one is not finite.
    """

    title: str
    decode: Decode
    parameters: int
    layer_norms: int
    attention_fused: int
    operators: Mapping[str, int]
    difference: float
    fused_difference: float
    largest: float
    shapes: tuple[Shape, ...]
    dynamic: frozenset[str]
    int8_layers: int
    int8_cosine: float


@dataclass(frozen=True)
class Made:
    """A row's model: opened, exported as the row says, and that cleaned and fused."""

    source: Source
    exported: Exported
    fused: onnx.ModelProto


_MADE: dict[ModelRow, Made] = {}


def made(row: ModelRow, folder: Path) -> Made:
    """Export a row's model; what several test files look at is traced once, in the folder of the first that asks."""
    if row not in _MADE:
        source = row.source(folder)
        exported = source.export(ExportOptions(size=row.size, dynamic=row.dynamic))
        _MADE[row] = Made(source, exported, fuse_model(clean_model(exported.model).model).model)
    return _MADE[row]


def examine(row: ModelRow, folder: Path) -> Examined:
    """Take the row's tiny model through export, cleaning, fusing and INT8."""
    one = made(row, folder)
    source, exported, fused = one.source, one.exported, one.fused
    options = ExportOptions(size=row.size, dynamic=row.dynamic)
    shapes = compared_shapes(row, exported)
    feeds = [noise(exported.spec, inputs_of(exported), shape, np.random.default_rng(7)) for shape in shapes]
    answers = [exported.reference(feed) for feed in feeds]
    operators = Counter(node.op_type for node in fused.graph.node if node.domain in {"", "ai.onnx"})
    layers, cosine = quantised(exported, fused, folder, (1, *row.size))
    return Examined(
        title=source.title,
        decode=exported.spec.decode,
        parameters=parameters_of(source, options, exported),
        layer_norms=operators["LayerNormalization"],
        attention_fused=operators["Attention"],
        operators=operators,
        difference=max(map(difference_to, answers, [exported.model] * len(feeds), feeds)),
        fused_difference=max(map(difference_to, answers, [fused] * len(feeds), feeds)),
        largest=max(float(np.abs(array).max()) for answer in answers for array in answer.values()),
        shapes=tuple(shapes),
        dynamic=open_axes(exported),
        int8_layers=layers,
        int8_cosine=cosine,
    )


def compared_shapes(row: ModelRow, exported: Exported) -> list[Shape]:
    """Shapes to compare on: the traced one, other batches, and another size and aspect, as far as they are open."""
    height, width = row.size
    batches = (2, 1, 3) if "batch" in row.dynamic else (1,)
    shapes = [(batch, height, width) for batch in batches]
    if "height" in row.dynamic:
        stride = exported.stride
        shapes.append((batches[0], height + stride, width + 2 * stride))
        shapes.append((batches[-1], height + 2 * stride, width))
    return shapes


def inputs_of(exported: Exported) -> tuple[TensorInfo, ...]:
    """The graph's inputs, as `export.check.noise` takes them."""
    return graph_inputs(exported.model)


def difference_to(answer: Tensors, model: onnx.ModelProto, feeds: Tensors) -> float:
    """Largest absolute difference of a graph, run as written, to the framework's answer; inf where not finite."""
    names = [output.name for output in model.graph.output]
    found = dict(zip(names, run(model, dict(feeds)), strict=True))
    assert found.keys() == answer.keys(), f"the graph gives {sorted(found)}, the framework {sorted(answer)}"
    worst = 0.0
    for name, array in found.items():
        assert array.shape == answer[name].shape, f"{name}: {array.shape} for {answer[name].shape}"
        distance = np.abs(array - answer[name]).max()
        worst = max(worst, float(distance) if np.isfinite(distance) else float("inf"))
    return worst


def open_axes(exported: Exported) -> frozenset[str]:
    """Axes of the image input that have a name instead of a number."""
    image = next(value for value in exported.model.graph.input if value.name == exported.spec.image_input)
    layout = exported.spec.preprocessing.layout
    positions = {"NCHW": (0, 2, 3), "NHWC": (0, 1, 2)}[layout]
    sides = image.type.tensor_type.shape.dim
    return frozenset(axis for axis, at in zip(AXES, positions, strict=True) if sides[at].dim_param)


def parameters_of(source: Source, options: ExportOptions, exported: Exported) -> int:
    """Parameters of a torch module; of any other source, the numbers in the exported graph's float initialisers."""
    if isinstance(source, TorchSource):
        return sum(parameter.numel() for parameter in source.build(options).module.parameters())
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    return sum(
        int(np.prod(tensor.dims))
        for tensor in exported.model.graph.initializer
        if tensor.data_type in floats and tensor.dims
    )


def quantised(exported: Exported, fused: onnx.ModelProto, folder: Path, shape: Shape) -> tuple[int, float]:
    """Quantise the fused graph as the pipeline does: (layers in INT8, worst cosine to the fused outputs)."""
    store = Store(folder / "artifacts")
    artifact = store.put(serialise(fused, exported.spec), exported.spec, Provenance("fuse"), suffix=".onnx")
    layers = layers_of(fused)
    if not layers:
        return 0, float("nan")
    random = np.random.default_rng(11)
    feeds = [noise(exported.spec, inputs_of(exported), shape, random) for _ in range(CALIBRATION_FEEDS)]
    options = Int8Options()
    ranges = calibrate(artifact, feeds, layers, options, symmetric=True)
    built = quantize(artifact, store, [layer.name for layer in layers], ranges, options)
    return len(layers), worst_cosine(artifact, built.artifact, feeds)


def worst_cosine(one: Artifact, other: Artifact, feeds: list[Tensors]) -> float:
    """Worst cosine between the outputs of two models, over outputs and feeds; NaN where one is not finite."""
    models = [onnx.load(artifact.path) for artifact in (one, other)]
    found = [
        cosine(a, b)
        for feed in feeds
        for a, b in zip(*(run(model, dict(feed)) for model in models), strict=True)
    ]
    return float(np.min(found))  # NaN wins


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine of the angle between two tensors, taken as vectors."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
