"""Where two graphs part: the first tensor, in the order of computing, that both name and that differs.

Both graphs run in ONNX Runtime with every optimisation off, and their shared inner tensors are made outputs, a few
at a time: memory is bounded by one group of activations, however many tensors there are.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from vitesse.backends.protocol import Array, Tensors
from vitesse.errors import BackendError
from vitesse.sources.onnx_file import load_onnx
from vitesse.verify.parity import cosine_of

_GROUP_BYTES = 256 * 2**20
_FIRST_GROUP, _LARGEST_GROUP = 8, 128


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
    with tempfile.TemporaryDirectory(prefix="vitesse-diverge-") as folder:
        reference = _Probe(_model(original), Path(folder) / "original", "the original")
        changed = _Probe(_model(candidate), Path(folder) / "candidate", "the candidate")
        here = set(reference.makers)
        shared = [name for name in changed.makers if name in here]
        agreed, last = 0, ""
        for name, expected, found in _pairs(reference, changed, shared, feeds):
            if expected.dtype.kind != "f" or found.dtype.kind != "f":
                continue
            difference = _compare(name, expected, found, allowed, changed.makers[name], agreed, last)
            if difference is not None:
                return difference
            agreed, last = agreed + 1, name
    return None


class _Probe:
    """A graph on disk, weights apart, that is run again and again with other tensors as outputs."""

    def __init__(self, model: onnx.ModelProto, folder: Path, title: str) -> None:
        folder.mkdir()
        self.title = title
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self._path = folder / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(
            copy, str(self._path), save_as_external_data=True, location="weights", size_threshold=256
        )
        self._skeleton = onnx.load_model(str(self._path), load_external_data=False)
        self._declared = {entry.name: entry for entry in self._skeleton.graph.output}

    def pin(self, name: str, value: Array) -> None:
        """Give a tensor a fixed value from now on, whatever its node makes."""
        for node in self._skeleton.graph.node:
            if name in node.output:
                node.output[list(node.output).index(name)] = f"{name}/not used"
        self._skeleton.graph.initializer.append(onnx.numpy_helper.from_array(value, name))

    def run(self, names: Sequence[str], feeds: Tensors) -> list[object]:
        del self._skeleton.graph.output[:]
        self._skeleton.graph.output.extend(
            self._declared.get(name, onnx.helper.make_empty_tensor_value_info(name)) for name in names
        )
        self._path.write_bytes(self._skeleton.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
            wanted = {entry.name for entry in session.get_inputs()}
            outputs: list[object] = session.run(list(names), {k: v for k, v in feeds.items() if k in wanted})
        except Exception as error:  # ONNX Runtime raises a dozen classes without a public base
            raise BackendError(
                f"ONNX Runtime cannot run {self.title} to look for the difference: {str(error)[:300]}",
                expected="a graph that runs with optimisations off",
            ) from error
        return outputs


def _model(source: onnx.ModelProto | Path) -> onnx.ModelProto:
    return load_onnx(source) if isinstance(source, Path) else source


def _pairs(
    reference: _Probe, changed: _Probe, names: Sequence[str], feeds: Tensors
) -> Iterator[tuple[str, Array, Array]]:
    """Yield (name, reference's value, candidate's value) in order, in groups sized by what the last one held."""
    start, size = 0, _FIRST_GROUP
    while start < len(names):
        group = names[start : start + size]
        held = 0
        for name, r, c in zip(group, reference.run(group, feeds), changed.run(group, feeds), strict=True):
            start += 1
            if isinstance(r, np.ndarray) and isinstance(c, np.ndarray):  # not sequences or maps
                held += r.nbytes + c.nbytes
                yield name, r, c
                if _chose_differently(name, r, c, reference, changed):
                    reference.pin(name, r)
                    changed.pin(name, r)
                    break
        fitting = int(_GROUP_BYTES * len(group) / max(held, 1))
        size = max(1, min(_LARGEST_GROUP, 4 * size, fitting))


def _chose_differently(name: str, r: Array, c: Array, reference: _Probe, changed: _Probe) -> bool:
    made_by = {probe.makers[name].op_type for probe in (reference, changed)}
    return made_by == {"TopK"} and r.dtype.kind == "i" and r.shape == c.shape and not np.array_equal(r, c)


def _compare(
    name: str,
    expected: Array,
    found: Array,
    allowed: Tolerance,
    maker: onnx.NodeProto,
    agreed: int,
    last: str,
) -> Divergence | None:
    problem = ""
    if expected.shape != found.shape:
        problem = f"has shape {found.shape}, in the original {expected.shape}"
        max_abs, max_rel, cosine = math.inf, math.inf, 0.0
    else:
        r, c = np.asarray(expected, np.float64).ravel(), np.asarray(found, np.float64).ravel()
        # Masks hold -inf on purpose: equal infinities are equal. Where the original is NaN there is no right.
        lost = ~np.isfinite(c) & (c != r) & ~np.isnan(r)
        usable = np.isfinite(r) & np.isfinite(c)
        if lost.any():
            problem = f"holds {int(lost.sum())} values that are NaN or infinite here only"
        max_abs = float(np.abs(c[usable] - r[usable]).max(initial=0.0))
        peak = float(np.abs(r[usable]).max(initial=0.0))
        max_rel = math.inf if problem or (max_abs and not peak) else max_abs / (peak or 1.0)
        cosine = cosine_of(r[usable], c[usable])
    near = max_abs <= allowed.max_abs or (max_rel <= allowed.max_rel and cosine >= allowed.cosine)
    if near and not problem:
        return None
    return Divergence(
        name, maker.op_type, maker.name, max_abs, max_rel, cosine,
        _range(expected), _range(found), agreed, last, problem,
    )  # fmt: skip


def _range(array: Array) -> tuple[float, float]:
    values: NDArray[np.float64] = np.asarray(array, np.float64)
    values = values[~np.isnan(values)]
    return (float(values.min()), float(values.max())) if values.size else (math.nan, math.nan)


def _span(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.4g} to {pair[1]:.4g}"
