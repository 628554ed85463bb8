"""INT8 and FP8: ranges that do not fit the values, and Q/DQ where rounding hurts; tried by taking pairs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from vitesse.backends.protocol import Array
from vitesse.diagnose.case import Case
from vitesse.diagnose.graph import NORMALISATIONS, WEIGHTED, Graph, copy_of, with_constant
from vitesse.diagnose.rules import Cause, Confidence, Suspicion, tried
from vitesse.diagnose.symptom import Number
from vitesse.verify.diverge import difference_of
from vitesse.verify.taps import Taps

# A range loses that share of the energy of its values, or uses that share of its steps: then it does not fit.
_CLIPPED, _UNUSED = 0.05, 1 / 16
_MOST, _FEWEST = 0.5, 3
_FP8_LARGEST = 448.0
_CALIBRATE = "vitesse quantize {against} --data {data} --method mse --calib-images 500 -o out.onnx"


@dataclass(frozen=True)
class Pair:
    """Q and DQ round an activation; `clipped` and `used` say how its grid fits the values, `grid` spans (low, high)."""

    source: str
    result: str
    grid: tuple[float, float]
    peak: float
    clipped: float
    used: float

    def words(self) -> str:
        """Say both ranges."""
        low, high = self.grid
        return f"`{self.source}` is rounded in {low:.4g} to {high:.4g}, its values reach {self.peak:.4g}"


def _activation_pairs(graph: Graph) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    found = []
    for quantise in graph.of_type("QuantizeLinear"):
        if graph.constant(quantise.input[0]) is None:
            found += [
                (quantise, node)
                for node in graph.readers(quantise.output[0])
                if node.op_type == "DequantizeLinear"
            ]
    return found


def _pairs(case: Case) -> Sequence[Pair]:
    if case.number is not Number.QUANTISED:
        return ()
    found: Sequence[Pair] = case.once("activation pairs", lambda: _measured(case))
    return found


def _measured(case: Case) -> Sequence[Pair]:
    return [pair for one in _values(case) if (pair := _fit(*one)) is not None]


def _values(case: Case) -> Iterable[tuple[Graph, onnx.NodeProto, onnx.NodeProto, Array]]:
    """The true values of everything rounded: the original's where it has the tensor, for here they may be wrong."""
    graph, pairs = case.graph, _activation_pairs(case.graph)
    theirs = case.original
    known = set() if theirs is None or case.reference is None else set(case.reference.flow.producer)
    known |= {entry.name for entry in theirs.model.graph.input} if theirs is not None else set()
    names = list(dict.fromkeys(quantise.input[0] for quantise, _ in pairs))
    found: dict[str, Array] = {}
    there, here = [name for name in names if name in known], [name for name in names if name not in known]
    given = case.calls[case.worst]
    if theirs is not None and there:
        found |= dict(Taps(theirs.runnable, there, optimised=False).run(given[0]))
    if here:
        found |= dict(Taps(case.candidate.runnable, here, optimised=False).run(given[1]))
    for quantise, dequantise in pairs:
        yield graph, quantise, dequantise, found[quantise.input[0]]


