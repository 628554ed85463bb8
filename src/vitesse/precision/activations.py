"""What flows through a graph on real images: the range, the small end and the sums of every float tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from vitesse.backends.protocol import Tensors
from vitesse.errors import DataError
from vitesse.fusion.contract import load
from vitesse.fusion.shapes import complete_shapes
from vitesse.verify.taps import Taps

# What lies below is a mask that keeps softmax from looking there, and may be clamped without harm.
MASK = -1e8
# Octaves of magnitude that are counted: from 2⁻¹⁴⁹, the smallest number of float32, to 2¹²⁷.
LOWEST_OCTAVE, HIGHEST_OCTAVE = -149, 127
# Tensors tapped together on the first image, when their sizes are not known yet, and bytes of them afterwards.
_FIRST_GROUP = 48
_GROUP_BYTES = 512 * 2**20
_OCTAVES = HIGHEST_OCTAVE - LOWEST_OCTAVE + 1
_SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSum"})
_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one float tensor over all images.

    Args:
        low, high: smallest and largest finite value; masks (below -1e8) are not counted. Both 0 for none.
        largest: largest magnitude of them.
        smallest: smallest magnitude but zero; 0 where every value is zero.
        nonfinite: how many values are NaN or infinite.
        octaves: (277,) int64, how many values have a magnitude in [2ᵏ, 2ᵏ⁺¹), k from -149.
        largest_sum: of the output of a reduction: largest sum of magnitudes (for ReduceL2 of squares) over the axes
            that it reduces, before any division or root; else None.
    """

    low: float
    high: float
    largest: float
    smallest: float
    nonfinite: int
    octaves: NDArray[np.int64]
    largest_sum: float | None = None

    def share_below(self, exponent: int) -> float:
        """Share, 0 to 1, of the values other than zero whose magnitude is below 2 to the power of `exponent`."""
        total = int(self.octaves.sum())
        below = int(self.octaves[: max(exponent - LOWEST_OCTAVE, 0)].sum())
        return below / total if total else 0.0


Activations = Mapping[str, Statistics]


def scores_of(node: onnx.NodeProto) -> str:
    """The name under which the scores of a fused Attention, scale · q kᵀ before any mask, are kept."""
    return node.output[3] if len(node.output) > 3 and node.output[3] else f"{node.output[0]}/scores"


def observe(
    model: onnx.ModelProto, feeds: Iterable[Tensors], *, threads: int = 0, group_bytes: int = _GROUP_BYTES
) -> Activations:
    """Run images through a float32 graph and return the statistics of every float32 tensor by its name.

    Tensors of the main graph are seen: inputs, what every node makes, and the scores inside a fused Attention.
    The first image finds out how large the tensors are, in groups of 48; afterwards as many are held at once as take
    `group_bytes`, so that memory does not grow with the number of images.

    Args:
        feeds: one image each, read once as a stream.

    Raises:
        DataError: no image.
        BackendError: ONNX Runtime cannot run the graph.
    """
    opened = _with_scores(model)
    names = _float_tensors(opened)
    seen = _Seen(opened)
    taps: list[Taps] = []
    for index, feed in enumerate(feeds):
        if index == 0:
            for start in range(0, len(names), _FIRST_GROUP):
                seen.add(Taps(opened, names[start : start + _FIRST_GROUP], threads=threads), feed)
            continue
        if index == 1:
            taps = [Taps(opened, group, threads=threads) for group in seen.groups(group_bytes)]
        for tap in taps:
            seen.add(tap, feed)
    if not seen.collected:
        raise DataError(
            "no image was read to look at the model's activations",
            expected="at least one image",
            fix="name a folder with images: --calib-data FOLDER",
        )
    return {name: one.statistics() for name, one in seen.collected.items()}


