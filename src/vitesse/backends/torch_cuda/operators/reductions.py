"""Over axes: sums, means, extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.operators.operator import Made, operator
from vitesse.backends.torch_cuda.operators.shapes import integers

_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)  # torch would widen small integers


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x.float().square(), axes, keep).sqrt().to(x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x.square(), axes, keep),
    "ReduceLogSumExp": torch.logsumexp,
}


def _entered(reduce: _Reduction) -> Callable[..., Made]:
    def compute(
        x: Tensor,
        over: Tensor | None = None,
        *,
        axes: tuple[int, ...] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        """Reduce over the axes of the input `over` or of the attribute, else over all of them."""
        wanted = tuple(integers(over) or axes or ())
        if not wanted and noop_with_empty_axes:  # what a norm does to each element remains
            return reduce(x.unsqueeze(-1), (x.ndim,), False)
        return reduce(x, wanted or tuple(range(x.ndim)), bool(keepdims))

    return compute


for _name, _reduction in _REDUCTIONS.items():
    operator(_name, host={1})(_entered(_reduction))


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Return the index of the first (last) largest element along an axis."""
    return _extreme(x, axis, keepdims, select_last_index, largest=True)


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Return the index of the first (last) smallest element along an axis."""
    return _extreme(x, axis, keepdims, select_last_index, largest=False)


@operator("CumSum", host={1}, since=11)
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Return running sums along an axis, without the element itself or from the end on request."""
    at = int(axis.item())
    turned = x.flip(at) if reverse else x
    total = torch.cumsum(turned, at, dtype=x.dtype)
    if exclusive:
        total = total.roll(1, at)
        total.select(at, 0).zero_()
    return total.flip(at) if reverse else total


def _extreme(x: Tensor, axis: int, keepdims: int, last: int, *, largest: bool) -> Tensor:
    find = torch.argmax if largest else torch.argmin
    if not last:
        return find(x, axis, bool(keepdims))
    return x.shape[axis] - 1 - find(x.flip(axis), axis, bool(keepdims))
