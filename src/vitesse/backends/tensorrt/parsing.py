"""ONNX → TensorRT network; what the parser or the builder refuses is told with node, module and the known way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from vitesse.backends.refusal import meant, placed, way_out
from vitesse.backends.tensorrt.api import Api, title_of
from vitesse.backends.tensorrt.graph_types import element_types, quantised_type
from vitesse.backends.tensorrt.logger import Log
from vitesse.errors import BackendError
from vitesse.sources.external_data import external_tensors, locate

if TYPE_CHECKING:
    import tensorrt

_SYMMETRIC = "activations quantised as INT8 with zero point 0"
_QUANTISE_AGAIN = "vitesse quantize MODEL --activations int8"


@dataclass(frozen=True)
class _Known:
    """What a text in the library's own words means."""

    says: str
    cause: str
    fix: str


_KNOWN = (
    _Known(
        "FP32 GEMM is not supported",
        "TensorRT for RTX has no FP32 matrix product for Turing (compute capability 7.5)",
        "build the FP16 graph: --stage fp16",
    ),
    _Known(
        "CUDA driver version is insufficient",
        "there is no GPU here, or its driver is too old; without a named one, the engine is built for the GPU here",
        "name the GPUs to build for, such as tensorrt-rtx:sm86,sm89, or see `nvidia-smi`",
    ),
    _Known(
        "no CUDA-capable device",
        "there is no GPU here; without a named one, the engine is built for the GPU here",
        "name the GPUs to build for, such as tensorrt-rtx:sm86,sm89",
    ),
    _Known(
        "libnvinfer_lean",
        "a version-compatible engine carries a lean runtime, which this package does not ship",
        "build without version compatibility, and again for every version",
    ),
)


def read_graph(model: Path | bytes, name: str) -> onnx.ModelProto:
    """Read the graph, without weights that lie beside the file, whose places are checked.

    Raises:
        BackendError: it cannot be read, or has no nodes. (TensorRT 10 and later take noise for an empty network.)
        ModelError: external weights are missing, or lie outside the model's folder.
    """
    try:
        if isinstance(model, Path):
            graph = onnx.load(model, load_external_data=False)
        else:
            graph = onnx.load_model_from_string(model)
        readable = len(graph.graph.node) > 0
    except Exception as error:  # protobuf and onnx raise a dozen kinds
        raise _unreadable(name) from error
    if not readable:
        raise _unreadable(name)
    for tensor in external_tensors(graph):
        if not isinstance(model, Path):
            raise BackendError(
                f"the weight {tensor.name!r} of {name} lies outside it",
                expected="the path of the file, for weights beside it",
                fix="give the path instead of the bytes",
            )
        where = {entry.key: entry.value for entry in tensor.external_data}
        locate(where.get("location", ""), model, tensor.name)
    return graph


def check_quantisation(graph: onnx.ModelProto, name: str, title: str) -> None:
    """Refuse UINT8 Q/DQ and zero points that are not 0 before the parser sees them.

    It takes UINT8 with zero point 0 for INT8 with a warning, and computes something else: 128 to 255 become 127.

    Raises:
        BackendError: names the first such node, how many there are, and why.
    """
    types = element_types(graph)
    found = [
        (node, why)
        for node in graph.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for why in (_asymmetric(node, graph, types),)
        if why
    ]
    if found:
        node, why = found[0]
        more = f", and {len(found) - 1} more like it" if len(found) > 1 else ""
        raise BackendError(
            f"{title} cannot run the quantisation of {name}: {placed(node)} has {why}{more}",
            expected=_SYMMETRIC,
            cause="the graph was quantised for CPUs",
            fix=_QUANTISE_AGAIN,
        )


def parse(
    api: Api, network: tensorrt.INetworkDefinition, model: Path | bytes, graph: onnx.ModelProto, log: Log
) -> tensorrt.OnnxParser:
    """Fill a network; a file is parsed from its path, so that weights may lie beside it and 2 GB are no limit.

    Args:
        graph: as `read_graph` returned it, to name what is refused.

    Returns:
        The parser, which must live until the engine is built: it owns weights of the network.

    Raises:
        BackendError: with every error of the parser, where in the network each is, and the known way out.
    """
    parser = api.OnnxParser(network, log.native)
    parsed = parser.parse_from_file(str(model)) if isinstance(model, Path) else parser.parse(model)
    if not parsed or parser.num_errors:
        errors = [_error(parser.get_error(index), graph) for index in range(parser.num_errors)]
        raise _refused(f"{title_of(api)} refuses {name_of(model)} while parsing it", errors, log)
    return parser


def not_built(title: str, name: str, goal: str, graph: onnx.ModelProto, log: Log) -> BackendError:
    """Return the error for a build that gave nothing: what the library logged, the node meant, and the way out.

    Args:
        title: name and version of the library.
        name: of the model.
        goal: what was being built, such as "for sm75".
    """
    said = log.errors or ("it gave no reason",)
    what = f"{title} cannot build {name} {goal}: {'; '.join(said)}"
    known = next((one for one in _KNOWN if any(one.says in text for text in said)), None)
    node = meant(" ".join(said), [node for node in graph.graph.node if node.name])
    place = f"{placed(node)}" if node is not None else ""
    if known is not None:
        return BackendError(what, cause=f"{known.cause}{f' ({place})' if place else ''}", fix=known.fix)
    return BackendError(what, cause=place, fix=way_out(node) if node is not None else "")


def name_of(model: Path | bytes) -> str:
    """Return how messages call the model."""
    return str(model) if isinstance(model, Path) else "the model"


def _unreadable(name: str) -> BackendError:
    return BackendError(
        f"{name} cannot be read as ONNX",
        expected="a readable model file",
        cause="the file is gone, truncated or damaged, or is something else",
        fix="export or copy it again",
    )


def _asymmetric(node: onnx.NodeProto, graph: onnx.ModelProto, types: Mapping[str, int]) -> str:
    kind = quantised_type(node, types)
    if kind == TensorProto.UINT8:
        return "UINT8 values"
    if len(node.input) < 3 or kind != TensorProto.INT8:
        return ""
    zero = next((one for one in graph.graph.initializer if one.name == node.input[2]), None)
    if zero is None or zero.data_location == TensorProto.EXTERNAL:
        return ""
    return "a zero point that is not 0" if onnx.numpy_helper.to_array(zero).any() else ""


def _refused(what: str, errors: Sequence[tuple[str, onnx.NodeProto | None]], log: Log) -> BackendError:
    count = f"{len(errors)} error{'s' * (len(errors) != 1)}"
    texts = [text for text, _ in errors] or list(log.errors)
    fixes = dict.fromkeys(way_out(node) for _, node in errors if node is not None)
    return BackendError(
        "\n".join((f"{what}: {count}", *(f"    {text}" for text in texts))),
        expected="operators and types that it has",
        fix="; ".join(fixes),
    )


def _error(error: Any, graph: onnx.ModelProto) -> tuple[str, onnx.NodeProto | None]:
    """Return the text of a parser error, with the node's place, and the node.

    Its class is another one in each module, and names the node since 10.0 only; the number is of the graph's nodes,
    unless the error lies within a function.
    """
    text = " ".join(str(error.desc()).split())
    node = next(_candidates(error, graph), None)
    return (f"{placed(node)}: {text}" if node is not None else text), node


def _candidates(error: Any, graph: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    if name:
        yield from (node for node in graph.graph.node if node.name == name)
    index = error.node()
    if 0 <= index < len(graph.graph.node) and operator in ("", graph.graph.node[index].op_type):
        yield graph.graph.node[index]