def _with_scores(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let every fused Attention put out its scores."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for node in opened.graph.node:
        if node.op_type == "Attention" and node.domain == "":
            scores = scores_of(node)
            node.output.extend([""] * (4 - len(node.output)))
            node.output[3] = scores
    return opened


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    graph = load(model)
    complete_shapes(graph)
    values = [*graph.graph.inputs, *(value for node in graph.graph for value in node.outputs)]
    return [value.name for value in values if value.name and value.dtype == ir.DataType.FLOAT]


@dataclass
class _Collected:
    """What is known of one tensor so far."""

    bytes: int = 0
    low: float = 0.0
    high: float = 0.0
    smallest: float = 0.0
    nonfinite: int = 0
    largest_sum: float | None = None
    octaves: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_OCTAVES, np.int64))

    def add(self, array: NDArray[np.float32]) -> None:
        self.bytes = max(self.bytes, array.nbytes)
        finite = array[np.isfinite(array)]
        self.nonfinite += array.size - finite.size
        values = finite[finite > MASK]
        if not values.size:
            return
        first = not self.octaves.any() and self.low == self.high == 0
        low, high = float(values.min()), float(values.max())
        self.low, self.high = (low, high) if first else (min(self.low, low), max(self.high, high))
        magnitudes = np.abs(values[values != 0])
        if magnitudes.size:
            smallest = float(magnitudes.min())
            self.smallest = min(self.smallest, smallest) if self.smallest else smallest
            # frexp gives m · 2ᵉ with 0.5 <= m < 1.
            octave = np.frexp(magnitudes)[1] - 1 - LOWEST_OCTAVE
            self.octaves += np.bincount(octave, minlength=_OCTAVES)

    def statistics(self) -> Statistics:
        largest = max(-self.low, self.high)
        return Statistics(
            self.low, self.high, largest, self.smallest, self.nonfinite, self.octaves, self.largest_sum
        )


class _Seen:
    """Collects what taps yield."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.collected: dict[str, _Collected] = {}
        self._reductions: dict[str, list[_Reduction]] = {}
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            reduction = _reduction(node, constants)
            if reduction is not None:
                self._reductions.setdefault(node.input[0], []).append(reduction)

    def add(self, taps: Taps, feed: Tensors) -> None:
        """Run one image and look at every tensor of the taps."""
        for name, value in taps.run(feed):
            array = value.astype(np.float32, copy=False)
            self.collected.setdefault(name, _Collected()).add(array)
            for reduction in self._reductions.get(name, ()):
                one = self.collected.setdefault(reduction.output, _Collected())
                one.largest_sum = max(one.largest_sum or 0.0, reduction.largest_sum(array))

    def groups(self, most_bytes: int) -> list[list[str]]:
        """Split the tensors, in the graph's order, into groups that take at most that many bytes (or one tensor)."""
        groups: list[list[str]] = [[]]
        taken = 0
        for name, one in self.collected.items():
            if groups[-1] and taken + one.bytes > most_bytes:
                groups.append([])
                taken = 0
            groups[-1].append(name)
            taken += one.bytes
        return groups


@dataclass(frozen=True)
class _Reduction:
    """A sum over `axes` (None = all) of magnitudes, or of squares."""

    output: str
    axes: tuple[int, ...] | None
    squares: bool

    def largest_sum(self, array: NDArray[np.float32]) -> float:
        """The largest sum, added in float64; masks and infinities do not count."""
        magnitudes = np.where(np.isfinite(array) & (array > MASK), np.abs(array), 0).astype(np.float64)
        sums = np.square(magnitudes) if self.squares else magnitudes
        return float(np.max(sums.sum(axis=self.axes), initial=0.0))


def _reduction(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> _Reduction | None:
    """The sum inside a node; None where there is none, or its axes are not known beforehand."""
    if node.domain or node.op_type not in _SUMS | _SQUARES:
        return None
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    axes: Sequence[int] | None = attributes.get("axes")
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return None
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    elif axes is None and attributes.get("noop_with_empty_axes"):
        return None
    return _Reduction(node.output[0], tuple(axes) if axes else None, node.op_type in _SQUARES)
