"""Element by element: arithmetic, activations, comparisons, logic and casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.operators.constants import DTYPES
from vitesse.backends.torch_cuda.operators.operator import Made, Unsupported, operator
from vitesse.backends.torch_cuda.steps import E4M3, LARGEST_E4M3

_OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # both round halves to even
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": lambda x: F.softplus(x, threshold=88.0),  # torch's default switches to x already at 20
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": lambda a, b: torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc"),
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pow": lambda base, exponent: torch.pow(base, exponent).to(base.dtype),
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
_OF_ANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _of_one(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Made]:
    def compute(x: Tensor) -> Tensor:
        return function(x)

    return compute


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Made]:
    def compute(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return compute


def _of_any(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Made]:
    def compute(*tensors: Tensor) -> Tensor:
        return reduce(function, tensors)

    return compute


# torch's own functions have no signature that can be read, so that each gets one.
for _name, _one in _OF_ONE.items():
    operator(_name)(_of_one(_one))
for _name, _two in _OF_TWO.items():
    operator(_name)(_of_two(_two))
for _name, _any in _OF_ANY.items():
    operator(_name, since=8)(_of_any(_any))


@operator("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return min(max(x, low), high)."""
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of b, or with that of a under `fmod`."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether x is one of the infinities asked for."""
    return (torch.isneginf(x) & bool(detect_negative)) | (torch.isposinf(x) & bool(detect_positive))


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit, exact or through tanh."""
    return F.gelu(x, approximate=approximate)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Return clip(alpha · x + beta, 0, 1)."""
    return torch.clamp(x * alpha + beta, 0, 1)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x, below 0 alpha · (exp(x) − 1)."""
    return F.elu(x, alpha)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Return x, below 0 alpha · x."""
    return F.leaky_relu(x, alpha)


@operator("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return x · sigmoid(alpha · x)."""
    return x * torch.sigmoid(alpha * x)


@operator("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return a where the condition holds, b elsewhere."""
    return torch.where(condition, a, b)


@operator("Dropout", since=7)
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
    *,
    seed: int = 0,
    outputs: int,
) -> Made:
    """Return x, as at inference."""
    if training is not None:
        raise Unsupported("input training_mode", "a node that is only for inference")
    if outputs == 1:
        return x
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Convert to another type; what E4M3 cannot hold becomes ±448 with `saturate`, otherwise NaN."""
    found = DTYPES.get(ir.DataType(to))
    if found is None:
        raise Unsupported(f"to={ir.DataType(to).name}", ", ".join(one.name for one in DTYPES))
    return _converted(x, found, bool(saturate))


@operator("CastLike", since=15)
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:
    """Convert to the type of `like`."""
    return _converted(x, like.dtype, bool(saturate))


def _converted(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    if dtype is not E4M3 or x.dtype is E4M3:
        return x.to(dtype)
    wide = x.float()
    if saturate:
        return wide.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(E4M3)
    # Halfway between 448 and the 480 that would come next, where rounding to nearest would leave the range.
    return torch.where(wide.abs() > 464.0, torch.nan, wide).to(E4M3)
