"""Changes that break a model, and the pictures that show it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import fashion
import tiny_graphs
from vitesse.data.preprocess import feeds
from vitesse.metadata import write_spec
from vitesse.spec import ModelSpec

Model = onnx.ModelProto
f32 = np.float32


def changed(model: Callable[[], Model], *changes: Callable[[Model], None]) -> Callable[[], Model]:
    """A function that makes `model` and changes it."""

    def make() -> Model:
        made = copied(model())
        for change in changes:
            change(made)
        return made

    return make


def copied(model: Model) -> Model:
    copy = Model()
    copy.CopyFrom(model)
    return copy


def weight(name: str, of: Callable[[NDArray[Any]], Any]) -> Callable[[Model], None]:
    """A change: a weight becomes `of` its value."""
    return lambda model: tiny_graphs.set_weight(
        model, name, np.ascontiguousarray(of(tiny_graphs.weight(model, name)))
    )


def after(tensor: str, operator: str, *values: Any, **attributes: Any) -> Callable[[Model], None]:
    """A change: an operator is put behind a tensor, constants as its further inputs."""

    def change(model: Model) -> None:
        names = []
        for index, value in enumerate(values):
            names.append(f"{tensor}_{operator}_{index}")
            tiny_graphs.set_weight(model, names[-1], np.asarray(value))
        tiny_graphs.insert_after(model, tensor, operator, *names, **attributes)

    return change


def attribute(node: str, **values: Any) -> Callable[[Model], None]:
    """A change: attributes of a node are set."""

    def change(model: Model) -> None:
        made = tiny_graphs.node(model, node)
        kept = [one for one in made.attribute if one.name not in values]
        del made.attribute[:]
        made.attribute.extend(
            [*kept, *(helper.make_attribute(name, value) for name, value in values.items())]
        )

    return change


def quantised(tensor: str, scale: float, zero: int = 0, kind: Any = np.int8) -> Callable[[Model], None]:
    """A change: a tensor goes through QuantizeLinear and DequantizeLinear."""

    def change(model: Model) -> None:
        s, z = f"{tensor}_scale", f"{tensor}_zero"
        tiny_graphs.set_weight(model, s, np.array(scale, f32))
        tiny_graphs.set_weight(model, z, np.array(zero, kind))
        readers = [node for node in model.graph.node if tensor in node.input]
        at = min(list(model.graph.node).index(node) for node in readers)
        for node in readers:
            for place, name in enumerate(node.input):
                if name == tensor:
                    node.input[place] = f"{tensor}_dq"
        model.graph.node.insert(
            at, helper.make_node("DequantizeLinear", [f"{tensor}_q", s, z], [f"{tensor}_dq"], f"{tensor}_dq")
        )
        model.graph.node.insert(
            at, helper.make_node("QuantizeLinear", [tensor, s, z], [f"{tensor}_q"], f"{tensor}_q")
        )

    return change


def quantised_weight(name: str) -> Callable[[Model], None]:
    """A change: a weight in int8 with a single scale."""

    def change(model: Model) -> None:
        value = tiny_graphs.weight(model, name)
        scale = f32(np.abs(value).max() / 127)
        kept = [one for one in model.graph.initializer if one.name != name]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        tiny_graphs.set_weight(model, f"{name}_q", np.round(value / scale).astype(np.int8))
        tiny_graphs.set_weight(model, f"{name}_scale", np.array(scale))
        tiny_graphs.set_weight(model, f"{name}_zero", np.array(0, np.int8))
        inputs = [f"{name}_q", f"{name}_scale", f"{name}_zero"]
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dq"))

    return change


def half(model: Callable[[], Model]) -> Callable[[], Model]:
    """All of it in FP16 but inputs and outputs, without islands: what a careless conversion gives."""

    def make() -> Model:
        made = copied(model())
        del made.graph.value_info[:]  # it says float32
        for tensor in made.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                with np.errstate(over="ignore"):
                    rounded = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        outputs = {entry.name: f"{entry.name}_half" for entry in made.graph.output}
        for node in made.graph.node:
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    names[at] = "images_half" if name == "images" else outputs.get(name, name)
        cast = helper.make_node("Cast", ["images"], ["images_half"], "cast_images", to=TensorProto.FLOAT16)
        made.graph.node.insert(0, cast)
        made.graph.node.extend(
            helper.make_node("Cast", [name], [out], f"cast_{out}", to=TensorProto.FLOAT)
            for out, name in outputs.items()
        )
        return made

    return make


@cache
def pictures() -> tuple[NDArray[np.uint8], ...]:
    """Four of the example's pictures, of the size the small models take."""
    opened = (Image.open(path).convert("RGB").resize((32, 32)) for path in fashion.IMAGES[fashion.DETR])
    return tuple(np.asarray(one) for one in opened)


@cache
def step_of(tensor: str, model: Callable[[], Model]) -> float:
    """The INT8 step that covers a tensor's values on the pictures."""
    shown = copied(model())
    shown.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    run = tiny_graphs.runner(shown)
    given = [feeds([one], tiny_graphs.classifier_spec()) for one in pictures()]
    return max(float(np.abs(run(one)[tensor]).max()) for one in given) / 127


def with_spec(model: Callable[[], Model], spec: ModelSpec) -> Callable[[], Model]:
    """The model with a spec of its own in its metadata."""
    return lambda: write_spec(model(), spec)


def swapped_names(first: str, second: str) -> Callable[[Model], None]:
    """A change: two outputs exchange their names."""
    turned = {first: second, second: first}

    def change(model: Model) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    names[at] = turned.get(name, name)
        for entry in model.graph.output:
            entry.name = turned.get(entry.name, entry.name)

    return change


def before_stem(operator: str, value: Any) -> Callable[[Model], None]:
    """A change: the image goes through an operator first; called again, through that one before."""

    def change(model: Model) -> None:
        made = f"images_{operator}"
        tiny_graphs.set_weight(model, f"{made}_value", np.asarray(value, f32))
        for node in model.graph.node:
            for at, name in enumerate(node.input):
                if name == "images":
                    node.input[at] = made
        model.graph.node.insert(0, helper.make_node(operator, ["images", f"{made}_value"], [made], made))

    return change


def fixed_batch(model: Model) -> None:
    """A change: every input and output has batch 1."""
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 1


def renamed(name: str, to: str) -> Callable[[Model], None]:
    """A change: a node becomes another operator."""

    def change(model: Model) -> None:
        tiny_graphs.node(model, name).op_type = to

    return change


def standardised(kernels: NDArray[Any]) -> NDArray[Any]:
    """(w − mean) / (std + 1e-5) of each kernel."""
    axes = (1, 2, 3)
    return (kernels - kernels.mean(axes, keepdims=True)) / (kernels.std(axes, keepdims=True) + f32(1e-5))


def rounding(tensor: str, model: Callable[[], Model], factor: float = 1.0) -> Callable[[Model], None]:
    """A change: a tensor in INT8, its range `factor` times what it should be."""

    def change(made: Model) -> None:
        quantised(tensor, factor * step_of(tensor, model))(made)

    return change
