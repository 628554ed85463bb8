"""What lowering saves, block by block: the runtime's own times of the FP32 build less those of the lowered one."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx

from vitesse.artifact import Artifact
from vitesse.backends.protocol import Tensors
from vitesse.precision.layers import Layer
from vitesse.profile.attribution import attribute
from vitesse.profile.modules import Modules, Place, modules_of
from vitesse.profile.recording import record
from vitesse.scopes import Path

# Other processes disturb some recordings: the median of a few, taken in turn, is not moved by that.
RECORDINGS, RUNS = 5, 4
# An artifact beside the graph it was built from.
Built = tuple[Artifact, Artifact]


def saved_by_block(
    before: Built,
    after: Built,
    blocks: Mapping[str, Sequence[Layer]],
    feeds: Sequence[Tensors],
    *,
    threads: int,
) -> dict[str, float] | None:
    """Return milliseconds of one call that each block takes less in `after`, negative where more.

    Both are (graph, what was built from it). A kernel counts for the block whose modules it stands nearest to; what
    stands between blocks, such as a residual sum, counts for none. None where the graph has no module names to go by.

    Raises:
        UsageError: Vitesse cannot read this runtime's operator times.
        BackendError: the runtime refuses to load or run.
    """
    owner = _Owner(modules_of(onnx.load(before[0].path)), blocks)
    if not owner.named:
        return None
    saved: list[dict[str, float]] = []
    modules = [_modules_behind(one) for one in (before, after)]
    for _ in range(RECORDINGS):
        old, new = (
            _spent(one[1], known, owner, feeds, threads)
            for one, known in zip((before, after), modules, strict=True)
        )
        saved.append({block: old[block] - new[block] for block in blocks})
    return {block: statistics.median(one[block] for one in saved) for block in blocks}


def _modules_behind(built: Built) -> Modules:
    """Return the modules of the graph in which the kernels' names are looked up."""
    graph, artifact = built
    return modules_of(onnx.load(artifact.path if artifact.path.suffix == ".onnx" else graph.path))


def _spent(
    artifact: Artifact, modules: Modules, owner: _Owner, feeds: Sequence[Tensors], threads: int
) -> dict[str, float]:
    kernels, _ = record(artifact, feeds, threads=threads, runs=RUNS)
    spent: dict[str, float] = defaultdict(float)
    for kernel, (place, _) in zip(kernels, attribute(kernels, modules), strict=True):
        block = None if place is None else owner.of(place)
        if block is not None:
            spent[block] += kernel.ms
    return spent


class _Owner:
    """Which block a place of the graph belongs to."""

    def __init__(self, modules: Modules, blocks: Mapping[str, Sequence[Layer]]) -> None:
        self._paths: dict[tuple[str, Path], str] = {}
        self.named = True
        for block, layers in blocks.items():
            for layer in layers:
                place = modules.place_of(layer.output)
                if place is None or not place.path:
                    self.named = False
                else:
                    self._paths[str(place.part), place.path] = block

    def of(self, place: Place) -> str | None:
        """Return the block that shares most of the path; None where two share as much, or none shares any."""
        exact = self._paths.get((str(place.part), place.path))
        if exact is not None:
            return exact
        shared: dict[str, int] = {}
        for (part, path), block in self._paths.items():
            if part == str(place.part):
                length = _common(path, place.path)
                shared[block] = max(length, shared.get(block, 0))
        most = max(shared.values(), default=0)
        nearest = [block for block, length in shared.items() if length == most]
        return nearest[0] if most and len(nearest) == 1 else None


def _common(one: Path, other: Path) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
