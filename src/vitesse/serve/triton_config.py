"""The text of Triton's config.pbtxt: a message `inference.ModelConfig` in protobuf's text format.

Field names and meanings: triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vitesse.backends.protocol import TensorInfo
from vitesse.data.scaling import Size
from vitesse.errors import ModelError
from vitesse.spec import ModelSpec

_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float64": "TYPE_FP64",
    "bool": "TYPE_BOOL", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64",
    "string": "TYPE_STRING",
}  # fmt: skip


@dataclass(frozen=True)
class Warmup:
    """One request that the server runs before it is ready: images of zeros.

    Args:
        size: (height, width) of the image tensor; batch: items, 0 where the graph's batch axis is not free.
        layout, image_input: as in the spec.
    """

    size: Size
    batch: int
    layout: str
    image_input: str

    @property
    def name(self) -> str:
        """Unique in a configuration."""
        return f"{self.size[0]}x{self.size[1]}" + (f"_batch{self.batch}" if self.batch else "")

    def file(self, tensor: str) -> str:
        """Return the name of the file with a tensor's values; for one item, which the server repeats."""
        return f"{tensor}_{self.size[0]}x{self.size[1]}"

    def sizes(self, spec: ModelSpec, tensor: str) -> list[int]:
        """Return what a size input is told: the tensor is all image."""
        swapped = tensor == spec.size_input and spec.size_order == "wh"
        return [self.size[1], self.size[0]] if swapped else list(self.size)


@dataclass(frozen=True)
class Plan:
    """What the configuration says.

    Args:
        name, backend, file: the model's, Triton's backend for it, the file in the version's folder.
        inputs, outputs: of the graph, with the batch axis.
        batch: most items a call; 0 where the batch axis is not free, and the client gives the whole shape.
        preferred: batch sizes not waited beyond; delay_us: longest wait for others; both count only above batch 1.
        instances, gpu: how many, and where; threads: of one call on a CPU, 0 = the runtime's default.
        labels: class names for the first output; warmups: largest first.
    """

    name: str
    backend: str
    file: str
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    batch: int
    preferred: tuple[int, ...]
    delay_us: int
    instances: int
    gpu: bool
    threads: int
    labels: tuple[str, ...] = ()
    warmups: tuple[Warmup, ...] = ()

    @property
    def told_sizes(self) -> tuple[TensorInfo, ...]:
        """Inputs beside the image: they take sizes."""
        images = {warmup.image_input for warmup in self.warmups}
        return tuple(info for info in self.inputs if info.name not in images)


def config_text(plan: Plan) -> str:
    """Return the file's text.

    Raises:
        ModelError: a tensor has a type that Triton does not know.
    """
    lines = [
        f"name: {_quoted(plan.name)}",
        f"backend: {_quoted(plan.backend)}",
        f"default_model_filename: {_quoted(plan.file)}",
        f"max_batch_size: {plan.batch}",
    ]
    for info in plan.inputs:
        lines += _block("input", _tensor(info, plan))
    for index, info in enumerate(plan.outputs):
        labelled = ['label_filename: "labels.txt"'] if plan.labels and index == 0 else []
        lines += _block("output", _tensor(info, plan) + labelled)
    kind = "KIND_GPU" if plan.gpu else "KIND_CPU"
    lines += _block("instance_group", [f"count: {plan.instances}", f"kind: {kind}"])
    if plan.batch > 1:
        preferred = f"preferred_batch_size: [ {', '.join(map(str, plan.preferred))} ]"
        lines += _block("dynamic_batching", [preferred, f"max_queue_delay_microseconds: {plan.delay_us}"])
    if plan.threads and plan.backend == "onnxruntime":
        value = [f"key: {_quoted('intra_op_thread_count')}"]
        value += _block("value", [f"string_value: {_quoted(str(plan.threads))}"])
        lines += _block("parameters", value)
    for warmup in plan.warmups:
        lines += _block("model_warmup", _warmup(warmup, plan))
    return "\n".join(lines) + "\n"


def _tensor(info: TensorInfo, plan: Plan) -> list[str]:
    sides = info.shape[1:] if plan.batch else info.shape
    dims = ", ".join(str(side) if isinstance(side, int) else "-1" for side in sides)
    return [f"name: {_quoted(info.name)}", f"data_type: {_type(info)}", f"dims: [ {dims} ]"]


def _warmup(warmup: Warmup, plan: Plan) -> list[str]:
    lines = [f"name: {_quoted(warmup.name)}", f"batch_size: {max(1, warmup.batch)}"]
    for info in plan.inputs:
        if info.name == warmup.image_input:
            sides = [3, *warmup.size] if warmup.layout == "NCHW" else [*warmup.size, 3]
            values = "zero_data: true"
        else:
            sides, values = [2], f"input_data_file: {_quoted(warmup.file(info.name))}"
        dims = sides if plan.batch else [1, *sides]
        fed = [f"data_type: {_type(info)}", f"dims: [ {', '.join(map(str, dims))} ]", values]
        lines += _block("inputs", [f"key: {_quoted(info.name)}", *_block("value", fed)])
    return lines


def _type(info: TensorInfo) -> str:
    try:
        return _TYPES[info.dtype]
    except KeyError as error:
        raise ModelError(
            f"the tensor {info.name} is {info.dtype}", expected=f"one of: {', '.join(_TYPES)}"
        ) from error


def _block(name: str, lines: Sequence[str]) -> list[str]:
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]


def _quoted(text: str) -> str:
    """A string of the text format; JSON's escapes are among those it knows, but for what is not ASCII."""
    return json.dumps(text, ensure_ascii=False)
