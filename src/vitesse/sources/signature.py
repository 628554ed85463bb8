"""What a graph takes and gives, as text for people and as a check of a spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from vitesse.backends.protocol import TensorInfo
from vitesse.errors import SpecError
from vitesse.spec import Decode, ModelSpec

_FLOATS = frozenset({"float32"})
_INTEGERS = frozenset({"int64", "int32"})
_SPATIAL = {"NCHW": (1, (2, 3)), "NHWC": (3, (1, 2))}
_RANK = {"logits": 3, "boxes": 3, "labels": 2, "scores": 2}


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """Return the inputs a caller must feed: those that are not also weights (IR version below 4)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_info(entry) for entry in model.graph.input if entry.name not in weights)


def graph_outputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """Return the graph's outputs."""
    return tuple(_info(entry) for entry in model.graph.output)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that the graph is written in."""
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def graph_signature(model: onnx.ModelProto) -> str:
    """Return the graph's inputs and outputs with dtype and shape, one a line, for messages."""
    inputs, outputs = graph_inputs(model), graph_outputs(model)
    width = max((len(entry.name) for entry in (*inputs, *outputs)), default=0)
    lines = []
    for title, entries in (("inputs:", inputs), ("outputs:", outputs)):
        lines.append(title)
        lines += [f"  {entry.name:<{width}}  {describe(entry)}" for entry in entries]
    return "\n".join(lines)


def describe(entry: TensorInfo) -> str:
    """Return dtype and shape of one tensor, such as `float32 [N, 3, 320, 320]`."""
    return f"{entry.dtype} [{', '.join(map(str, entry.shape))}]"


