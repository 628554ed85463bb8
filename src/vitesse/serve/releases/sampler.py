"""Which answers are looked at more closely, and how: compared with the reference's, or their scores kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vitesse.data.postprocess import decode
from vitesse.data.results import Result
from vitesse.errors import SpecError
from vitesse.serve.releases.agreement import agreement
from vitesse.serve.releases.state import REFERENCE
from vitesse.serve.work import Arrays
from vitesse.spec import ModelSpec


class Sampler(Protocol):
    """What the router asks."""

    def compared(self) -> bool:
        """Say whether this request's answer is compared with the reference's; it costs one more run."""
        ...

    def watched(self) -> bool:
        """Say whether this answer's scores are kept for the histogram; it costs reading the outputs."""
        ...

    def agreement(self, release: str, found: Arrays, expected: Arrays) -> float:
        """Return how far a release's outputs agree with the reference's, in 0..1; outputs it cannot read: 0."""
        ...

    def scores(self, release: str, outputs: Arrays) -> tuple[float, ...]:
        """Return the best score of each image, in 0..1; none of an image without any."""
        ...


class DecodedSampler:
    """Compares what the outputs mean, read as each release's spec says: it may be fed smaller images.

    Args:
        specs: release → its spec; all of one task.
        share: of the requests that are compared; watch: of those whose scores are kept; both in 0..1.
        random: gives numbers in [0, 1).
    """

    def __init__(
        self,
        specs: Callable[[str], ModelSpec],
        random: Callable[[], float],
        *,
        share: float = 0.02,
        watch: float = 0.1,
    ) -> None:
        self._specs, self._random = specs, random
        self._share, self._watch = share, watch

    def compared(self) -> bool:
        """Draw whether this request is compared."""
        return self._random() < self._share

    def watched(self) -> bool:
        """Draw whether this answer's scores are kept."""
        return self._random() < self._watch

    def agreement(self, release: str, found: Arrays, expected: Arrays) -> float:
        """Read both and compare; see `releases.agreement`."""
        try:
            return agreement(self._read(release, found), self._read(REFERENCE, expected))
        except (SpecError, ValueError):  # another shape, number of images or of classes: wrong
            return 0.0

    def scores(self, release: str, outputs: Arrays) -> tuple[float, ...]:
        """Read the outputs and return the best score of each image."""
        try:
            return tuple(float(one.scores[0]) for one in self._read(release, outputs) if len(one.scores))
        except SpecError:
            return ()

    def _read(self, release: str, outputs: Arrays) -> list[Result]:
        spec = self._specs(release)
        images = len(next(iter(outputs.values())))
        # One size for both: boxes are compared in the same pixels, whatever the release was fed with.
        size = self._specs(REFERENCE).preprocessing.size
        return decode(outputs, spec, [size] * images)
