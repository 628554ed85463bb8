"""SmoothQuant: what makes a few channels of an activation large moves into the weights that read it.

A linear layer computes X W. Dividing channel j of X by s_j and multiplying row j of W by it changes nothing in real
numbers, but spreads the range of X evenly, so that one scale per tensor suits all channels:

    s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)

Nothing is divided at run time: what computes X takes 1 / s into its own constants.
Source: Xiao et al. 2022, "SmoothQuant", arXiv 2211.10438, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vitesse.errors import UsageError
from vitesse.fusion.rules import LeftAlone
from vitesse.precision.layers import LINEAR, Layer
from vitesse.precision.ranges import ChannelStatistics

# A channel that is almost never used must not be blown up without bound on images that do use it.
LEAST_FACTOR = 1e-5
_NORMALISATIONS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,)}
_Factors = NDArray[np.float64]


@dataclass(frozen=True)
class Smoothed:
    """What was done.

    folded: tensor that is smoother now → operator that took the factors.
    notes: the tensors left alone, each with the reason.
    """

    folded: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Edit:
    """Constant input `place` of a node times s**power; `axis` is that of the channels in the constant."""

    node: onnx.NodeProto
    place: int
    power: int
    axis: int = -1


def smooth(
    model: onnx.ModelProto,
    channels: Mapping[str, ChannelStatistics],
    layers: Sequence[Layer],
    alpha: float,
) -> tuple[onnx.ModelProto, Smoothed]:
    """Fold factors wherever that costs no operator; `model` is not changed.

    Factors go into the scale and bias of a LayerNormalization or RMSNormalization, a Mul, Div or Add by constants, or
    the layer before, through a ReLU and through the values of `Attention`. That is possible only where nobody but
    linear layers reads the tensor: a residual sum or a position embedding beside them would be scaled, too.

    Args:
        channels: as calibrated on this model. Ranges have to be calibrated anew on the one returned.
        layers: whose activations to smooth; those of convolutions are left out.
        alpha: 0 to 1, how much of the differences between channels moves into the weights; 0.5 shares them.

    Raises:
        UsageError: alpha is outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"SmoothQuant's alpha = {alpha:g}", expected="0 to 1")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = _Constants(copy.graph)
    folded: dict[str, str] = {}
    notes = []
    tensors = dict.fromkeys(layer.activation for layer in layers if layer.op_type in LINEAR and layer.weight)
    for tensor in tensors:
        try:
            if tensor not in channels:
                raise LeftAlone("there are no statistics of its channels")
            readers = list(_readers(graph, tensor))
            takers = list(_takers(graph, tensor, len(channels[tensor].abs_max)))
            factors = _factors(
                channels[tensor].abs_max, [_row_maxima(graph, edit) for edit in readers], alpha
            )
            for edit in (*readers, *takers):
                graph.multiply(edit, factors)
            folded[tensor] = takers[-1].node.op_type
        except LeftAlone as reason:
            notes.append(f"{tensor} is not smoothed: {reason}")
    return copy, Smoothed(folded, tuple(notes))


