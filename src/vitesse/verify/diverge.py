"""Where two graphs part: the first tensor, in the order of computing, that both name and that differs.

`pairs` says how both are run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from vitesse.backends.protocol import Array, Tensors
from vitesse.sources.onnx_file import load_onnx
from vitesse.verify.pairs import makers_of, paired
from vitesse.verify.parity import cosine_of


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same tensor: max |c − r| / max |r| at most and cosine at least.

    A tensor that differs by at most `max_abs` counts as the same too: where values cancel to zero, rounding is all
    that is left of them.
    """

    max_rel: float = 1e-3
    cosine: float = 0.9999
    max_abs: float = 1e-6


@dataclass(frozen=True)
class Difference:
    """How far a tensor lies from what it should be: `max_abs`, `max_rel` and `cosine` as in `parity`.

    rms: root mean square of the difference over that of the reference; inf where nothing can be compared.
    lost: how many values are NaN or infinite in the candidate only. problem: why numbers do not tell, or nothing.
    """

    max_abs: float
    max_rel: float
    cosine: float
    rms: float
    lost: int = 0
    problem: str = ""

    def within(self, allowed: Tolerance) -> bool:
        """Whether it counts as the same tensor."""
        near = self.max_rel <= allowed.max_rel and self.cosine >= allowed.cosine
        return not self.problem and (self.max_abs <= allowed.max_abs or near)


def difference_of(expected: Array, found: Array) -> Difference:
    """Compare two float tensors; equal infinities are equal, and where `expected` is NaN there is no right."""
    if expected.shape != found.shape:
        problem = f"has shape {found.shape}, in the original {expected.shape}"
        return Difference(math.inf, math.inf, 0.0, math.inf, problem=problem)
    r, c = np.asarray(expected, np.float64).ravel(), np.asarray(found, np.float64).ravel()
    # Masks hold -inf on purpose.
    lost = int(np.count_nonzero(~np.isfinite(c) & (c != r) & ~np.isnan(r)))
    usable = np.isfinite(r) & np.isfinite(c)
    r, c = r[usable], c[usable]
    max_abs = float(np.abs(c - r).max(initial=0.0))
    peak = float(np.abs(r).max(initial=0.0))
    problem = f"holds {lost} values that are NaN or infinite here only" if lost else ""
    hopeless = bool(problem) or (max_abs > 0 and not peak)
    return Difference(
        max_abs,
        math.inf if hopeless else max_abs / (peak or 1.0),
        cosine_of(r, c),
        math.inf if hopeless else float(np.linalg.norm(c - r) / (np.linalg.norm(r) or 1.0)),
        lost,
        problem,
    )


@dataclass(frozen=True)
class Divergence:
    """The first tensor that differs, and what makes it in the candidate.

    max_rel: largest difference over the reference's largest value; inf where a value is not finite or the shapes
    differ. Ranges are (smallest, largest), NaN ignored. `equal_before`: shared tensors before it that agreed.
    """

    tensor: str
    op_type: str
    node: str
    max_abs: float
    max_rel: float
    cosine: float
    reference_range: tuple[float, float]
    candidate_range: tuple[float, float]
    equal_before: int
    last_equal: str
    problem: str = ""

    def describe(self) -> str:
        """Say it in one sentence."""
        made = f"made by {self.op_type}" + (f" node `{self.node}`" if self.node else "")
        before = f"{self.equal_before} shared tensors before it agree"
        last = f", the last of them `{self.last_equal}`" if self.last_equal else ""
        if self.problem:
            return f"`{self.tensor}` ({made}) {self.problem}; {before}{last}"
        return (
            f"`{self.tensor}` ({made}) differs by up to {self.max_abs:.3g}, {100 * self.max_rel:.3g} % of its "
            f"largest value, cosine {self.cosine:.6f}; it spans {_span(self.reference_range)} in the original and "
            f"{_span(self.candidate_range)} here; {before}{last}"
        )


def first_diverging(
    original: onnx.ModelProto | Path,
    candidate: onnx.ModelProto | Path,
    feeds: Tensors,
    *,
    tolerance: Tolerance | None = None,
) -> Divergence | None:
    """Return the first shared float tensor that differs beyond the tolerance; None when none does.

    The order is the candidate's. Integer tensors and tensors inside subgraphs are not compared. Where a TopK of
    both graphs chose differently, its values are compared, and both go on with the original's choice: two values
    that tie up to rounding may swap places, and everything behind them would differ without being wrong.

    Raises:
        ModelError: a path does not hold a valid model.
        BackendError: ONNX Runtime cannot run one of the graphs.
    """
    allowed = tolerance or Tolerance()
    changed = _model(candidate)
    makers = makers_of(changed)
    agreed, last = 0, ""
    for name, expected, found in paired(_model(original), changed, feeds):
        if expected.dtype.kind != "f" or found.dtype.kind != "f":
            continue
        difference = _compare(name, expected, found, allowed, makers[name], agreed, last)
        if difference is not None:
            return difference
        agreed, last = agreed + 1, name
    return None


def _model(source: onnx.ModelProto | Path) -> onnx.ModelProto:
    return load_onnx(source) if isinstance(source, Path) else source


def _compare(
    name: str,
    expected: Array,
    found: Array,
    allowed: Tolerance,
    maker: onnx.NodeProto,
    agreed: int,
    last: str,
) -> Divergence | None:
    met = difference_of(expected, found)
    if met.within(allowed):
        return None
    return Divergence(
        name, maker.op_type, maker.name, met.max_abs, met.max_rel, met.cosine,
        span_of(expected), span_of(found), agreed, last, met.problem,
    )  # fmt: skip


def span_of(array: Array) -> tuple[float, float]:
    """Return (smallest, largest), NaN ignored; (NaN, NaN) where there is nothing else."""
    values: NDArray[np.float64] = np.asarray(array, np.float64)
    values = values[~np.isnan(values)]
    return (float(values.min()), float(values.max())) if values.size else (math.nan, math.nan)


def _span(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.4g} to {pair[1]:.4g}"