def _fit(graph: Graph, quantise: onnx.NodeProto, dequantise: onnx.NodeProto, values: Array) -> Pair | None:
    scale = graph.constant(quantise.input[1])
    zero = graph.constant(quantise.input[2]) if len(quantise.input) > 2 and quantise.input[2] else np.uint8(0)
    x = np.asarray(values, np.float64)
    if scale is None or zero is None or scale.size != 1 or not np.isfinite(x).all() or not x.any():
        return None
    step, offset = float(scale.item()), float(np.asarray(zero, np.float64).item())
    kind: np.dtype[Any] = np.asarray(zero).dtype
    lowest, highest = (
        (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" else (-_FP8_LARGEST, _FP8_LARGEST)
    )
    low, high = (lowest - offset) * step, (highest - offset) * step
    clipped = x - np.clip(x, low - step, high + step)
    span = float(np.clip(x.max(), low, high) - np.clip(x.min(), low, high))
    lost = float((clipped**2).sum() / (x**2).sum())
    return Pair(
        quantise.input[0],
        dequantise.output[0],
        (low, high),
        float(np.abs(x).max()),
        lost,
        span / (high - low),
    )


def _without(
    case: Case, chosen: Callable[[onnx.NodeProto, onnx.NodeProto], bool]
) -> tuple[list[str], onnx.ModelProto]:
    """Return (names of the tensors whose pairs are taken out, a copy of the candidate without those)."""
    changed = copy_of(case.candidate.runnable)
    past = {dq.output[0]: q.input[0] for q, dq in _activation_pairs(case.graph) if chosen(q, dq)}
    for node in changed.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = past.get(name, name)
    return sorted(set(past.values())), changed


def _without_pairs(case: Case, pairs: Sequence[Pair]) -> onnx.ModelProto:
    taken = {pair.source for pair in pairs}
    return _without(case, lambda quantise, _: quantise.input[0] in taken)[1]


def _other_images(case: Case) -> Suspicion | None:
    pairs = _pairs(case)
    for bad, words in (
        ([pair for pair in pairs if pair.clipped > _CLIPPED], "smaller than their values"),
        ([pair for pair in pairs if pair.used < _UNUSED], "far larger than their values"),
    ):
        if len(bad) >= max(_FEWEST, _MOST * len(pairs)):
            text = (
                f"{len(bad)} of {len(pairs)} ranges are {words}, as after calibrating on other or unnormalised "
                f"images: {bad[0].words()}"
            )
            return tried(case.cures(_without_pairs(case, bad)), text)
    return None


def _saturating(case: Case) -> Suspicion | None:
    bad = [pair for pair in _pairs(case) if pair.clipped > _CLIPPED]
    return _one(case, bad, max(bad, key=lambda pair: pair.clipped), "cut off") if bad else None


def _too_wide(case: Case) -> Suspicion | None:
    bad = [pair for pair in _pairs(case) if pair.used < _UNUSED]
    if not bad:
        return None
    worst = min(bad, key=lambda pair: pair.used)
    return _one(case, bad, worst, f"in {max(1, round(255 * worst.used))} of 255 steps")


def _one(case: Case, bad: Sequence[Pair], worst: Pair, words: str) -> Suspicion:
    cured = case.cures(_without_pairs(case, bad))
    return Suspicion(
        Confidence.PROVEN if cured else Confidence.LIKELY,
        f"{worst.words()}: {words}" + ("; without that rounding, the outputs agree" if cured else ""),
        worst.source,
    )


def _group(
    case: Case, chosen: Callable[[onnx.NodeProto, onnx.NodeProto], bool], words: str
) -> Suspicion | None:
    if case.number is not Number.QUANTISED:
        return None
    names, changed = _without(case, chosen)
    if not names:
        return None
    if case.cures(changed):
        text = f"{len(names)} {words} are rounded, the first is `{names[0]}`; without that, the outputs agree"
        return Suspicion(Confidence.PROVEN, text, names[0])
    return Suspicion(
        Confidence.POSSIBLE, f"{len(names)} {words} are rounded, the first is `{names[0]}`", names[0]
    )


def _residual(case: Case) -> Suspicion | None:
    graph = case.graph

    def sums(quantise: onnx.NodeProto, dequantise: onnx.NodeProto) -> bool:
        made = graph.maker(quantise.input[0])
        reads = any(_is_sum(graph, node) for node in graph.readers(dequantise.output[0]))
        return reads or (made is not None and _is_sum(graph, made))

    return _group(case, sums, "residual sums")


def _is_sum(graph: Graph, node: onnx.NodeProto) -> bool:
    return graph.is_residual(node)


def _normalisation(case: Case) -> Suspicion | None:
    graph, kinds = case.graph, NORMALISATIONS | {"Softmax", "Gelu"}

    def normalised(quantise: onnx.NodeProto, dequantise: onnx.NodeProto) -> bool:
        return any(node.op_type in kinds for node in graph.readers(dequantise.output[0]))

    return _group(case, normalised, "inputs of LayerNorm, softmax or GELU")


def _head(case: Case) -> Suspicion | None:
    """Layers behind which no normalisation follows: their errors reach boxes and scores undamped."""
    graph = case.graph
    inner = {
        name
        for node in graph.of_type(*NORMALISATIONS, "Conv")
        for made in graph.upstream(node.output[0])
        for name in made.output
    }

    def of_head(quantise: onnx.NodeProto, dequantise: onnx.NodeProto) -> bool:
        readers = graph.readers(dequantise.output[0])
        return any(node.op_type in WEIGHTED and node.output[0] not in inner for node in readers)

    return _group(case, of_head, "inputs of output heads")


def _weights(case: Case) -> Suspicion | None:
    """One scale for a whole weight, whose channels differ in size."""
    if case.number is not Number.QUANTISED:
        return None
    changed, worst = case.candidate.runnable, (0.0, "", 0.0)
    for node in case.graph.of_type(*WEIGHTED):
        dequantise = case.graph.maker(node.input[1])
        other = case.counterpart(node)
        if (
            dequantise is None
            or dequantise.op_type != "DequantizeLinear"
            or other is None
            or case.reference is None
        ):
            continue
        scale, weight = case.graph.constant(dequantise.input[1]), case.reference.constant(other.input[1])
        rounded = case.graph.constant(node.input[1])
        if (
            scale is None
            or scale.size != 1
            or weight is None
            or rounded is None
            or weight.shape != rounded.shape
        ):
            continue
        changed = with_constant(changed, node, 1, np.asarray(weight, np.float32))
        axis = 0 if node.op_type == "Conv" else weight.ndim - 1
        peaks = np.abs(weight).max(axis=tuple(at for at in range(weight.ndim) if at != axis))
        ratio = float(peaks.max() / max(np.median(peaks), 1e-12))
        off = difference_of(weight, rounded).rms
        worst = max(worst, (off, node.output[0], ratio))
    if not worst[1]:
        return None
    text = (
        f"weights have one scale for all channels; in the layer of `{worst[1]}` the largest channel is "
        f"{worst[2]:.3g} times the median one, and rounding moves the weight by {100 * worst[0]:.2g} %"
    )
    if case.cures(changed):
        return Suspicion(
            Confidence.PROVEN, f"{text}; with weights that are not rounded, the outputs agree", worst[1]
        )
    return Suspicion(Confidence.POSSIBLE, text, worst[1])


def _zero_point(case: Case) -> Suspicion | None:
    for node in case.graph.of_type("QuantizeLinear"):
        zero = case.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.uint8(0)
        if zero is not None and (np.asarray(zero).dtype == np.uint8 or np.asarray(zero, np.float64).any()):
            text = f"`{node.input[0]}` is rounded to uint8 or with a zero point other than 0, which TensorRT refuses"
            return Suspicion(Confidence.POSSIBLE, text, node.input[0])
    return None


FAULTS = (
    Cause(
        "calibrated_on_other_images",
        "INT8 ranges were calibrated on other images",
        "half of all activation ranges cut off their values, or use less than 1/16 of their steps",
        _CALIBRATE + "   (with images prepared as the spec says)",
        _other_images,
    ),
    Cause(
        "saturating_range",
        "an INT8 range is too small and cuts values off",
        "more than 5 % of the energy of a tensor lies outside its range; tried without that Q/DQ pair",
        _CALIBRATE,
        _saturating,
    ),
    Cause(
        "too_wide_range",
        "an INT8 range is too wide: all values fall into a few steps",
        "a tensor uses less than 1/16 of its range; tried without that Q/DQ pair",
        _CALIBRATE.replace("mse", "percentile"),
        _too_wide,
    ),
    Cause(
        "weights_per_tensor",
        "weights are rounded with one scale for all channels",
        "a weight's DequantizeLinear has a single scale; tried with the original's weights",
        _CALIBRATE + "   (weights per channel)",
        _weights,
    ),
    Cause(
        "quantised_residual",
        "residual sums are rounded",
        "Q/DQ before or behind an Add of two activations; tried without these pairs",
        _CALIBRATE + "   (leaves residual sums in float)",
        _residual,
    ),
    Cause(
        "quantised_normalisation",
        "inputs of LayerNorm, softmax or GELU are rounded",
        "Q/DQ before such an operator; tried without these pairs",
        _CALIBRATE + "   (leaves them in float)",
        _normalisation,
    ),
    Cause(
        "quantised_head",
        "output heads are rounded",
        "Q/DQ before layers behind which no normalisation follows; tried without these pairs",
        _CALIBRATE + "   (leaves heads in float; --keep LIST keeps more)",
        _head,
    ),
)
HAZARDS = (
    Cause(
        "zero_point",
        "activations are uint8 or have a zero point",
        "a QuantizeLinear with a uint8 or a zero point other than 0",
        "vitesse quantize {against} --data {data} --activations int8 -o out.onnx",
        _zero_point,
        hazard=True,
    ),
)
