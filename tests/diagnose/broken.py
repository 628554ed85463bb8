"""One broken model for every known cause: the file, what it was made from, and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import tiny_graphs
from diagnose import diagnosed_graphs as graphs
from diagnose.changes import (
    Model,
    after,
    attribute,
    before_stem,
    changed,
    f32,
    fixed_batch,
    half,
    quantised,
    quantised_weight,
    renamed,
    rounding,
    standardised,
    swapped_names,
    weight,
    with_spec,
)
from vitesse.spec import ModelSpec


@dataclass(frozen=True)
class Broken:
    """A broken model.

    original, candidate: functions that make them.
    spec: how the original is fed and read, and the candidate where it has none of its own.
    tensor: the first wrong tensor that must be named; empty: not asked. module: the module it belongs to.
    where: a tensor that the cause itself must name; healthy: a hazard, right on CPU.
    """

    cause: str
    original: Callable[[], Model]
    candidate: Callable[[], Model]
    spec: Callable[..., ModelSpec] = tiny_graphs.detector_spec
    tensor: str = ""
    module: str = ""
    where: str = ""
    healthy: bool = False


def _tail(*steps: Any, before: float = 1.0) -> Callable[[], Model]:
    return cache(partial(graphs.tail, *steps, before=before))


def _halved(cause: str, model: Callable[[], Model], **told: Any) -> Broken:
    return Broken(cause, model, half(model), tiny_graphs.classifier_spec, **told)


detector, classifier = tiny_graphs.detector, tiny_graphs.classifier
block, outlier, sampling = cache(graphs.block), cache(graphs.outlier), cache(graphs.sampling)
_CLASSES = tiny_graphs.classifier_spec
_MEAN, _STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
_normalised_spec = partial(_CLASSES, preprocessing={"size": (32, 32), "mean": list(_MEAN), "std": list(_STD)})
_per_channel = {
    name: np.array(value, f32).reshape(1, 3, 1, 1) for name, value in (("mean", _MEAN), ("std", _STD))
}
_imagenet = {
    name: np.array(value, f32).reshape(1, 3, 1, 1)
    for name, value in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)))
}
_TO_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], f32)


def _misfit(*factors: tuple[str, float]) -> Callable[[], Model]:
    """The detector with rounded activations, each range `factor` times what it should be."""
    return changed(detector, *(rounding(name, detector, factor) for name, factor in factors))


def _rounded(model: Callable[[], Model], tensor: str) -> Callable[[], Model]:
    """A model with one tensor in INT8, its range right."""
    return changed(model, rounding(tensor, model))


OUTPUTS = (
    Broken("swapped_outputs", detector, changed(detector, swapped_names("logits", "boxes")), where="boxes"),
    Broken(
        "activated_logits", detector, changed(detector, after("logits", "Softmax", axis=-1)), where="logits"
    ),
    Broken("activated_logits", classifier, changed(classifier, after("logits", "Sigmoid")), _CLASSES),
    Broken(
        "class_offset",
        detector,
        changed(detector, after("logits", "Gather", np.array([4, 0, 1, 2, 3]), axis=2)),
        where="logits",
    ),
    Broken(
        "class_order",
        classifier,
        changed(classifier, after("logits", "Gather", np.array([2, 0, 3, 1]), axis=1)),
        _CLASSES,
    ),
    Broken("box_format", detector, changed(detector, after("boxes", "MatMul", _TO_CORNERS)), where="boxes"),
    Broken(
        "box_scale", detector, changed(detector, after("boxes", "Mul", np.full(4, 32, f32))), where="boxes"
    ),
    Broken(
        "query_order",
        detector,
        changed(
            detector,
            after("logits", "Gather", np.arange(64)[::-1].copy(), axis=1),
            after("boxes", "Gather", np.arange(64)[::-1].copy(), axis=1),
        ),
    ),
)
DECODER_LAYERS = (
    Broken("wrong_layer", graphs.stacked, partial(graphs.stacked, 0), where="logits"),
    Broken(
        "auxiliary_output",
        graphs.without_auxiliary,
        partial(graphs.with_auxiliary, swapped=True),
        where="logits",
    ),
    Broken("negative_gather", graphs.stacked, graphs.stacked, where="logits", healthy=True),
    Broken(
        "auxiliary_heads", graphs.without_auxiliary, graphs.with_auxiliary, where="aux_logits", healthy=True
    ),
)
HALF = (
    _halved(
        "half_layer_norm",
        _tail(graphs.written_out_norm, before=800.0),
        tensor="squares",
        module="encoder.norm",
    ),
    _halved("half_attention", _tail(graphs.attention, before=200.0), tensor="scores", module="encoder.attn"),
    _halved("half_mask", _tail(graphs.masked_attention), tensor="probabilities", module="encoder.attn"),
    _halved("half_constant_flushed", _tail(graphs.unit_length), tensor="unit", module="neck.normalise"),
    _halved(
        "half_constant_overflow",
        _tail(
            graphs.times(1e-3, "neck.small"), graphs.times(1e5, "neck.large"), graphs.times(1e-2, "neck.back")
        ),
        tensor="neck.large.mul",
        module="neck.large",
    ),
    _halved("half_pow", _tail(graphs.to_the_fourth, before=30.0), tensor="powers", module="neck.power"),
    _halved(
        "half_overflow",
        _tail(graphs.times(60000.0, "neck.large"), graphs.times(1e-4, "neck.back")),
        tensor="neck.large.mul",
        module="neck.large",
    ),
    _halved("half_rounding", _tail(graphs.far_away), tensor="back", module="head.back"),
)
QUANTISED = (
    Broken(
        "calibrated_on_other_images",
        detector,
        _misfit(("features", 0.05), ("tokens", 0.04), ("mixed", 0.05), ("hidden", 0.05)),
    ),
    Broken(
        "calibrated_on_other_images",
        detector,
        _misfit(("features", 60), ("tokens", 70), ("mixed", 60), ("hidden", 50)),
    ),
    Broken(
        "saturating_range",
        detector,
        _misfit(("features", 0.04), ("mixed", 1), ("hidden", 1)),
        where="features",
    ),
    Broken(
        "too_wide_range", detector, _misfit(("features", 1), ("mixed", 1), ("hidden", 60)), where="hidden"
    ),
    Broken(
        "weights_per_tensor",
        graphs.uneven,
        changed(graphs.uneven, quantised_weight("mix"), quantised("hidden", 1 / 127)),
    ),
    Broken("quantised_residual", outlier, _rounded(outlier, "sum"), _CLASSES, where="sum"),
    Broken(
        "quantised_normalisation",
        graphs.confident_attention,
        _rounded(graphs.confident_attention, "masked"),
        _CLASSES,
        where="masked",
    ),
    Broken("quantised_head", outlier, _rounded(outlier, "pooled"), _CLASSES, where="pooled"),
    Broken(
        "zero_point",
        detector,
        changed(detector, quantised("hidden", 2 / 255, 128, np.uint8)),
        where="hidden",
        healthy=True,
    ),
)
INPUTS = (
    Broken("channel_order", classifier, changed(classifier, weight("stem", lambda w: w[:, ::-1])), _CLASSES),
    Broken(
        "normalised_twice",
        classifier,
        changed(
            classifier, before_stem("Div", _per_channel["std"]), before_stem("Sub", _per_channel["mean"])
        ),
        _normalised_spec,
    ),
    Broken(
        "not_normalised",
        classifier,
        changed(classifier, before_stem("Add", _imagenet["mean"]), before_stem("Mul", _imagenet["std"])),
        _CLASSES,
    ),
    Broken("pixel_scale", classifier, changed(classifier, before_stem("Div", 255.0)), _CLASSES),
    Broken(
        "other_preprocessing",
        classifier,
        with_spec(
            classifier, _CLASSES(preprocessing={"size": (32, 32), "scale": 1 / 100, "mean": [1, 1, 1]})
        ),
        _CLASSES,
    ),
)
OPERATORS = (
    Broken(
        "training_mode",
        sampling,
        changed(sampling, weight("training", lambda _: np.array(True))),
        _CLASSES,
        where="decoder.drop.dropout",
    ),
    Broken(
        "grid_sample",
        sampling,
        changed(sampling, attribute("/decoder/sampling/GridSample", align_corners=1)),
        _CLASSES,
        tensor="decoder.sampling.gridsample",
        module="decoder.sampling",
    ),
    Broken(
        "cumsum",
        sampling,
        changed(sampling, attribute("/neck/positions/CumSum", reverse=1)),
        _CLASSES,
        tensor="neck.positions.cumsum",
        module="neck.positions",
    ),
    Broken(
        "resize",
        sampling,
        changed(sampling, attribute("/neck/up/Resize", coordinate_transformation_mode="align_corners")),
        _CLASSES,
        tensor="neck.up.resize",
        module="neck.up",
    ),
    Broken(
        "epsilon",
        block,
        changed(block, attribute("/encoder/layers/0/norm1/LayerNormalization", epsilon=9e-3)),
        _CLASSES,
        tensor="encoder.layers.0.norm1.layernormalization",
        module="encoder.layers.0.norm1",
    ),
    Broken(
        "gelu",
        block,
        changed(block, attribute("/encoder/layers/0/mlp/act/Gelu", approximate="tanh")),
        _CLASSES,
        tensor="gelu",
        module="encoder.layers.0.mlp.act",
    ),
    Broken(
        "other_setting",
        block,
        changed(block, attribute("/encoder/layers/0/attn/Softmax", axis=1)),
        _CLASSES,
        tensor="probabilities",
        module="encoder.layers.0.attn",
    ),
    Broken("grid_sample_mode_name", sampling, sampling, _CLASSES, healthy=True),
    Broken("grid_sample_in_tensorrt", sampling, sampling, _CLASSES, healthy=True),
    Broken(
        "reverse_cumsum",
        changed(sampling, attribute("/neck/positions/CumSum", reverse=1)),
        changed(sampling, attribute("/neck/positions/CumSum", reverse=1)),
        _CLASSES,
        healthy=True,
    ),
)
SIZES = (
    Broken(
        "baked_batch",
        detector,
        changed(detector, weight("shape", lambda shape: np.array([1, *shape[1:]], np.int64))),
        where="grid",
    ),
    Broken("frozen_shape", detector, changed(detector, fixed_batch), where="images", healthy=True),
)
WEIGHTS = (
    Broken(
        "weight_standardisation",
        changed(classifier, weight("stem", standardised)),
        classifier,
        _CLASSES,
        tensor="stem_out",
    ),
    Broken("transposed_weight", detector, changed(detector, weight("mix", lambda w: w.T)), tensor="mixed"),
    Broken(
        "stale_weights",
        block,
        changed(block, weight("encoder.layers.0.mlp.fc1.weight", lambda w: w[::-1])),
        _CLASSES,
        tensor="encoder.layers.0.mlp.fc1.matmul",
        module="encoder.layers.0.mlp.fc1",
    ),
    Broken("replaced_operator", detector, changed(detector, renamed("tanh", "Sigmoid")), tensor="hidden"),
)
BROKEN = (*OUTPUTS, *DECODER_LAYERS, *HALF, *QUANTISED, *INPUTS, *OPERATORS, *SIZES, *WEIGHTS)
