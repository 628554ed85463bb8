"""Lever "queries": fewer object queries of a detector.

A DETR learns its queries, each for a place and size of objects; those that are never confident on the calibration
images are dropped. A two-stage model (RT-DETR, D-FINE, DEIM) selects the best proposals of the encoder as its queries,
sorted by score; there the selection takes fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from vitesse.backends.protocol import Built, Tensors
from vitesse.compress.lever import NotApplicable, Situation, Variant
from vitesse.compress.query_axis import QueryAxis, trace
from vitesse.compress.query_removal import keep_queries
from vitesse.compress.rewriting import Changed, rewritten
from vitesse.errors import ModelError
from vitesse.fusion.contract import load
from vitesse.fusion.rules import LeftAlone, constant
from vitesse.fusion.shapes import complete_shapes
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import Decode, ModelSpec, Task
from vitesse.verify.taps import Taps

# A query is dropped when its best score on all images stays below the threshold.
THRESHOLDS = (0.01, 0.05, 0.1, 0.3)
# Of selected queries, how many parts of four are kept.
_QUARTERS = (3, 2, 1)


def variants(situation: Situation) -> Sequence[Variant]:
    """Return `queries:80`, …: how many queries are kept, most first.

    Learned queries: those whose best score, over all images and classes, reaches 0.01, 0.05, 0.1, 0.3. Selected
    queries: the first 3/4, 1/2, 1/4.

    Raises:
        NotApplicable: no detector, no queries to be found, or none that could be dropped; the text says why.
    """
    artifact = situation.artifact
    if artifact.spec.task is not Task.DETECTION:
        raise NotApplicable("the model is a classifier: it has no object queries", expected="a detector")
    proto = load_onnx(artifact.path)
    model = load(proto)
    complete_shapes(model)
    found = find_queries(model, artifact.spec)
    if found.sources:
        counts = dict.fromkeys(found.queries * part // 4 for part in _QUARTERS)
        choices = [tuple(range(count)) for count in counts if 0 < count < found.queries]
    else:
        best = best_scores(proto, artifact.spec, situation.images)
        choices = _choices(best)
    return [Variant(f"queries:{len(kept)}", partial(_make, situation, kept)) for kept in choices]


def find_queries(model: ir.Model, spec: ModelSpec) -> QueryAxis:
    """Return everything in the graph that has one entry a query; shapes must have been inferred.

    Raises:
        NotApplicable: the queries cannot be followed through the graph; the text says where.
    """
    if spec.decode is Decode.POSTPROCESSED:
        return _selected(model)
    by_name = {value.name: value for value in model.graph.outputs}
    outputs = [by_name[spec.outputs[role]] for role in ("logits", "boxes")]
    count = outputs[0].shape[1] if outputs[0].shape is not None else None
    if not isinstance(count, int):
        raise NotApplicable("how many queries the model has is not fixed in its graph", expected="a number")
    try:
        return trace([(value, 1) for value in outputs], count)
    except LeftAlone as reason:
        raise _lost(str(reason)) from reason


def _selected(model: ir.Model) -> QueryAxis:
    """The queries of a graph that ends in its post-processor: what a TopK selects and attention then mixes."""
    reasons: dict[str, None] = {}
    for node in model.graph:
        count = constant(node.inputs[1]) if node.op_type == "TopK" else None
        shape = node.outputs[0].shape
        if count is None or shape is None or count.item() < 2:
            continue
        axis = (node.attributes.get_int("axis", -1) or 0) % len(shape)
        try:
            found = trace([(value, axis) for value in node.outputs], int(count.item()))
        except LeftAlone as reason:
            reasons[str(reason)] = None
            continue
        if found.attends:
            return found
    raise _lost("; ".join(reasons) or "no TopK selects what attention then mixes")


def _lost(reason: str) -> NotApplicable:
    return NotApplicable(
        f"the queries cannot be followed through the graph: {reason}",
        expected="learned queries, or queries that a TopK selects, read by known operators",
    )


def best_scores(model: onnx.ModelProto, spec: ModelSpec, images: Iterable[Tensors]) -> NDArray[np.float32]:
    """Return the best score of each query over all images and classes, (queries,) in 0..1; NaN counts as 0.

    Raises:
        NotApplicable: there is no image.
    """
    taps = Taps(model, [spec.outputs["logits"]])
    best: NDArray[np.float32] | None = None
    for feeds in images:
        for _, logits in taps.run(feeds):
            scores = _scores(np.asarray(logits, np.float32), spec.decode).max(axis=(0, 2))
            best = scores if best is None else np.maximum(best, scores)
    if best is None:
        raise NotApplicable(
            "which queries are never confident cannot be told without images",
            expected="calibration images",
            fix="name some with --calib-data",
        )
    return best


def _scores(logits: NDArray[np.float32], decode: Decode) -> NDArray[np.float32]:
    """Scores of all classes, (batch, queries, classes), without no-object."""
    if decode is Decode.DETR_SIGMOID:
        scores = 1 / (1 + np.exp(-logits))
    else:
        powers = np.exp(logits - logits.max(axis=2, keepdims=True))
        scores = (powers / powers.sum(axis=2, keepdims=True))[:, :, :-1]
    return np.asarray(np.nan_to_num(scores), np.float32)


def _choices(best: NDArray[np.float32]) -> list[tuple[int, ...]]:
    """The queries that reach each threshold, where these are fewer than before and not none."""
    found: dict[int, tuple[int, ...]] = {}
    for threshold in THRESHOLDS:
        kept = tuple(int(number) for number in np.flatnonzero(best >= threshold))
        if 0 < len(kept) < len(best):
            found.setdefault(len(kept), kept)
    if not best.max(initial=0.0) >= THRESHOLDS[0]:
        raise NotApplicable(
            f"no query is confident on any image: the best score of all is {best.max(initial=0.0):.3f}",
            expected="calibration images with objects that the model knows",
        )
    if not found:
        raise NotApplicable(
            f"each of the {len(best)} queries is confident on some image: the best score of the weakest is "
            f"{best.min():.2f}",
            expected=f"queries that stay below {THRESHOLDS[-1]:g}",
        )
    return list(found.values())


def _make(situation: Situation, kept: Sequence[int]) -> Built:
    """Build the artifact with these queries alone."""
    spec = situation.artifact.spec
    stage = f"queries:{len(kept)}"

    def change(model: ir.Model) -> Changed:
        found = find_queries(model, spec)
        try:
            counts = keep_queries(model, found, kept)
        except LeftAlone as reason:
            raise ModelError(f"{stage}: {reason}", expected="constant shapes and selections") from reason
        shapes = {value.name or "": value.shape for value in model.graph.outputs if value.shape is not None}
        dropped = found.queries - len(kept)
        note = f"{dropped} of {found.queries} queries dropped"
        return Changed({"dropped_queries": dropped, **counts}, shapes, (note,))

    return rewritten(situation.artifact, situation.store, stage, change)
