"""From suspected FP32 islands to those that the outputs feel: found, dropped and kept by measured error.

1  while the error is too large: halve the graph until the few nodes are found that make it     → new islands
2  every suspected island the other way: where the error stays the same without it              → dropped
3  outputs of large numbers (boxes in pixels): where an FP32 tail takes half of the squared error              → kept
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import onnx

from vitesse.precision.activations import Activations
from vitesse.precision.half_casts import HALF_TYPES, HalfGraph
from vitesse.precision.half_trials import Loss, Trials
from vitesse.precision.islands import Reason

# Relative error of an output, ‖half - float32‖ / ‖float32‖, beyond which islands are sought. BF16 keeps 8 binary digits
# where FP16 keeps 11, and its error is everywhere: few islands lower it.
LIMITS: Mapping[str, float] = {"fp16": 0.01, "bf16": 0.04}
# An error is the same when it grows by less than a tenth.
_SAME, _TINY = 1.1, 1e-6
# Into how many parts the graph and then a part of it is split; fewer nodes than this are not split further.
_PARTS, _FEW = (8, 4), 4
# Trials kept for the second and third step.
_RESERVE = 12
# Values beyond which neighbouring half-precision numbers are at least a quarter apart: coordinates in pixels feel it.
_STEP = 0.25
# What an island must gain that range alone does not ask for: half of the error, and in a tail half of its square.
_HALVED, _HALVED_SQUARE = 0.5, 0.7
_TAIL_NODES = 48
_LAYERS = frozenset({"MatMul", "Gemm", "Conv"})
_TAIL = frozenset(
    {
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Neg",
            "Pow",
            "Sqrt",
            "Exp",
            "Log",
            "Sigmoid",
            "Tanh",
            "Clip",
            "Min",
            "Max",
        ),
        *("Cast", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "Where", "Identity"),
        *("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Expand", "Tile", "Relu", "ReduceSum"),
    }
)


@dataclass(frozen=True)
class Found:
    """What the search ends with.

    Args:
        islands: node name → why it stays in FP32.
        loss: measured with them.
        dropped: how many suspected nodes went to half precision after all.
        notes: what was tried in vain, in words.
    """

    islands: Mapping[str, str]
    loss: Loss
    dropped: int
    notes: tuple[str, ...]


def search(
    graph: HalfGraph, trials: Trials, suspected: Mapping[str, Reason], activations: Activations
) -> Found:
    """Find the islands that are needed, in as many trials as `trials` has left.

    Args:
        suspected: by `islands.reasons`.
        activations: of the same graph; they tell which outputs hold large numbers.
    """
    seeking = _Search(graph, trials, suspected)
    seeking.find_culprits()
    seeking.drop()
    seeking.keep_large_numbers(activations)
    dropped = sum(name in suspected and name not in seeking.islands for name in graph.convertible)
    islands = {name: seeking.islands[name].text for name in graph.convertible if name in seeking.islands}
    return Found(islands, trials.loss(islands), dropped, tuple(seeking.notes))


class _Search:
    def __init__(self, graph: HalfGraph, trials: Trials, suspected: Mapping[str, Reason]) -> None:
        self._order, self._trials = graph.convertible, trials
        known = set(self._order)
        self.islands = {name: reason for name, reason in suspected.items() if name in known}
        self.notes: list[str] = []
        self._wiring = Wiring(graph.float_model)
        self._number = graph.number
        self._limit = LIMITS[graph.number]

    def find_culprits(self) -> None:
        """Make islands of the nodes that are to blame for an error beyond the limit."""
        loss = self._loss(self.islands)
        while loss > self._limit and self._trials.left > _RESERVE:
            culprit, alone = self._culprit(loss)
            if not culprit:
                self.notes.append(
                    f"the error of {_percent(loss)} is spread over the network: no few nodes make half of it"
                )
                return
            text = f"in half precision it alone makes an error of {_percent(alone)} in the outputs"
            self.islands |= {name: Reason(text) for name in culprit}
            loss = self._loss(self.islands)

    def _culprit(self, loss: float) -> tuple[list[str], float]:
        """The few nodes without which the error halves, and the error that they make alone; none if there are none."""
        part, alone, count = [name for name in self._order if name not in self.islands], loss, _PARTS[0]
        mended = False
        while len(part) >= _FEW and self._trials.left > _RESERVE:
            pieces = _split(part, count)
            errors = [self._alone(piece) for piece in pieces]
            worst = max(range(len(pieces)), key=errors.__getitem__)
            if not self._mends(pieces[worst], loss, errors[worst]):
                break
            part, alone, count, mended = pieces[worst], errors[worst], _PARTS[1], True
        return (part, alone) if mended else ([], alone)

    def _mends(self, part: Sequence[str], loss: float, alone: float) -> bool:
        """Whether FP32 for this part helps: where several parts overflow, one of them alone does not mend the whole."""
        if math.isinf(loss):
            return math.isinf(alone)
        return self._loss({*self.islands, *part}) <= _HALVED * loss

    def _alone(self, part: Collection[str]) -> float:
        """The error when only these nodes are in half precision."""
        return self._loss(set(self._order) - set(part))

    def drop(self) -> None:
        """Give back to half precision what the outputs do not feel."""
        bound = self._trials.loss(self.islands)
        if not math.isfinite(bound.worst):
            return
        droppable = [name for name, reason in self.islands.items() if not reason.lasting]
        if not droppable or self._drop_all(droppable, bound):
            return
        for group in self._wiring.groups(droppable):
            if len(group) == len(droppable) or not self._drop_all(group, bound):
                for name in group if 1 < len(group) <= 2 * _FEW else ():
                    self._drop_all([name], bound)

    def _drop_all(self, names: Sequence[str], bound: Loss) -> bool:
        if self._trials.left <= 0:
            return False
        kept = {name: reason for name, reason in self.islands.items() if name not in names}
        found = self._trials.loss(kept)
        same = all(error <= _SAME * bound.by_tensor[name] + _TINY for name, error in found.by_tensor.items())
        if same:
            self.islands = kept
        return same

    def keep_large_numbers(self, activations: Activations) -> None:
        """Keep what makes an output of large numbers in FP32, where that halves its error."""
        epsilon = float(ml_dtypes.finfo(HALF_TYPES[self._number].numpy()).eps)  # type: ignore[no-untyped-call]
        for output in self._wiring.outputs:
            seen = activations.get(output)
            if seen is None or output not in self._trials.compared or seen.largest * epsilon < _STEP:
                continue
            step = epsilon * 2.0 ** math.floor(math.log2(seen.largest))
            for tail in self._wiring.tails(output):
                if self._trials.left <= 0:
                    return
                before = self._trials.loss(self.islands).by_tensor[output]
                text = (
                    f"`{output}` holds numbers up to {seen.largest:.0f}, where {self._number.upper()} counts in "
                    f"steps of {step:g}"
                )
                tried = {**{name: Reason(text) for name in tail if name in self._order}, **self.islands}
                if self._trials.loss(tried).by_tensor[output] <= _HALVED_SQUARE * before:
                    self.islands = tried
                    break

    def _loss(self, islands: Collection[str]) -> float:
        return self._trials.loss(islands).worst


class Wiring:
    """Which nodes feed which."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.outputs = [entry.name for entry in model.graph.output]
        self._nodes = {node.name: node for node in model.graph.node}
        self._maker = {name: node.name for node in model.graph.node for name in node.output if name}

    def before(self, name: str) -> list[str]:
        """Names of the nodes that make what a node reads."""
        return [self._maker[read] for read in self._nodes[name].input if read in self._maker]

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Split nodes into groups of those that feed each other."""
        group = {name: name for name in names}

        def root(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        for name in group:
            for other in self.before(name):
                if other in group:
                    group[root(other)] = root(name)
        found: dict[str, list[str]] = {}
        for name in group:
            found.setdefault(root(name), []).append(name)
        return list(found.values())

    def tails(self, output: str) -> list[list[str]]:
        """What makes an output behind the last layers, without and with these; nearest first, 48 nodes at most."""
        if output not in self._maker:
            return []
        tail: dict[str, None] = {}
        layers: dict[str, None] = {}
        waiting = [self._maker[output]]
        while waiting and len(tail) < _TAIL_NODES:
            name = waiting.pop(0)
            kind = self._nodes[name].op_type
            if kind in _LAYERS:
                layers[name] = None
            elif kind in _TAIL and name not in tail:
                tail[name] = None
                waiting += self.before(name)
        return [one for one in (list(tail), [*tail, *layers]) if one]


def _split(names: Sequence[str], count: int) -> list[list[str]]:
    size = math.ceil(len(names) / count)
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _percent(error: float) -> str:
    return f"{error:.2%}" if math.isfinite(error) else "infinity or NaN"
