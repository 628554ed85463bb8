"""The layers of an engine, as its inspector tells them: fused operators, their types, and the ONNX nodes in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitesse.backends.tensorrt.api import Api
from vitesse.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

# Up to 10.x, and from 11.0 on.
_IO_KEYS = ("Bindings", "I/O Tensors")
# How the inspector names types, in one text with the format or alone.
_TYPES = {
    "fp32": ("FP32", "Float"),
    "fp16": ("FP16", "Half"),
    "bf16": ("BF16", "BFloat16"),
    "fp8": ("FP8", "Float8"),
    "int8": ("Int8", "INT8"),
    "int4": ("Int4", "INT4"),
    "int32": ("Int32", "INT32"),
    "int64": ("Int64", "INT64"),
    "bool": ("Bool", "BOOL"),
}
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Args:
        type: the library's word, such as `gemm` or `Reformat`; "" where the engine kept names only.
        precision: type of its first output, such as "fp16"; "" where it is not told.
        onnx_nodes: names of the nodes of the graph that became it, where they are told.
    """

    name: str
    type: str = ""
    precision: str = ""
    onnx_nodes: tuple[str, ...] = ()


def inspect(api: Api, engine: tensorrt.ICudaEngine) -> str:
    """Return the information of all layers as JSON; "" where the library gives none."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return ""
    return str(inspector.get_engine_information(api.LayerInformationFormat.JSON))


def layers_of(text: str) -> tuple[Layer, ...]:
    """Read the inspector's JSON; nothing for "".

    Raises:
        BackendError: it is no such JSON.
    """
    return tuple(map(_layer, _read(text).get("Layers", ())))


def io_tensors_of(text: str) -> tuple[str, ...]:
    """Return the names of the engine's inputs and outputs, under whichever key they stand."""
    found = _read(text)
    entries = next((found[key] for key in _IO_KEYS if key in found), ())
    return tuple(str(entry.get("Name", "")) if isinstance(entry, dict) else str(entry) for entry in entries)


def _read(text: str) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BackendError(
            f"the layer information is no JSON: {error}",
            expected="what the engine inspector writes",
            cause="the file was cut off or edited",
            fix="build the engine again",
        ) from error
    if not isinstance(found, dict):
        raise BackendError("the layer information is no object", expected='{"Layers": [...]}')
    return found


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry))
    outputs: Sequence[Any] = entry.get("Outputs") or ({},)
    nodes = tuple(dict.fromkeys(_ONNX_NODE.findall(str(entry.get("Metadata", "")))))
    kind = str(entry.get("LayerType", entry.get("Type", "")))
    return Layer(str(entry.get("Name", "")), kind, _precision(outputs[0]), nodes)


def _precision(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return ""
    said = str(tensor.get("Datatype", tensor.get("Format/Datatype", "")))
    words = set(re.findall(r"\w+", said))
    return next((name for name, spelled in _TYPES.items() if words & set(spelled)), "")
