"""A graph quantised for one runtime with one set of ranges, as a subject of the search."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.data.split import fingerprint
from vitesse.environment import describe, stable
from vitesse.errors import UsageError
from vitesse.precision.calibrated import Calibrated
from vitesse.precision.layers import blocks_of
from vitesse.precision.quantize import quantize
from vitesse.precision.ranges import Ranges
from vitesse.precision.search.block_times import saved_by_block
from vitesse.precision.search.found import Blocks, Score, Speed
from vitesse.precision.search.reference import Reference
from vitesse.recipe import Int8Options
from vitesse.run import key_of

# A race needs its finalists at once; whatever else was built is deleted, as each trial is as large as the model.
KEPT = 6


class QuantisedSubject:
    """See `Subject`.

    Args:
        reference: the original on the search images.
        calibrated: the graph with the ranges of its layers.
        options: as `quantize` takes them.
        number: `int8` or `fp8`; whether INT8 activations are int8 or uint8 is what the ranges say.
        scratch: a folder for what trials make; it may be deleted afterwards.
    """

    def __init__(
        self,
        reference: Reference,
        calibrated: Calibrated,
        options: Int8Options,
        *,
        number: str = "int8",
        scratch: Path,
    ) -> None:
        self._reference, self._calibrated = reference, calibrated
        self._options, self._quantised_to, self._scratch = options, number, scratch
        self._groups = blocks_of(calibrated.layers)
        self._made: dict[Blocks, Artifact] = {}
        self._graphs: dict[str, Artifact] = {}
        self.blocks = tuple(self._groups)
        self.number = "uint8" if number == "int8" and not calibrated.ranges.symmetric else number
        self.runtime, self.pace, self.images = reference.runtime, reference.pace, len(reference.split)
        self.metric, self.original = reference.accuracy.metric, reference.accuracy.value
        self.shares = self._operations()
        self.key = self._key()

    def names(self, blocks: Blocks) -> list[str]:
        """Return the names of all layers in these blocks, as `quantize` takes them."""
        return [layer.name for block in blocks for layer in self._groups[block]]

    def lowered(self, blocks: Blocks) -> Artifact:
        """Quantise these blocks and build for the runtime; the files live until a few others were asked for."""
        if blocks in self._made:
            self._made[blocks] = self._made.pop(blocks)  # asked for last, so deleted last
        else:
            folder = self._scratch / key_of((self.key, sorted(blocks)))
            graph = quantize(
                self._calibrated.artifact,
                Store(folder),
                self.names(blocks),
                self._calibrated.ranges,
                self._options,
                number=self._quantised_to,
            ).artifact
            built = backend(self.runtime).build(graph, Store(folder)).artifact
            self._made[blocks], self._graphs[built.sha256] = built, graph
            for old in list(self._made)[:-KEPT]:
                shutil.rmtree(self._made.pop(old).path.parent, ignore_errors=True)
        return self._made[blocks]

    def score(self, artifact: Artifact, images: int) -> Score:
        """Compare with the original."""
        return self._reference.score(artifact, images)

    def race(self, artifacts: Mapping[str, Artifact]) -> Mapping[str, Speed]:
        """Measure on the target, interleaved with the FP32 build."""
        return self._reference.race(artifacts)

    def gains(self, artifact: Artifact) -> Mapping[str, float] | None:
        """Compare the profiles of the FP32 build and of `artifact`, block by block."""
        reference = self._reference
        try:
            return saved_by_block(
                (reference.graph, reference.build),
                (self._graphs[artifact.sha256], artifact),
                self._groups,
                reference.timed_feeds(),
                threads=reference.load.threads,
            )
        except UsageError:  # a runtime whose times Vitesse cannot read
            return None

    def _operations(self) -> dict[str, float]:
        flops = {block: [layer.flops for layer in layers] for block, layers in self._groups.items()}
        known = {
            block: sum(one for one in each if one is not None)
            for block, each in flops.items()
            if None not in each
        }
        whole = sum(known.values())
        return (
            {block: own / whole for block, own in known.items()} if len(known) == len(flops) and whole else {}
        )

    def _key(self) -> str:
        reference = self._reference
        folder = reference.split.samples[0].path.parent
        return key_of(
            (
                self._calibrated.artifact.sha256,
                _digest(self._calibrated.ranges),
                asdict(self._options),
                self._quantised_to,
                reference.graph.sha256,
                reference.graph.spec.to_json(),
                self.runtime,
                reference.load,
                asdict(reference.measure),
                fingerprint(folder, (reference.split,)),
                stable(describe()),
            )
        )


def _digest(ranges: Ranges) -> str:
    digest = hashlib.sha256(repr((sorted(ranges.by_tensor.items()), ranges.symmetric)).encode())
    for name, channels in sorted(ranges.channels.items()):
        digest.update(name.encode() + channels.abs_max.tobytes() + channels.mean.tobytes())
    return digest.hexdigest()
