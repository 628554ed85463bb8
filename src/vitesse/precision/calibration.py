"""Ranges of activations on real images: one pass gathers histograms, a method turns each into a range.

The images are a stream, one in memory at a time. ONNX Runtime has calibrators of its own; these histograms serve
better. One pass serves all methods and can be cached, where there every method needs its own and MSE is missing. They
keep their size, where there one outlier of 500 times the first image's range turned 128 bins into 65 652, and entropy
took nine minutes for that tensor. The order of the images changes nothing, where there the first one fixes the bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, numpy_helper

from vitesse.artifact import Artifact
from vitesse.backends.protocol import Tensors
from vitesse.errors import DataError, ModelError
from vitesse.precision import calibration_cache
from vitesse.precision.histograms import Collector, Observed
from vitesse.precision.layers import Layer
from vitesse.precision.methods import choose
from vitesse.precision.ranges import Ranges
from vitesse.recipe import Int8Options
from vitesse.sources.onnx_file import load_onnx
from vitesse.verify.taps import Taps

BITS = 8


def calibrate(
    artifact: Artifact,
    feeds: Iterable[Tensors],
    layers: Sequence[Layer],
    options: Int8Options,
    *,
    symmetric: bool,
    cache: Path | None = None,
    data_key: str = "",
) -> Ranges:
    """Return the ranges of what `layers` read, and of what convolutions make, for they may hand on integers.

    Args:
        feeds: one image each (batch 1), in a container that can be read again, so that what is cached stands for all.
        options: `method` and `percentile`.
        symmetric: choose ranges for a grid that is symmetric round zero.
        cache: a folder for what the pass saw. Nothing is read or written there without a `data_key`.
        data_key: what tells these feeds from others: the hash of the images, how many, how prepared.

    Returns:
        Ranges, and statistics of channels for tensors that layers with weights read. A tensor that is zero on all
        images has the range (0, 0).

    Raises:
        DataError: no calibration image, or feeds that can be read only once.
        ModelError: no layers; a name that is not in the graph; an activation that is not finite.
        BackendError: ONNX Runtime cannot run the graph on the feeds.
    """
    if iter(feeds) is feeds:
        raise DataError(
            "the calibration feeds can be read only once",
            expected="an iterable that starts anew in each pass, such as a list or a class with __iter__",
            cause="a generator",
        )
    axes = channel_axes(layers)
    if not axes:
        raise ModelError("there is no layer to calibrate", expected="convolutions or linear layers")
    key = calibration_cache.key_of(artifact.sha256, data_key, axes)
    folder = cache if data_key else None
    observed = None if folder is None else calibration_cache.load(folder, key)
    if observed is None:
        observed = observe(load_onnx(artifact.path), feeds, axes)
        if folder is not None:
            calibration_cache.save(folder, key, observed)
    by_tensor = {
        name: choose(options.method, histogram, bits=BITS, symmetric=symmetric, percent=options.percentile)
        for name, histogram in observed.histograms.items()
    }
    return Ranges(by_tensor, options.method, observed.images, symmetric, observed.channels)


def channel_axes(layers: Sequence[Layer]) -> dict[str, int | None]:
    """Return the tensors whose ranges the layers need, each with the axis of its channels, None where nobody asks.

    A tensor that a convolution and a linear layer read along different axes has no axis either.
    """
    axes: dict[str, int | None] = {}
    for layer in layers:
        others = [layer.factor, layer.output if layer.op_type == "Conv" else ""]
        axes.update((name, None) for name in others if name and name not in axes)
        if not layer.weight:
            axes.setdefault(layer.activation, None)
    read: dict[str, set[int]] = {}
    for layer in layers:
        if layer.weight:
            read.setdefault(layer.activation, set()).add(layer.channel_axis)
    axes.update((name, next(iter(found)) if len(found) == 1 else None) for name, found in read.items())
    return axes


def observe(model: ModelProto, feeds: Iterable[Tensors], axes: Mapping[str, int | None]) -> Observed:
    """Run the graph on every feed once and gather what flows through the tensors of `axes`.

    Memory is that of the session and of one image's tensors, however many images there are.
    """
    collectors = {name: Collector(name, axis) for name, axis in axes.items()}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in axes}
    taps = Taps(model, [name for name in axes if name not in constants])
    images = 0
    for feed in feeds:
        for name, value in taps.run(feed):
            collectors[name].add(value)
        images += 1
    if not images:
        raise DataError(
            "no calibration image was read",
            expected="at least one image",
            fix="name a folder with images: --calib-data FOLDER",
        )
    for name, tensor in constants.items():
        collectors[name].add(numpy_helper.to_array(tensor))
    channels = {name: found for name, one in collectors.items() if (found := one.channels()) is not None}
    return Observed({name: one.histogram() for name, one in collectors.items()}, channels, images)
