"""A torch module → one clean ONNX graph, and the module's own answer to compare it with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vitesse.backends.protocol import Tensors
from vitesse.errors import ModelError
from vitesse.scopes import MODULE_SCOPES
from vitesse.sources.source import Exported, ExportOptions
from vitesse.spec import ModelSpec

_CHATTERING = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")


@dataclass(frozen=True)
class Network:
    """A torch module ready to be exported.

    Args:
        module: takes `inputs` in their order and returns one tensor, or a tuple in the order of `outputs`.
        inputs: graph input name → example. The image is float32 (batch, 3, H, W) with batch ≥ 2, so that the
            tracer does not specialise batch 1, and H ≠ W where they are dynamic.
        outputs: graph output names.
        axes: graph input name → {axis: name of the dimension}, for every axis that may be left open.
        stride: dynamic height and width must be multiples of it, pixels.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    spec: ModelSpec
    axes: Mapping[str, Mapping[int, str]]
    stride: int = 1


@dataclass(frozen=True)
class TorchSource:
    """A source that is a torch module; `build` makes it as the options ask. See `sources.source.Source`.

    `axes`: which of batch, height and width the model can leave open.
    """

    title: str
    identity: str
    build: Callable[[ExportOptions], Network]
    axes: frozenset[str] = frozenset({"batch"})

    def export(self, options: ExportOptions) -> Exported:
        """Trace with torch.export and translate to ONNX."""
        options.require_axes(self.axes, self.title)
        network = self.build(options)
        reference = partial(answer, network)
        return Exported(trace(network, options), network.spec, reference, options.dynamic, network.stride)


def trace(network: Network, options: ExportOptions) -> onnx.ModelProto:
    """Export the network; dimensions not in `options.dynamic` are fixed at the example's, a fixed batch at 1.

    Raises:
        ModelError: torch cannot trace or translate the module.
    """
    shapes = {
        name: {axis: title for axis, title in network.axes.get(name, {}).items() if title in options.dynamic}
        for name in network.inputs
    }
    batched = "batch" in options.dynamic
    try:
        with _without_chatter():
            program = torch.onnx.export(
                network.module.eval(),
                tuple(example if batched else example[:1] for example in network.inputs.values()),
                dynamo=True,
                opset_version=options.opset,
                input_names=list(network.inputs),
                output_names=list(network.outputs),
                dynamic_shapes=tuple(shapes.values()),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _failed(error, options) from error
    assert program is not None  # torch returns None only for the old exporter
    exported: onnx.ModelProto = program.model_proto
    _drop_trace(exported)
    return exported


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence what torch says about its own internals: deprecations, absent packages, constants it did not fold."""
    loggers = [logging.getLogger(name) for name in _CHATTERING]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _failed(error: Exception, options: ExportOptions) -> ModelError:
    """Name the innermost reason; the exporter wraps it in pages of advice to its own developers."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return ModelError(
        f"torch {torch.__version__} cannot export the model: {type(inner).__name__}: {lines[0] if lines else ''}",
        expected=f"a model that torch.export can trace at opset {options.opset}",
        cause="control flow that depends on values, or an operator without an ONNX form",
        fix="try another --opset, or --dynamic none; a newer torch exports more",
    )


def answer(network: Network, feeds: Tensors) -> Tensors:
    """Run the module itself on feeds by input name; returns float32 arrays by output name."""
    with torch.no_grad():
        given = network.module(*(torch.from_numpy(np.array(feeds[name])) for name in network.inputs))
    tensors = given if isinstance(given, tuple) else (given,)
    return {name: tensor.numpy() for name, tensor in zip(network.outputs, tensors, strict=True)}


def _drop_trace(model: onnx.ModelProto) -> None:
    """Keep of torch's notes on each node only the module it belongs to: the rest is stack traces of this machine."""
    for node in model.graph.node:
        scopes = [entry for entry in node.metadata_props if entry.key == MODULE_SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
