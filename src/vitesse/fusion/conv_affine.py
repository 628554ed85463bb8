"""A per-channel scale and shift behind a convolution → into its weights and bias.

BatchNormalization in inference is one (scale γ/√(σ²+ε), shift β − μ·scale: Ioffe and Szegedy 2015,
arXiv:1502.03167), the frozen BatchNorm of DETR another, exported as Mul and Add by constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, constant


@dataclass(frozen=True)
class _Plan:
    """The convolution and what follows it: y = conv · scale + shift, both float64 of shape (channels,)."""

    conv: ir.Node
    weight: NDArray[Any]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def _conv(op: Any) -> Any:
    return op.Conv(_allow_other_inputs=True, _outputs=["conv"])


def _convolution(conv: ir.Value) -> tuple[ir.Node, NDArray[Any], NDArray[np.float64]]:
    """Return (node, weight, bias as float64 of shape (channels,)); raises LeftAlone."""
    node = conv.producer()
    assert node is not None
    weight = constant(node.inputs[1])
    if weight is None:
        raise LeftAlone("the weight of the convolution is not a constant")
    if weight.dtype not in (np.float32, np.float16):
        raise LeftAlone(f"the weight is {weight.dtype}, not float32 or float16")
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return node, weight, np.zeros(weight.shape[0])
    bias = constant(node.inputs[2])
    if bias is None:
        raise LeftAlone("the bias of the convolution is not a constant")
    return node, weight, bias.astype(np.float64)


def _per_channel(value: ir.Value, weight: NDArray[Any], label: str) -> NDArray[np.float64]:
    """The factor or term of each output channel; raises LeftAlone."""
    array = constant(value)
    if array is None:
        raise LeftAlone(f"the {label} behind the convolution is not a constant")
    channels = weight.shape[0]
    aligned = (1,) * (weight.ndim - array.ndim) + array.shape
    allowed = (1, channels, *(1,) * (weight.ndim - 2))
    if len(aligned) != weight.ndim or any(a not in (1, b) for a, b in zip(aligned, allowed, strict=True)):
        raise LeftAlone(f"the {label} behind the convolution has shape {list(array.shape)}: not per channel")
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,)).copy()


class _ConvRule(FusionRule):
    def build(self, op: Any, plan: _Plan) -> Any:
        channels_first = plan.scale.reshape(-1, *(1,) * (plan.weight.ndim - 1))
        weight = (plan.weight.astype(np.float64) * channels_first).astype(plan.weight.dtype)
        name = plan.conv.inputs[1].name if plan.conv.inputs[1] is not None else "weight"
        return op.Conv(
            plan.conv.inputs[0],
            op.Constant(value=ir.tensor(weight), _outputs=[f"{name}_scaled"]),
            op.Constant(value=ir.tensor(plan.shift.astype(weight.dtype)), _outputs=[f"{name}_shift"]),
            **dict(plan.conv.attributes),
        )


class _BatchNorm(_ConvRule):
    def pattern(self, op: Any) -> Any:
        return op.BatchNormalization(_conv(op), _allow_other_inputs=True, _outputs=["normalised"])

    def plan(self, *, conv: ir.Value, normalised: ir.Value) -> _Plan:
        node, weight, bias = _convolution(conv)
        norm = normalised.producer()
        assert norm is not None
        if norm.attributes.get_int("training_mode", 0):
            raise LeftAlone("the BatchNormalization is in training mode")
        if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
            raise LeftAlone("the running statistics of the BatchNormalization are read")
        arrays = [constant(value) for value in norm.inputs[1:5]]
        if any(array is None for array in arrays):
            raise LeftAlone("a parameter of the BatchNormalization is not a constant")
        gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
        scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        return _Plan(node, weight, scale, (bias - mean) * scale + beta)


class _Scale(_ConvRule):
    def pattern(self, op: Any, factor: Any) -> Any:
        return op.Mul(_conv(op), factor)

    def plan(self, *, conv: ir.Value, factor: ir.Value) -> _Plan:
        node, weight, bias = _convolution(conv)
        scale = _per_channel(factor, weight, "factor")
        return _Plan(node, weight, scale, bias * scale)


class _Shift(_ConvRule):
    def pattern(self, op: Any, term: Any) -> Any:
        return op.Add(_conv(op), term)

    def plan(self, *, conv: ir.Value, term: ir.Value) -> _Plan:
        node, weight, bias = _convolution(conv)
        shift = _per_channel(term, weight, "term")
        return _Plan(node, weight, np.ones(weight.shape[0]), bias + shift)


BATCH_NORM = Fusion("batch_norm", (_BatchNorm.rule(),))
CONV_AFFINE = Fusion("conv_affine", (_Scale.rule(), _Shift.rule(), _Scale.rule()), commute=True)