class _Constants:
    """A graph whose constants can be multiplied; one that others read too is copied for the node that changes it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        for value in graph.input:
            self._stored.pop(value.name, None)
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            for place, name in enumerate(node.input):
                self.uses.setdefault(name, []).append((node, place))
        self.fixed = {value.name for value in graph.output} | set(_read_inside(graph))

    def constant(self, node: onnx.NodeProto, place: int) -> NDArray[np.generic] | None:
        """Return a constant input of a node; None where it is computed or absent."""
        tensor = self._stored.get(node.input[place]) if place < len(node.input) else None
        return None if tensor is None else numpy_helper.to_array(tensor)

    def multiply(self, edit: _Edit, factors: _Factors) -> None:
        """Carry out an edit."""
        name = edit.node.input[edit.place]
        old = numpy_helper.to_array(self._stored[name])
        shape = (-1,) if edit.axis == -1 else (-1, 1)
        new = (old * factors.reshape(shape) ** edit.power).astype(old.dtype)
        if len(self.uses[name]) > 1 or name in self.fixed:
            self.uses[name] = [use for use in self.uses[name] if use != (edit.node, edit.place)]
            name = self._fresh(f"{name}_smoothed")
            self._stored[name] = self._graph.initializer.add()
            self.uses[name] = [(edit.node, edit.place)]
            edit.node.input[edit.place] = name
        self._stored[name].CopyFrom(numpy_helper.from_array(new, name))

    def _fresh(self, name: str) -> str:
        taken = self._stored.keys() | self.producers.keys()
        return next(one for one in (name, *(f"{name}_{at}" for at in range(2, 10**6))) if one not in taken)


def _readers(graph: _Constants, tensor: str) -> Iterator[_Edit]:
    """Yield the edits of the weights of all who read a tensor; raises LeftAlone where one is no linear layer."""
    if tensor in graph.fixed:
        raise LeftAlone("it is an output, or read inside an If or a Loop")
    for node, place in graph.uses[tensor]:
        weight = graph.constant(node, 1)
        linear = node.op_type in LINEAR and place == 0 and weight is not None and weight.ndim == 2
        if not linear or _flag(node, "transA"):
            raise LeftAlone(f"{node.op_type} `{node.name}` reads it too, and would get scaled values")
        yield _Edit(node, 1, 1, axis=-1 if _flag(node, "transB") else -2)


def _takers(graph: _Constants, tensor: str, width: int) -> Iterator[_Edit]:
    """Yield the edits that divide the channels of a tensor, those nearest to it first; raises LeftAlone where none can.

    The last one ends the chain; those before are additions and what lets factors pass.
    """
    node = graph.producers.get(tensor)
    if node is None:
        raise LeftAlone("it is no node's result")
    if node.op_type in _NORMALISATIONS:
        for place in reversed(_NORMALISATIONS[node.op_type]):
            if place < len(node.input) and node.input[place]:
                yield _divided(graph, node, place, width)
    elif node.op_type in LINEAR:
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
            yield _divided(graph, node, 2)
        yield _divided(graph, node, 1, width, axis=-2 if _flag(node, "transB") else -1)
    elif node.op_type == "Div" and graph.constant(node, 1) is not None:
        yield _Edit(node, 1, 1)
    elif node.op_type in ("Mul", "Add") and (places := _constant_places(graph, node)):
        yield _Edit(node, places[0], -1)
        if node.op_type == "Add":
            yield from _takers(graph, _only_read_here(graph, node, 1 - places[0]), width)
    elif node.op_type == "Relu":
        yield from _takers(graph, _only_read_here(graph, node, 0), width)
    elif node.op_type == "Attention" and _keeps_channels(node):
        yield from _takers(graph, _only_read_here(graph, node, 2), width)
    else:
        raise LeftAlone(f"it comes from {node.op_type} `{node.name}`, which cannot take factors")


def _divided(
    graph: _Constants, node: onnx.NodeProto, place: int, width: int | None = None, axis: int = -1
) -> _Edit:
    """Return the edit of a constant; raises LeftAlone where it is computed, or has not `width` channels."""
    found = graph.constant(node, place)
    if found is None or (width is not None and (not found.ndim or found.shape[axis] != width)):
        raise LeftAlone(f"input {place} of {node.op_type} `{node.name}` is no constant of {width} channels")
    return _Edit(node, place, -1, axis)


def _only_read_here(graph: _Constants, node: onnx.NodeProto, place: int) -> str:
    """Return the name of an input; raises LeftAlone where others read it too, who would get scaled values."""
    name = str(node.input[place])
    if name in graph.fixed or len(graph.uses[name]) > 1:
        raise LeftAlone(f"`{name}`, from which it is computed, is also read elsewhere")
    return name


def _constant_places(graph: _Constants, node: onnx.NodeProto) -> list[int]:
    return [place for place in (0, 1) if graph.constant(node, place) is not None]


def _keeps_channels(node: onnx.NodeProto) -> bool:
    """Whether channel j of the result of `Attention` is a mean over channel j of the values, and of nothing else.

    So it is with (batch, tokens, heads * width) inputs, as many heads of values as of queries, and no cache of values.
    """
    heads, of_values = _flag(node, "q_num_heads"), _flag(node, "kv_num_heads")
    return bool(heads) and heads == of_values and not any(node.input[4:]) and not any(node.output[1:])


def _row_maxima(graph: _Constants, edit: _Edit) -> _Factors:
    """Return the largest magnitude of the weights that each input channel meets, (in,)."""
    weight = graph.constant(edit.node, edit.place)
    assert weight is not None
    return np.abs(weight.astype(np.float64)).max(axis=-2 if edit.axis == -1 else -1)  # type: ignore[no-any-return]


def _factors(abs_max: NDArray[np.float32], weights: Sequence[_Factors], alpha: float) -> _Factors:
    """Return s, (channels,); 1 for a channel that is always zero or that no weight reads."""
    activation, weight = abs_max.astype(np.float64), np.max(weights, axis=0)
    used = (activation > 0) & (weight > 0)
    factors = np.ones_like(activation)
    np.divide(activation**alpha, weight ** (1 - alpha), out=factors, where=used)
    return np.maximum(factors, LEAST_FACTOR)


def _flag(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _read_inside(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of tensors that bodies of If, Loop and Scan read."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from (name for inner in body.node for name in inner.input)
                yield from _read_inside(body)
