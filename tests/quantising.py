"""A graph quantised as a user's file is, and what was stored in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tiny_onnx import as_artifact
from vitesse.artifact import Store
from vitesse.backends.protocol import Built
from vitesse.precision.layers import layers_of
from vitesse.precision.quantize import quantize
from vitesse.precision.ranges import ChannelStatistics, Ranges
from vitesse.recipe import Int8Options

PLAIN = Int8Options(weight_bits=8, bias_correction=False)


def quantised(
    folder: Path,
    model: onnx.ModelProto,
    by_tensor: Mapping[str, tuple[float, float]],
    *,
    symmetric: bool = True,
    means: Mapping[str, Collection[float]] | None = None,
    names: Collection[str] | None = None,
    options: Int8Options = PLAIN,
    number: str = "int8",
) -> tuple[onnx.ModelProto, Built]:
    """Save, quantise the named layers (all that may be) and load what was made."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model, path)
    channels = {
        name: ChannelStatistics(np.ones(len(mean), np.float32), np.array(mean, np.float64))
        for name, mean in (means or {}).items()
    }
    ranges = Ranges(by_tensor, "minmax", 1, symmetric, channels)
    if names is None:
        names = [layer.name for layer in layers_of(model, attention=options.attention)]
    built = quantize(as_artifact(path), Store(folder), names, ranges, options, number=number, stage=number)
    made = onnx.load(built.artifact.path)
    onnx.checker.check_model(made, full_check=True)
    return made, built


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The initialisers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output}


def behind_quantisers(model: onnx.ModelProto, tensor: str) -> str:
    """The tensor whose rounded form `tensor` is; `tensor` itself where it is not rounded."""
    made = makers(model)
    dequantizer = made.get(tensor)
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return tensor
    quantizer = made.get(dequantizer.input[0])
    return tensor if quantizer is None else quantizer.input[0]
