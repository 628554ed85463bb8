"""A graph with inner tensors as outputs: what flows through it, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime

from vitesse.backends.protocol import Array, Tensors
from vitesse.errors import BackendError, ModelError


class Taps:
    """Runs a graph in ONNX Runtime and yields tensors by name; memory is what one image's tapped tensors take.

    Args:
        model: the graph, weights inside; it is not changed.
        tensors: names of graph inputs, outputs or any node's outputs.
        optimised: let ONNX Runtime fuse what lies between the taps; False computes node by node, as the graph says.
        threads: of the session; 0 = the runtime's default.

    Raises:
        ModelError: a name is not in the graph.
        BackendError: ONNX Runtime cannot load the graph.
    """

    def __init__(
        self, model: onnx.ModelProto, tensors: Sequence[str], *, optimised: bool = True, threads: int = 0
    ) -> None:
        self.tensors = tuple(dict.fromkeys(tensors))
        self._inputs = [value.name for value in model.graph.input]
        made = {name for node in model.graph.node for name in node.output if name}
        unknown = [name for name in self.tensors if name not in made and name not in self._inputs]
        if unknown:
            raise ModelError(f"the graph has no tensor `{unknown[0]}`", expected="a name that a node makes")
        self._outputs = [name for name in self.tensors if name in made]
        self._session = _session(_with_outputs(model, self._outputs), optimised, threads)
        self._wanted = {entry.name for entry in self._session.get_inputs()}

    def run(self, feeds: Tensors) -> Iterator[tuple[str, Array]]:
        """Run one call and yield (name, value) in the order in which the tensors were named.

        Raises:
            BackendError: ONNX Runtime refuses to run the graph on these feeds.
        """
        given = {name: array for name, array in feeds.items() if name in self._wanted}
        try:
            values = self._session.run(self._outputs, given) if self._outputs else []
        except Exception as error:  # ONNX Runtime raises a dozen classes without a public base
            raise _refused(error) from error
        found = dict(zip(self._outputs, values, strict=True))
        for name in self.tensors:
            yield name, found[name] if name in found else np.asarray(feeds[name])


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = {entry.name: entry for entry in copy.graph.output}
    typed = {entry.name: entry for entry in copy.graph.value_info} | declared
    outputs = [typed.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in names]
    kept = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in outputs]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


def _session(model: onnx.ModelProto, optimised: bool, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise _refused(error) from error


def _refused(error: Exception) -> BackendError:
    return BackendError(
        f"ONNX Runtime cannot run the graph with inner tensors as outputs: {str(error)[:300]}",
        expected="a graph that ONNX Runtime runs",
    )