def check_spec_against(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Check that the graph can be fed and read as the spec says.

    Raises:
        SpecError: a named tensor is absent or has another dtype or rank, an input is left without a value,
            the static height and width differ from `preprocessing.size`, or the classes from the labels.
    """
    inputs = {entry.name: entry for entry in graph_inputs(model)}
    outputs = {entry.name: entry for entry in graph_outputs(model)}
    _check_image(_named(inputs, spec.image_input, "image_input", model), spec)
    if spec.size_input is not None:
        _check_dtype(_named(inputs, spec.size_input, "size_input", model), frozenset({"int64"}), "size_input")
    if spec.valid_size_input is not None:
        valid = _named(inputs, spec.valid_size_input, "valid_size_input", model)
        _check_dtype(valid, frozenset({"int64"}), "valid_size_input")
    unfed = sorted(set(inputs) - {spec.image_input, spec.size_input, spec.valid_size_input})
    if unfed:
        wanted = ", ".join(f"`{name}` {describe(inputs[name])}" for name in unfed)
        raise SpecError(
            f"the graph also wants the input {wanted}",
            expected="an image input and at most one input with the original size (size_input)",
            cause="the export kept a padding mask or another argument of the model",
            fix="export the model with a single image input, or name the size input in the spec",
        )
    for role, name in spec.outputs.items():
        entry = _named(outputs, name, f"outputs.{role}", model)
        _check_dtype(entry, _INTEGERS if role == "labels" else _FLOATS, f"outputs.{role}")
        _check_rank(entry, role, 2 if spec.decode is Decode.LOGITS else _RANK[role])
        if role == "logits":
            _check_classes(entry, spec)
        if role == "boxes" and entry.shape and entry.shape[-1] != 4 and isinstance(entry.shape[-1], int):
            raise SpecError(
                f"output `{name}` is {describe(entry)}", expected="boxes: a last dimension of 4 coordinates"
            )


def _named(entries: dict[str, TensorInfo], name: str, key: str, model: onnx.ModelProto) -> TensorInfo:
    if name in entries:
        return entries[name]
    kind = "output" if key.startswith("outputs") else "input"
    raise SpecError(
        f"the spec's {key} is `{name}`, and the graph has no such {kind}",
        expected=f"one of: {', '.join(f'`{found}`' for found in entries)}",
        fix=f"correct {key} in the spec; the graph has\n{graph_signature(model)}",
    )


def _check_image(entry: TensorInfo, spec: ModelSpec) -> None:
    _check_dtype(entry, _FLOATS, "image_input")
    if spec.preprocessing.layout not in _SPATIAL:
        raise SpecError(f"layout {spec.preprocessing.layout!r} in the spec", expected="NCHW or NHWC")
    channel, sides = _SPATIAL[spec.preprocessing.layout]
    if len(entry.shape) != 4 or entry.shape[channel] not in (3, *_symbols(entry.shape)):
        raise SpecError(
            f"the image input `{entry.name}` is {describe(entry)}",
            expected=f"four dimensions in the order {spec.preprocessing.layout}, with 3 channels",
            fix='set preprocessing.layout to "NCHW" or "NHWC", as the graph has it',
        )
    _check_buckets(entry, [entry.shape[side] for side in sides], spec)
    for axis, wanted in zip(sides, spec.preprocessing.size, strict=True):
        if isinstance(entry.shape[axis], int) and entry.shape[axis] != wanted:
            height, width = spec.preprocessing.size
            raise SpecError(
                f"the spec's size is {height}×{width}, the image input `{entry.name}` is {describe(entry)}",
                expected=f"size = [{entry.shape[sides[0]]}, {entry.shape[sides[1]]}] (height, width)",
                fix="correct preprocessing.size in the spec, or export the model for that size",
            )


def _check_buckets(entry: TensorInfo, sides: Sequence[int | str], spec: ModelSpec) -> None:
    for bucket in spec.preprocessing.buckets:
        if any(isinstance(side, int) and side != wanted for side, wanted in zip(sides, bucket, strict=True)):
            raise SpecError(
                f"the spec has a bucket of {bucket[0]}×{bucket[1]}; the image input `{entry.name}` is "
                f"{describe(entry)}",
                expected="a graph of open height and width",
                fix="export with --dynamic batch,height,width, or remove preprocessing.buckets",
            )


def _check_dtype(entry: TensorInfo, allowed: Iterable[str], key: str) -> None:
    if entry.dtype not in allowed:
        raise SpecError(
            f"{key} `{entry.name}` is {describe(entry)}",
            expected=" or ".join(sorted(allowed)),
            cause="the model was converted to another number format, inputs and outputs included",
            fix="export it with float32 inputs and outputs; Vitesse chooses the inner precision itself",
        )


def _check_rank(entry: TensorInfo, role: str, rank: int) -> None:
    if entry.shape and len(entry.shape) != rank:
        raise SpecError(
            f"output `{entry.name}` is {describe(entry)}",
            expected=f"{rank} dimensions for the role {role}",
            cause="another output is meant, or auxiliary decoder layers are stacked in it",
            fix="see docs/spec.md for what every decode reads",
        )


def _check_classes(entry: TensorInfo, spec: ModelSpec) -> None:
    if not spec.labels or not entry.shape or not isinstance(entry.shape[-1], int):
        return
    extra = 1 if spec.decode is Decode.DETR_SOFTMAX else 0
    if entry.shape[-1] != len(spec.labels) + extra:
        raise SpecError(
            f"output `{entry.name}` is {describe(entry)}, and the spec has {len(spec.labels)} labels",
            expected=f"{entry.shape[-1] - extra} labels"
            + (" (the last of the logits is no-object)" if extra else ""),
            cause="the labels belong to another model, or decode is wrong",
            fix="correct labels or decode in the spec; labels may also be left out",
        )


def _symbols(shape: tuple[int | str, ...]) -> tuple[str, ...]:
    return tuple(side for side in shape if isinstance(side, str))


def _info(entry: onnx.ValueInfoProto) -> TensorInfo:
    tensor = entry.type.tensor_type
    shape: list[int | str] = []
    for dim in tensor.shape.dim:
        shape.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?")
    if not entry.type.HasField("tensor_type") or not tensor.elem_type:
        return TensorInfo(entry.name, tuple(shape), "unknown")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorInfo(entry.name, tuple(shape), "string" if dtype.kind == "O" else str(dtype))
