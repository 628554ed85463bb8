"""Static INT8 as Q/DQ nodes in the graph, by ONNX Runtime's quantiser.

Weights are symmetric int8 per channel, activations uint8 per tensor, calibrated by min-max on a stream of images.
Only convolutions and linear layers with constant weights are quantised, and a linear layer's output stays float:
normalisation, softmax, GELU, residual sums and the output heads keep FP32.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built, Tensors
from vitesse.environment import describe
from vitesse.errors import DataError, ModelError
from vitesse.recipe import Int8Options

LINEAR = ("MatMul", "Gemm")
WEIGHT_INPUT = {"Conv": 1, "MatMul": 1, "Gemm": 1}


@dataclass(frozen=True)
class Scheme:
    """A choice of layers: which operator types become INT8; output heads never do."""

    name: str
    op_types: tuple[str, ...]


SCHEMES = (
    Scheme("int8", ("Conv", *LINEAR)),
    Scheme("int8:conv", ("Conv",)),
    Scheme("int8:linear", LINEAR),
)


def weight_bits_here() -> int:
    """Return 8 where the processor adds int8 products in 32 bits (VNNI, AMX), else 7.

    Without it, u8 × s8 products are added in pairs in 16 bits and saturate: 2 · 255 · 127 > 32767.
    """
    return 8 if {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(describe()["cpu"]["flags"]) else 7


def applicable_schemes(model: onnx.ModelProto) -> tuple[Scheme, ...]:
    """Return the schemes that differ on this graph: partial ones only where both kinds have several layers."""
    count = Counter(node.op_type for node in quantisable_nodes(model, SCHEMES[0].op_types))
    linear = sum(count[op] for op in LINEAR)
    if not count["Conv"] and not linear:
        return ()
    return SCHEMES if count["Conv"] >= 4 and linear >= 4 else SCHEMES[:1]


def quantisable_nodes(model: onnx.ModelProto, op_types: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the convolutions and linear layers with constant weights that are not output heads.

    A head is a layer behind the last LayerNormalization of its path; in a graph without one, a layer behind which no
    other convolution or linear layer follows. Errors there reach boxes and scores undamped.
    """
    wanted = set(op_types)
    constants = {tensor.name for tensor in model.graph.initializer}
    has_norm = any(node.op_type == "LayerNormalization" for node in model.graph.node)
    damping = ("LayerNormalization",) if has_norm else tuple(WEIGHT_INPUT)
    behind = _leads_to(model.graph, damping)
    return [
        node
        for node in model.graph.node
        if node.op_type in wanted
        and node.input[WEIGHT_INPUT[node.op_type]] in constants
        and any(output in behind for output in node.output)
    ]


def _leads_to(graph: onnx.GraphProto, op_types: tuple[str, ...]) -> set[str]:
    """Return the names of tensors from which a node of one of `op_types` is reached."""
    reached: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in op_types or any(output in reached for output in node.output):
            reached.update(node.input)
    return reached


class FeedReader(CalibrationDataReader):  # type: ignore[misc]
    """Hands one feed at a time to the calibrator, so that only one image is in memory."""

    def __init__(self, feeds: Iterable[Tensors], on_image: Callable[[], None]) -> None:
        self._feeds: Iterator[Tensors] = iter(feeds)
        self._on_image = on_image
        self.count = 0

    def get_next(self) -> Tensors | None:
        """Return the next feed, None at the end."""
        feed = next(self._feeds, None)
        if feed is not None:
            self.count += 1
            self._on_image()
        return feed


def quantize(
    artifact: Artifact,
    store: Store,
    feeds: Iterable[Tensors],
    scheme: Scheme,
    options: Int8Options,
    *,
    on_image: Callable[[], None] = lambda: None,
) -> Built:
    """Quantise `artifact` by `scheme`, calibrated on `feeds`.

    Args:
        feeds: one image each (batch 1), read once as a stream.
        on_image: called after each image, for progress.

    Raises:
        DataError: no calibration image.
        ModelError: ONNX Runtime's quantiser cannot take the graph.
    """
    model = onnx.load(artifact.path)
    nodes = quantisable_nodes(model, scheme.op_types)
    reader = FeedReader(feeds, on_image)
    # The quantiser works on files; both lie beside the artifacts, where there is room for models of their size.
    store.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.folder, prefix=".int8-") as folder:
        target = Path(folder) / "int8.onnx"
        _quantize_file(artifact.path, target, reader, [node.name for node in nodes], scheme, options)
        content = target.read_bytes()
    if reader.count == 0:
        raise DataError(
            "no calibration image was read", expected="at least one image", fix="name some: --calib-data"
        )
    provenance = Provenance(scheme.name, artifact.sha256, {"calib_images": str(reader.count)})
    built = store.put(content, artifact.spec, provenance, suffix=".onnx")
    return Built(built, _changes(onnx.load_from_string(content), nodes, model))


def _quantize_file(
    source: Path, target: Path, reader: FeedReader, names: list[str], scheme: Scheme, options: Int8Options
) -> None:
    previous = logging.root.manager.disable
    logging.disable(
        logging.WARNING
    )  # the quantiser advises its own pre-processing, which cleaning has replaced
    try:
        quantize_static(
            source,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(scheme.op_types),
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=(options.weight_bits or weight_bits_here()) == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                "MatMulConstBOnly": True,
                # A linear layer's output feeds residual sums and softmax: rounding it costs accuracy and buys nothing.
                "OpTypesToExcludeOutputQuantization": list(LINEAR),
            },
        )
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise ModelError(
            f"ONNX Runtime's quantiser cannot take {source.name}: {error}",
            expected="convolutions or linear layers with constant weights and known shapes",
            fix="go on without INT8: --precisions fp32",
        ) from error
    finally:
        logging.disable(previous)


def _changes(
    quantised: onnx.ModelProto, nodes: list[onnx.NodeProto], model: onnx.ModelProto
) -> dict[str, int]:
    count = Counter(node.op_type for node in nodes)
    total = sum(node.op_type in WEIGHT_INPUT for node in model.graph.node)
    pairs = sum(node.op_type == "QuantizeLinear" for node in quantised.graph.node)
    linear = sum(count[op] for op in LINEAR)
    return {
        "Conv to INT8": count["Conv"],
        "Linear to INT8": linear,
        "Conv and Linear left in FP32": total - len(nodes),
        "QuantizeLinear inserted": pairs,
    }
