"""What lowering saves, block by block: the runtime's own times of the FP32 build less those of the lowered one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx

from vitesse.artifact import Artifact
from vitesse.backends.protocol import Tensors
from vitesse.precision.layers import Layer
from vitesse.profile.attribution import attribute
from vitesse.profile.families import family
from vitesse.profile.modules import Modules, Place, modules_of
from vitesse.profile.recording import record
from vitesse.scopes import Path

# What disturbs a kernel only adds to its time, so the least of several recordings is what the kernel itself takes.
RECORDINGS, RUNS = 6, 2
# Lowering leaves them as they are, and where they stand beside a lowered layer their names move to another module.
UNTOUCHED = frozenset({"pooling", "normalisation", "attention"})
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
    sides = [(one[1], _modules_behind(one)) for one in (before, after)]
    least: list[dict[str, tuple[str, float]]] = [{}, {}]
    for _ in range(RECORDINGS):
        # In turn, so that a machine that slows down does so for both.
        for (artifact, modules), known in zip(sides, least, strict=True):
            for kernel, block, ms in _kernels(artifact, modules, owner, feeds, threads):
                known[kernel] = (block, min(ms, known.get(kernel, (block, ms))[1]))
    old, new = (_summed(known) for known in least)
    return {block: old[block] - new[block] for block in blocks}


def _modules_behind(built: Built) -> Modules:
    """Return the modules of the graph in which the kernels' names are looked up."""
    graph, artifact = built
    return modules_of(onnx.load(artifact.path if artifact.path.suffix == ".onnx" else graph.path))


def _kernels(
    artifact: Artifact, modules: Modules, owner: _Owner, feeds: Sequence[Tensors], threads: int
) -> Iterator[tuple[str, str, float]]:
    """Yield (kernel, its block, milliseconds) of one recording."""
    kernels, _ = record(artifact, feeds, threads=threads, runs=RUNS)
    for kernel, (place, _) in zip(kernels, attribute(kernels, modules), strict=True):
        block = None if place is None or family(kernel.operator) in UNTOUCHED else owner.of(place)
        if block is not None:
            yield kernel.name, block, kernel.ms


def _summed(kernels: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for block, ms in kernels.values():
        spent[block] += ms
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
