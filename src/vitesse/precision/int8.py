"""Static INT8 as Q/DQ nodes in the graph, by ONNX Runtime's quantiser.

Weights are symmetric int8 per channel, activations uint8 per tensor. Only convolutions and linear layers with constant
weights are quantised, and a linear layer's output stays float: normalisation, softmax, GELU, residual sums keep FP32.
So do the first convolution, which sees the pixels, and the output heads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built
from vitesse.environment import describe
from vitesse.metadata import serialise
from vitesse.precision.calibration import REFUSALS, quiet, refused
from vitesse.recipe import Int8Options

LINEAR = ("MatMul", "Gemm")
OP_TYPES = ("Conv", *LINEAR)
NORMALISATIONS = ("LayerNormalization", "RMSNormalization")
WEIGHT_INPUT = 1
# An MLP's layers widen or narrow at least this much; attention's projections keep the width.
MLP_RATIO = 2


@dataclass(frozen=True)
class Scheme:
    """A choice of layers: `conv` all convolutions but the first, `mlp` linear layers that change the width,
    `projections` the other linear layers. Output heads never belong to one."""

    name: str
    conv: bool
    mlp: bool
    projections: bool


SCHEMES = (
    Scheme("int8", conv=True, mlp=True, projections=True),
    Scheme("int8:conv+mlp", conv=True, mlp=True, projections=False),
    Scheme("int8:conv", conv=True, mlp=False, projections=False),
    Scheme("int8:mlp", conv=False, mlp=True, projections=False),
)


def applicable_schemes(model: onnx.ModelProto) -> tuple[Scheme, ...]:
    """Return the schemes that quantise something, without those that choose the same layers as an earlier one."""
    found: dict[tuple[str, ...], Scheme] = {}
    for scheme in SCHEMES:
        names = tuple(node.name for node in quantisable_nodes(model, scheme))
        if names:
            found.setdefault(names, scheme)
    return tuple(found.values())


def quantisable_nodes(model: onnx.ModelProto, scheme: Scheme) -> list[onnx.NodeProto]:
    """Return the nodes a scheme quantises.

    A head is a layer behind the last normalisation of its path; in a graph without one, a layer behind which no
    other convolution or linear layer follows. Errors there reach boxes and scores undamped.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    norms = tuple(op for op in NORMALISATIONS if any(node.op_type == op for node in model.graph.node))
    inner = _leads_to(model.graph, norms or OP_TYPES)
    first = next((node.name for node in model.graph.node if node.op_type == "Conv"), None)
    chosen = []
    for node in model.graph.node:
        if node.op_type not in OP_TYPES or node.input[WEIGHT_INPUT] not in shapes or node.name == first:
            continue
        shape = shapes[node.input[WEIGHT_INPUT]]
        wide = max(shape[-2:]) >= MLP_RATIO * min(shape[-2:])
        wanted = scheme.conv if node.op_type == "Conv" else scheme.mlp if wide else scheme.projections
        if wanted and any(output in inner for output in node.output):
            chosen.append(node)
    return chosen


def _leads_to(graph: onnx.GraphProto, op_types: tuple[str, ...]) -> set[str]:
    """Return the names of tensors from which a node of one of `op_types` is reached."""
    reached: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in op_types or any(output in reached for output in node.output):
            reached.update(node.input)
    return reached


def weight_bits_here() -> int:
    """Return 8 where the processor adds int8 products in 32 bits (VNNI, AMX, ARM's dot product), else 7.

    Without it, u8 × s8 products are added in pairs in 16 bits and saturate: 2 · 255 · 127 > 32767.
    """
    return 8 if {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(describe()["cpu"]["flags"]) else 7


def quantize(artifact: Artifact, store: Store, scheme: Scheme, ranges: Any, options: Int8Options) -> Built:
    """Insert Q/DQ pairs round the layers of `scheme`.

    Args:
        ranges: what `calibrate` returned for this artifact.

    Raises:
        ModelError: ONNX Runtime's quantiser cannot take the graph.
    """
    model = onnx.load(artifact.path)
    nodes = quantisable_nodes(model, scheme)
    bits = options.weight_bits or weight_bits_here()
    try:
        with quiet():
            quantiser = QDQQuantizer(
                onnx.load(artifact.path),
                per_channel=True,
                reduce_range=bits == 7,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=[node.name for node in nodes],
                nodes_to_exclude=[],
                op_types_to_quantize=list(OP_TYPES),
                extra_options={
                    "WeightSymmetric": True,
                    "ActivationSymmetric": False,
                    "MatMulConstBOnly": True,
                    # Such an output feeds residual sums and softmax: rounding it costs accuracy and buys nothing.
                    "OpTypesToExcludeOutputQuantization": list(LINEAR),
                },
            )
            quantiser.quantize_model()
            # The quantiser appends its nodes at the end; ONNX wants every node behind those it reads from.
            quantiser.model.topological_sort()
            quantised: onnx.ModelProto = quantiser.model.model
    except REFUSALS as error:
        raise refused(artifact, error) from error
    provenance = Provenance(scheme.name, artifact.sha256, {"weight_bits": str(bits)})
    made = store.put(serialise(quantised, artifact.spec), artifact.spec, provenance, suffix=".onnx")
    return Built(made, _changes(quantised, nodes, model))


def _changes(
    quantised: onnx.ModelProto, nodes: list[onnx.NodeProto], model: onnx.ModelProto
) -> dict[str, int]:
    constants = {tensor.name for tensor in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if node.op_type in OP_TYPES and node.input[WEIGHT_INPUT] in constants
    ]
    count = Counter("Conv" if node.op_type == "Conv" else "Linear" for node in nodes)
    return {
        "Conv to INT8": count["Conv"],
        "Linear to INT8": count["Linear"],
        "Conv and Linear left in FP32": len(layers) - len(nodes),
        "QuantizeLinear inserted": sum(node.op_type == "QuantizeLinear" for node in quantised.graph.node),
    }
