"""Two graphs on the same feeds, tensor by tensor: what both name, in the order of computing.

Both run in ONNX Runtime with every optimisation off, and their inner tensors are made outputs, a few at a time:
memory is bounded by one group of activations, however many tensors there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from vitesse.backends.protocol import Array, Tensors
from vitesse.errors import BackendError

_GROUP_BYTES = 256 * 2**20
_FIRST_GROUP, _LARGEST_GROUP = 8, 128


def makers_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node of the main graph that makes each tensor, in the order of computing."""
    return {name: node for node in model.graph.node for name in node.output if name}


def paired(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Tensors,
    candidate_feeds: Tensors | None = None,
) -> Iterator[tuple[str, Array, Array]]:
    """Yield (name, the original's value, the candidate's value) of every tensor that both make.

    The order is the candidate's; tensors inside subgraphs are left out. Where a TopK of both graphs chose
    differently, both go on with the original's choice: two values that tie up to rounding may swap places, and
    everything behind them would differ without being wrong.

    Args:
        candidate_feeds: where the candidate is fed otherwise.

    Raises:
        BackendError: ONNX Runtime cannot run one of the graphs.
    """
    with tempfile.TemporaryDirectory(prefix="vitesse-diverge-") as folder:
        reference = _Probe(original, Path(folder) / "original", "the original", feeds)
        changed = _Probe(candidate, Path(folder) / "candidate", "the candidate", candidate_feeds or feeds)
        shared = [name for name in changed.makers if name in reference.makers]
        for name, (r, c) in _walk((reference, changed), shared):
            yield name, r, c


def tensors_of(
    model: onnx.ModelProto, feeds: Tensors, *, without: Collection[str] = ()
) -> Iterator[tuple[str, Array]]:
    """Yield (name, value) of every tensor the main graph makes but `without`, in order; raises as `paired`."""
    with tempfile.TemporaryDirectory(prefix="vitesse-diverge-") as folder:
        probe = _Probe(model, Path(folder) / "model", "the graph", feeds)
        for name, (value,) in _walk((probe,), [name for name in probe.makers if name not in without]):
            yield name, value


class _Probe:
    """A graph on disk, weights apart, that is run again and again with other tensors as outputs."""

    def __init__(self, model: onnx.ModelProto, folder: Path, title: str, feeds: Tensors) -> None:
        folder.mkdir()
        self.title = title
        self.makers = makers_of(model)
        self._feeds = feeds
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

    def run(self, names: Sequence[str]) -> list[object]:
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
            outputs: list[object] = session.run(
                list(names), {k: v for k, v in self._feeds.items() if k in wanted}
            )
        except Exception as error:  # ONNX Runtime raises a dozen classes without a public base
            raise BackendError(
                f"ONNX Runtime cannot run {self.title} to look for the difference: {str(error)[:300]}",
                expected="a graph that runs with optimisations off",
            ) from error
        return outputs


def _walk(probes: Sequence[_Probe], names: Sequence[str]) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """Yield (name, its value in every graph) in order, in groups sized by what the last one held."""
    start, size = 0, _FIRST_GROUP
    while start < len(names):
        group = names[start : start + size]
        held = 0
        for name, *found in zip(group, *(probe.run(group) for probe in probes), strict=True):
            start += 1
            values = tuple(value for value in found if isinstance(value, np.ndarray))
            if len(values) == len(probes):  # not sequences or maps
                held += sum(value.nbytes for value in values)
                yield name, values
                if len(probes) > 1 and _chose_differently(name, values, probes):
                    for probe in probes:
                        probe.pin(name, values[0])
                    break
        fitting = int(_GROUP_BYTES * len(group) / max(held, 1))
        size = max(1, min(_LARGEST_GROUP, 4 * size, fitting))


def _chose_differently(name: str, values: Sequence[Array], probes: Sequence[_Probe]) -> bool:
    made_by = {probe.makers[name].op_type for probe in probes}
    first, *others = values
    return (
        made_by == {"TopK"}
        and first.dtype.kind == "i"
        and any(first.shape == other.shape and not np.array_equal(first, other) for other in others)
    )
