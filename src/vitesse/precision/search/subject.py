"""What is searched: one way of quantising one graph for one runtime, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vitesse.artifact import Artifact
from vitesse.precision.search.found import Blocks, Score, Speed


@dataclass(frozen=True)
class Pace:
    """Seconds that making an artifact, scoring it on one image, and a race of three sessions take, for the estimate."""

    build_s: float
    image_s: float
    race_s: float


class Subject(Protocol):
    """One way of quantising; the fastest set of its blocks inside the budget is looked for.

    Attributes:
        key: a hash of all that a measurement depends on besides blocks and images: graph, ranges, options, runtime,
            images, processor.
        number: what activations become: `int8`, `uint8` or `fp8`; of two numbers the target decides by its speed.
        runtime: what it is built for.
        blocks: names, in the order of the graph.
        shares: of the operations of all blocks, 0 to 1, by block; empty where shapes are not known.
        metric: `coco_ap`, `top1` or `agreement`; original: its value before, 0 to 1, on all `images`.
        pace: how long things take.
    """

    # Read only, so that whoever implements it may keep a tuple where a sequence is asked for.
    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def number(self) -> str: ...  # noqa: D102

    @property
    def runtime(self) -> str: ...  # noqa: D102

    @property
    def blocks(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def shares(self) -> Mapping[str, float]: ...  # noqa: D102

    @property
    def metric(self) -> str: ...  # noqa: D102

    @property
    def original(self) -> float: ...  # noqa: D102

    @property
    def images(self) -> int: ...  # noqa: D102

    @property
    def pace(self) -> Pace: ...  # noqa: D102

    def lowered(self, blocks: Blocks) -> Artifact:
        """Quantise these blocks and build for the runtime; raises ModelError or BackendError where that is refused."""
        ...

    def score(self, artifact: Artifact, images: int) -> Score:
        """Compare with the original on `images` of the images, spread over all of them."""
        ...

    def race(self, artifacts: Mapping[str, Artifact]) -> Mapping[str, Speed]:
        """Measure all of them and the FP32 build in one interleaved run; the result has the same names."""
        ...

    def gains(self, artifact: Artifact) -> Mapping[str, float] | None:
        """Return the milliseconds of one call that each block saves in `artifact`, all lowered; negative where slower.

        None where the runtime does not say where its time goes.
        """
        ...
