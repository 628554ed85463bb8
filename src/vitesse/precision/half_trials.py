"""What a set of FP32 islands costs in accuracy, measured: the emulated half-precision graph beside the float32 one.

A choice (TopK, ArgMax, non-maximum suppression) is held as the float32 graph makes it. A near tie that falls otherwise
would permute all that follows, and hide whether the numbers themselves are right.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from vitesse.backends.protocol import Array, Tensors
from vitesse.precision.activations import MASK
from vitesse.precision.emulation import emulated
from vitesse.precision.half_casts import HalfGraph
from vitesse.verify.taps import Taps

# Which output of a choosing operator is the choice.
_CHOICES = {"TopK": 1, "ArgMax": 0, "ArgMin": 0, "NonMaxSuppression": 0}


@dataclass(frozen=True)
class Loss:
    """The error of a half-precision graph, by tensor compared: ‖half - float32‖ / ‖float32‖ over all images.

    Infinite where the half graph has NaN or infinity and the float32 graph has not.
    """

    by_tensor: dict[str, float]

    @property
    def worst(self) -> float:
        """The error of the tensor that suffers most; 0 where nothing is compared."""
        return max(self.by_tensor.values(), default=0.0)


class Trials:
    """Tries sets of islands on a few images; every set is run once.

    Args:
        graph: whose islands are sought.
        samples: a few feeds, kept in memory.
        headroom: as in `emulation.emulated`.
        most: sets tried at most; `left` says how many remain.

    Compared are the float32 outputs of the graph, and what a choice is made from.
    """

    def __init__(
        self, graph: HalfGraph, samples: Sequence[Tensors], *, headroom: float = 1.0, most: int = 40
    ) -> None:
        self._graph, self._headroom, self.left = graph, headroom, most
        self._chosen, self.compared = _points(graph.float_model)
        reference = Taps(graph.float_model, [*self._chosen, *self.compared])
        self._expected = [dict(reference.run(feed)) for feed in samples]
        self._feeds = [
            {**feed, **{name: one[name] for name in self._chosen}}
            for feed, one in zip(samples, self._expected, strict=True)
        ]
        self._known: dict[frozenset[str], Loss] = {}

    def loss(self, islands: Collection[str]) -> Loss:
        """Return what the graph loses with these nodes in FP32."""
        key = frozenset(islands)
        if key not in self._known:
            self.left -= 1
            model = _holding_choices(
                emulated(self._graph.written(key), headroom=self._headroom), self._chosen
            )
            taps = Taps(model, self.compared)
            self._known[key] = self._compare(dict(taps.run(feed)) for feed in self._feeds)
        return self._known[key]

    def _compare(self, found: Iterable[dict[str, Array]]) -> Loss:
        wrong, whole = dict.fromkeys(self.compared, 0.0), dict.fromkeys(self.compared, 0.0)
        for expected, values in zip(self._expected, found, strict=True):
            for name in self.compared:
                exact = expected[name].astype(np.float64)
                # What the float32 graph masks, or cannot compute either, says nothing.
                counted = np.isfinite(exact) & (exact > MASK)
                exact, value = exact[counted], values[name].astype(np.float64)[counted]
                wrong[name] += float(np.square(value - exact).sum()) if np.isfinite(value).all() else math.inf
                whole[name] += float(np.square(exact).sum())
        return Loss({name: _ratio(wrong[name], whole[name]) for name in self.compared})


def _ratio(wrong: float, whole: float) -> float:
    if whole:
        return math.sqrt(wrong / whole)
    return math.inf if wrong else 0.0


def _points(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors that hold choices, and the float32 tensors to compare."""
    floats = typed(model, TensorProto.FLOAT)
    chosen: list[str] = []
    compared = [entry.name for entry in model.graph.output if entry.name in floats]
    for node in model.graph.node:
        if node.op_type in _CHOICES and not node.domain:
            chosen.append(node.output[_CHOICES[node.op_type]])
            compared += [name for name in node.input if name in floats]
    made = {name for node in model.graph.node for name in node.output}
    return tuple(filter(None, chosen)), tuple(dict.fromkeys(name for name in compared if name in made))


def typed(model: onnx.ModelProto, kind: int) -> set[str]:
    """Names of the inputs, outputs and annotated inner tensors of an element type."""
    graph = model.graph
    entries = (*graph.input, *graph.output, *graph.value_info)
    return {entry.name for entry in entries if entry.type.tensor_type.elem_type == kind}


def _holding_choices(model: onnx.ModelProto, chosen: Sequence[str]) -> onnx.ModelProto:
    """Turn choices into inputs; the values that TopK puts out beside them are gathered from where it chose."""
    held = onnx.ModelProto()
    held.CopyFrom(model)
    nodes = []
    for node in held.graph.node:
        place = _CHOICES.get(node.op_type, -1) if not node.domain else -1
        if place < 0 or node.output[place] not in chosen:
            nodes.append(node)
        elif node.op_type == "TopK" and node.output[0]:
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), -1)
            inputs = [node.input[0], node.output[place]]
            nodes.append(helper.make_node("GatherElements", inputs, [node.output[0]], node.name, axis=axis))
    kept = [entry for entry in held.graph.output if entry.name not in chosen]
    annotated = [entry for entry in held.graph.value_info if entry.name not in chosen]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in chosen]
    graph = helper.make_graph(
        nodes,
        held.graph.name,
        [*held.graph.input, *inputs],
        kept,
        held.graph.initializer,
        value_info=annotated,
    )
    held.graph.CopyFrom(graph)
    return held
