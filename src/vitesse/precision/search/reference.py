"""The original on the search images, and its FP32 build on the target: what every trial is held against."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.protocol import Array, LoadOptions, Tensors
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.data.results import Detections, Result
from vitesse.data.split import Split
from vitesse.errors import SpecError
from vitesse.measure import BASELINE, Candidate, opened, race
from vitesse.precision.search.distance import NOTHING_IN_COMMON, Distance
from vitesse.precision.search.found import Score, Speed
from vitesse.precision.search.subject import Pace
from vitesse.recipe import MeasureOptions
from vitesse.verify.accuracy import against, score

# Prepared images are kept up to this size, so that trials need not decode and resize them again.
KEPT_BYTES = 512 * 2**20
TIMED_IMAGES = 8


@dataclass(frozen=True)
class _Answer:
    """What a model said to one image; `logits` of a classifier."""

    result: Result
    logits: Array | None


class Reference:
    """Runs the original once over all search images; shared by all ways of quantising it for one runtime.

    Args:
        graph: in FP32, what is quantised.
        split: calibration images, never those that judge the result later: a set chosen by them would look better than
            it is. With labels where they have some, else agreement with the original is what counts.
        load: threads of a session.
        scratch: a folder for the FP32 build.

    Raises:
        NotVerified: without labels, the original finds nothing to agree with.
        BackendError: the runtime refuses the graph.
    """

    def __init__(
        self,
        graph: Artifact,
        split: Split,
        runtime: str,
        *,
        load: LoadOptions,
        measure: MeasureOptions,
        scratch: Path,
    ) -> None:
        self.graph, self.split, self.runtime = graph, split, runtime
        self.load, self.measure = load, measure
        self._prepared: list[Tensors] = []
        self._sizes: dict[int, tuple[int, int]] = {}
        began = time.perf_counter()
        self.build = backend(runtime).build(graph, Store(scratch)).artifact
        built = time.perf_counter()
        self._answers = self._run(self.build, range(len(split)))
        self.accuracy = score(self._results, split, graph.spec)
        image_s = (time.perf_counter() - built) / len(split)
        self.pace = Pace(built - began, image_s, self._race_seconds(image_s))

    def score(self, artifact: Artifact, images: int) -> Score:
        """Compare an artifact's answers with the original's, on `images` spread over all."""
        part = self.split.spread(images)
        place = {sample.path: at for at, sample in enumerate(self.split.samples)}
        chosen = [place[sample.path] for sample in part.samples]
        results = [self._answers[at].result for at in chosen]
        original = score(results, part, self.graph.spec)
        distance = Distance()
        try:
            found = self._run(artifact, chosen)
        except SpecError:  # outputs that cannot be read are worth nothing
            return Score(100 * original.value, NOTHING_IN_COMMON, len(part))
        for at, answer in zip(chosen, found, strict=True):
            _compare(distance, self._answers[at], answer)
        accuracy = score([one.result for one in found], part, self.graph.spec, reference=results)
        drop = against(accuracy, original).drop
        assert drop is not None
        return Score(drop, distance.value(), len(part))

    def race(self, artifacts: Mapping[str, Artifact]) -> dict[str, Speed]:
        """Measure artifacts and the FP32 build in one interleaved run."""
        entrants = {BASELINE: Candidate(self.build, self.load)}
        entrants |= {name: Candidate(artifact, self.load) for name, artifact in artifacts.items()}
        run = race(entrants, lambda spec: self.timed_feeds(), self.measure)
        baseline_ms = run.latency(BASELINE).p50
        speeds = {}
        for name in artifacts:
            ratio = run.ratio(BASELINE, name)
            low, high = (min(bound, 1e9) for bound in ratio.interval)  # too few rounds give no upper bound
            speeds[name] = Speed(ratio.value, low, high, run.latency(name).p50, baseline_ms)
        return speeds

    def timed_feeds(self) -> list[Tensors]:
        """Return a few prepared images, batch 1."""
        return [
            inputs
            for _, inputs in zip(range(TIMED_IMAGES), self._feeds(range(len(self.split))), strict=False)
        ]

    @property
    def _results(self) -> list[Result]:
        return [answer.result for answer in self._answers]

    def _run(self, artifact: Artifact, chosen: Sequence[int]) -> list[_Answer]:
        spec, answers = self.graph.spec, []
        with opened(Candidate(artifact, self.load)) as session:
            for at, inputs in zip(chosen, self._feeds(chosen), strict=True):
                outputs = session.run(inputs).outputs
                result = decode(outputs, spec, [self._sizes[at]])[0]
                logits = None if isinstance(result, Detections) else np.array(outputs[spec.outputs["logits"]])
                answers.append(_Answer(result, logits))
        return answers

    def _feeds(self, chosen: Sequence[int]) -> Iterator[Tensors]:
        for at in chosen:
            if at < len(self._prepared):
                yield self._prepared[at]
                continue
            sample = self.split.samples[at]
            pixels = sample.read()
            made = feeds([pixels], self.graph.spec, [str(sample.path)])
            self._sizes[at] = (pixels.shape[0], pixels.shape[1])
            if at == len(self._prepared) and self._fits(made):
                self._prepared.append(made)
            yield made

    def _fits(self, made: Tensors) -> bool:
        return (len(self._prepared) + 1) * sum(array.nbytes for array in made.values()) <= KEPT_BYTES

    def _race_seconds(self, image_s: float) -> float:
        """Return what a race of three takes: its seconds, or its rounds where calls are slow; and warming up."""
        return max(self.measure.seconds, 3 * self.measure.min_rounds * max(image_s, 0.05)) + 3 * 5 * image_s


def _compare(distance: Distance, original: _Answer, found: _Answer) -> None:
    if isinstance(original.result, Detections) and isinstance(found.result, Detections):
        distance.add_detections(original.result, found.result)
    elif original.logits is not None and found.logits is not None:
        distance.add_logits(original.logits, found.logits)
