"""Which nodes of a graph must stay in FP32 when the others go to half precision, and why, in words.

Reasons come from what flowed on real images (`activations.observe`) and from the constants. They are suspicions:
which of them the outputs really feel is measured afterwards (`half_trials`). Some cannot be measured so, because the
emulation adds in FP32 and the images may not hold the bad case; `lasting` names those, and they stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vitesse.precision.activations import MASK, Activations, Statistics, scores_of
from vitesse.precision.half_casts import HALF_TYPES, largest_number, rounded_constant
from vitesse.recipe import HalfOptions

# They count or place in numbers that end at 2048 (FP16) or 256 (BF16), and runtimes lack them in half precision.
_COUNTING = frozenset({"CumSum", "NonMaxSuppression", "Range"})
_NORMALISING = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"),
        *("Softmax", "LogSoftmax", "Attention", "LpNormalization", "MeanVarianceNormalization"),
    }
)
# What a mask goes through on its way from a constant to the softmax.
_MASK_CARRIERS = frozenset(
    {
        *("Add", "Sub", "Mul", "Where", "Min", "Max", "Cast", "Identity", "ConstantOfShape"),
        *("Expand", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"),
        *("Concat", "Tile", "Split", "Pad"),
    }
)
# Here a constant beyond the range is a bound, and is one as well at the range's end.
_BOUNDING = frozenset({"Clip", "Min", "Max"})
# What makes a small number large again, by which a divisor that was rounded to zero is felt.
_DIVIDING = frozenset({"Div", "Reciprocal", "Log"})
_MAGNIFYING = _DIVIDING | {"Sqrt", "Pow"}
_PASSING = frozenset({"Max", "Clip", "Add", "Identity", "Reshape", "Unsqueeze", "Expand", "Cast"})
# A constant that loses more than this share of its norm is not the same constant.
_CONSTANT_ERROR = 0.01
SMALLEST_NORMAL_EXPONENT = -14


@dataclass(frozen=True)
class Reason:
    """Why a node should stay in FP32; `lasting`: no trial on a few images can say that it need not."""

    text: str
    lasting: bool = False


def unsafe_nodes(
    model: onnx.ModelProto,
    activations: Activations,
    options: HalfOptions,
    *,
    number: str = "fp16",
    normalise_in_fp32: bool = False,
) -> Mapping[str, str]:
    """Return the name of every node that half precision may break, and why in plain words.

    Args:
        model: a float32 graph whose constants are initialisers and whose nodes have names.
        activations: of `observe` on this graph.
        options: `headroom` decides how near to 65504 is too near.
        number: `fp16` or `bf16`; BF16 has the range of float32, so only what it cannot count is unsafe.
        normalise_in_fp32: keep LayerNormalization, softmax and Attention in FP32, for targets that would add in half.
    """
    found = reasons(model, activations, options, number=number, normalise_in_fp32=normalise_in_fp32)
    return {name: reason.text for name, reason in found.items()}


def reasons(
    model: onnx.ModelProto,
    activations: Activations,
    options: HalfOptions,
    *,
    number: str = "fp16",
    normalise_in_fp32: bool = False,
) -> Mapping[str, Reason]:
    """As `unsafe_nodes`, with what kind of reason it is; the first that applies to a node counts."""
    judge = _Judge(model, activations, options, number)
    found: dict[str, Reason] = {}
    for node in model.graph.node:
        kinds = [judge.operator(node, normalise_in_fp32)]
        if number == "fp16":
            kinds += [judge.sums(node), judge.tensors(node), judge.constants(node)]
        reason = next((one for one in kinds if one is not None), None)
        if reason is not None:
            found[node.name] = reason
    if number == "fp16":
        for name, reason in list(judge.behind_lost_divisors(found)):
            if name not in found or not found[name].lasting:
                found[name] = reason
    return found


class _Judge:
    """Looks at one node after the other."""

    def __init__(
        self, model: onnx.ModelProto, activations: Activations, options: HalfOptions, number: str
    ) -> None:
        self._half, self._nodes = HALF_TYPES[number], list(model.graph.node)
        self._seen, self._options = activations, options
        self._limit = largest_number(self._half)
        self._safe = self._limit / options.headroom
        self._constants = {
            one.name: one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT
        }
        self._masked = self._reached_by_masks()
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def operator(self, node: onnx.NodeProto, normalise_in_fp32: bool) -> Reason | None:
        """What the operator alone says."""
        if node.op_type in _COUNTING:
            return Reason(f"{node.op_type} counts or places, which runtimes do in FP32 only", lasting=True)
        if normalise_in_fp32 and node.op_type in _NORMALISING:
            return Reason(f"the target must add in FP32 inside {node.op_type}", lasting=True)
        return None

    def tensors(self, node: onnx.NodeProto) -> Reason | None:
        """Values beyond the safe range that it makes or reads, or that are all below the normal numbers."""
        scores = [scores_of(node)] if node.op_type == "Attention" else []
        for role, names in (("output", node.output), ("largest score in", scores), ("input", node.input)):
            for name in names:
                seen = self._seen.get(name)
                if seen is None:
                    continue
                reach = self._reach(name, seen)
                if reach > self._safe:
                    return Reason(self._beyond(f"the {role} `{name}`", reach))
        for name in node.output:
            seen = self._seen.get(name)
            if seen is not None and 0 < seen.largest < 2.0**SMALLEST_NORMAL_EXPONENT:
                return Reason(
                    f"the output `{name}` stays below {seen.largest:.1e}, where FP16 loses digits "
                    f"({seen.share_below(-24):.0%} of its values become zero)"
                )
        return None

    def sums(self, node: onnx.NodeProto) -> Reason | None:
        """Sums that overflow where a runtime adds in half precision."""
        seen = self._seen.get(node.output[0]) if node.output else None
        if seen is None or seen.largest_sum is None or seen.largest_sum <= self._safe:
            return None
        return Reason(self._beyond("the sum inside", seen.largest_sum), lasting=True)

    def constants(self, node: onnx.NodeProto) -> Reason | None:
        """Constants that half precision cannot hold."""
        for place, name in enumerate(node.input):
            if name not in self._constants:
                continue
            array = numpy_helper.to_array(self._constants[name])
            bound = node.op_type in _BOUNDING and (node.op_type != "Clip" or place > 0)
            largest = _largest_that_counts(array)
            if largest > self._limit:
                if bound:
                    continue
                return Reason(self._beyond(f"the constant `{name}`", largest))
            lost = _lost(array, rounded_constant(array, self._half))
            if lost > _CONSTANT_ERROR:
                what = "becomes zero" if self._becomes_zero(name) else f"loses {lost:.0%}"
                return Reason(f"the constant `{name}` of about {largest:.1e} {what} in FP16")
        return None

    def behind_lost_divisors(self, found: Mapping[str, Reason]) -> Iterator[tuple[str, Reason]]:
        """From a small addend or bound that FP16 rounds to zero to where it keeps a division from failing.

        The images may never have needed it: a variance of zero comes with the first blank picture.
        """
        for node in self._nodes:
            lost = [name for name in node.input if name in self._constants and self._becomes_zero(name)]
            if node.op_type not in ("Add", "Max", "Clip") or not lost or node.name not in found:
                continue
            chain = self._to_division(node)
            if chain:
                text = f"the constant `{lost[0]}` keeps a division from zero, and becomes zero in FP16"
                for one in chain:
                    yield one.name, Reason(text, lasting=True)

    def _to_division(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes from `node` up to the divisions it guards; none where it guards none."""
        chain, waiting, guards = {node.name: node}, [node], False
        while waiting:
            for reader in (one for name in waiting.pop().output for one in self._readers.get(name, ())):
                if reader.name in chain or reader.op_type not in _MAGNIFYING | _PASSING:
                    continue
                chain[reader.name] = reader
                if reader.op_type in _DIVIDING:
                    guards = True
                else:
                    waiting.append(reader)
        return list(chain.values()) if guards else []

    def _becomes_zero(self, name: str) -> bool:
        array = numpy_helper.to_array(self._constants[name])
        return bool(array.any()) and not rounded_constant(array, self._half).any()

    def _beyond(self, what: str, value: float) -> str:
        limit = f"FP16 ends at {self._limit:.0f}"
        near = f", and {self._options.headroom:g} times is kept free" if value <= self._limit else ""
        return f"{what} reaches {value:.4g}; {limit}{near}"

    def _reach(self, name: str, seen: Statistics) -> float:
        """The largest magnitude that counts: of a tensor that carries a mask, only what is positive."""
        return max(seen.high, 0.0) if name in self._masked else seen.largest

    def _reached_by_masks(self) -> set[str]:
        """Tensors into which a mask of very large negative constants is added, up to the softmax."""
        masked = {
            name
            for name, one in self._constants.items()
            if np.any(numpy_helper.to_array(one) <= min(MASK, -self._limit))
        }
        for node in self._nodes:
            if node.op_type in _MASK_CARRIERS and masked.intersection(node.input):
                masked.update(node.output)
        return masked


def _largest_that_counts(array: NDArray[np.float32]) -> float:
    """Largest magnitude but for masks, which are clamped to the lowest number of the half type, and infinities."""
    counted = array[np.isfinite(array) & (array > MASK)]
    return float(np.max(np.abs(counted), initial=0.0))


def _lost(array: NDArray[np.float32], rounded: NDArray[np.generic]) -> float:
    """Share of the Euclidean norm that rounding takes away, masks left out."""
    counted = np.isfinite(array) & (array > MASK)
    exact = array[counted].astype(np.float64)
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(rounded[counted].astype(np.float64) - exact)) / norm if norm else 0.0
