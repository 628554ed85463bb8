"""Is the exported graph the model? Held against the framework's own answer, away from the shapes it was traced at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, TensorInfo, Tensors
from vitesse.errors import NotVerified
from vitesse.ledger import Parity
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.signature import graph_inputs
from vitesse.sources.source import Exported
from vitesse.spec import ModelSpec
from vitesse.verify.gate import Limits
from vitesse.verify.parity import ParityMeter

# Exporters trace at batch 2, so that neither of these is the traced one.
BATCHES = (1, 3)
# Shares of the traced (height, width): smaller, and of another aspect, than what was traced.
SHARES = ((0.6, 0.45), (0.4, 0.7))


@dataclass(frozen=True)
class Comparison:
    """The graph against the framework on one batch of noise: shape (batch, height, width), distance."""

    batch: int
    height: int
    width: int
    parity: Parity

    def describe(self) -> str:
        """Return `3×333×517: 2.1e-06`."""
        return f"{self.batch}×{self.height}×{self.width}: {self.parity.max_abs:.1e}"


def check_export(exported: Exported, artifact: Artifact, *, seed: int = 0) -> tuple[Comparison, ...]:
    """Run graph and framework on the same noise; the graph with every optimisation of the runtime off.

    The batch differs from the traced one, and so do height and width where they are dynamic.

    Raises:
        NotVerified: they differ by more than rounding explains (limits of a structural step), or are not finite.
        BackendError: ONNX Runtime refuses the graph.
    """
    done = []
    inputs = graph_inputs(load_onnx(artifact.path))
    generator = np.random.default_rng(seed)
    with (
        backend("onnxruntime").load(artifact, LoadOptions(reference=True)) as engine,
        engine.session() as session,
    ):
        for shape in _shapes(exported, inputs):
            feeds = noise(exported.spec, inputs, shape, generator)
            wanted = exported.reference(feeds)
            found = session.run(feeds).outputs
            done.append(Comparison(*shape, _compared(wanted, found, exported.spec, shape)))
    return tuple(done)


def noise(
    spec: ModelSpec,
    inputs: tuple[TensorInfo, ...],
    shape: tuple[int, int, int],
    generator: np.random.Generator,
) -> Tensors:
    """Return feeds of (batch, height, width): normal noise; images of a padded batch cover it to different extents."""
    batch, height, width = shape
    feeds: dict[str, np.typing.NDArray[np.generic]] = {}
    for entry in inputs:
        if entry.name == spec.image_input:
            sides = (3, height, width) if spec.preprocessing.layout == "NCHW" else (height, width, 3)
            feeds[entry.name] = generator.standard_normal((batch, *sides), np.float32)
        elif entry.name == spec.valid_size_input:
            least = [
                [side - index * (side // 4) // batch for side in (height, width)] for index in range(batch)
            ]
            feeds[entry.name] = np.array(least, np.int64)
        else:
            pair = (width, height) if spec.size_order == "wh" else (height, width)
            feeds[entry.name] = np.array([pair] * batch, np.int64)
    return feeds


def _shapes(exported: Exported, inputs: tuple[TensorInfo, ...]) -> Iterator[tuple[int, int, int]]:
    image = next(entry for entry in inputs if entry.name == exported.spec.image_input)
    rules = exported.spec.preprocessing
    sides = image.shape[2:4] if rules.layout == "NCHW" else image.shape[1:3]
    fixed = [
        side if isinstance(side, int) else wanted for side, wanted in zip(sides, rules.size, strict=True)
    ]
    batch = image.shape[0]
    for index, other in enumerate(BATCHES):
        size = fixed
        if "height" in exported.dynamic:
            size = [
                max(1, round(share * side / exported.stride)) * exported.stride
                for share, side in zip(SHARES[index], fixed, strict=True)
            ]
        yield batch if isinstance(batch, int) else other, size[0], size[1]
        if isinstance(batch, int) and "height" not in exported.dynamic:
            return


def _compared(wanted: Tensors, found: Tensors, spec: ModelSpec, shape: tuple[int, int, int]) -> Parity:
    meter = ParityMeter(spec)
    meter.add(wanted, found, image=f"noise of {'×'.join(map(str, shape))}")
    parity, limits = meter.parity(), Limits()
    broken = [finding.text for finding in meter.findings() if finding.fatal and finding.kind != "constant"]
    relative = None if parity is None else parity.max_rel
    if parity is None or broken or relative is None or not relative <= limits.max_rel:
        distance = "unknown" if relative is None else f"{100 * relative:.3g} % of its range"
        where = "" if parity is None else f" `{parity.worst_output}`"
        raise NotVerified(
            f"the exported graph does not answer as the model itself on a batch of {'×'.join(map(str, shape))}: "
            + ("; ".join(broken) or f"the output{where} differs by {distance}"),
            expected=f"a difference of at most {100 * limits.max_rel:g} %",
            cause="the exporter fixed what depends on the input's shape, or translated an operator wrongly",
            fix="export with another --opset, or with --dynamic none",
        )
    return parity
