"""Images from file to result, step by step on the clock: what `vitesse predict` does, taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Outcome, Tensors
from vitesse.data.images import ImageSource, Pixels, decode_image
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.errors import DataError
from vitesse.profile.recording import WARM_UP, Kernel, recorder
from vitesse.spec import ModelSpec

READ, PREPARE, RESULTS = "read the image", "prepare the tensor", "read the outputs"


@dataclass(frozen=True)
class Calls:
    """Mean milliseconds per image.

    `around_ms`: Vitesse's own steps by name, in their order, the last one behind the call; `feeds` are the last ones.
    """

    whole_ms: float
    call_ms: float
    around_ms: Mapping[str, float]
    feeds: Tensors
    kernels: tuple[Kernel, ...] = ()
    notes: tuple[str, ...] = ()


def random_images(spec: ModelSpec, count: int = 4) -> list[Pixels]:
    """Return images of random smooth colours, of the size the model takes: good for timing, not for accuracy."""
    height, width = spec.preprocessing.size
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:height, 0:width]
    waves = [
        127 + 127 * np.sin(down / rng.uniform(5, 50) + across / rng.uniform(5, 50)) for _ in range(3 * count)
    ]
    return [np.stack(waves[3 * at : 3 * at + 3], axis=-1).astype(np.uint8) for at in range(count)]


def profiled_calls(artifact: Artifact, images: Sequence[ImageSource], *, threads: int, runs: int) -> Calls:
    """Time `runs` images with the runtime's profiler on, after a warm-up.

    Raises:
        DataError: no images, or one that cannot be read.
        UsageError, BackendError: as `recording.recorder`.
    """
    _check(images, runs)
    with recorder(artifact, threads) as recording:
        clock = _Clock(artifact.spec, images, recording.run)
        clock.run(WARM_UP)
        recording.start()
        found = clock.run(runs)
        return Calls(
            found.whole_ms, found.call_ms, found.around_ms, found.feeds, recording.kernels(), found.notes
        )


def unprofiled_calls(artifact: Artifact, images: Sequence[ImageSource], *, threads: int, runs: int) -> Calls:
    """Time the same without the profiler; raises as `profiled_calls`."""
    _check(images, runs)
    with (
        backend(artifact.backend).load(artifact, LoadOptions(threads=threads)) as engine,
        engine.session() as session,
    ):
        clock = _Clock(artifact.spec, images, session.run)
        clock.run(WARM_UP)
        return clock.run(runs)


def _check(images: Sequence[ImageSource], runs: int) -> None:
    if not images or runs < 1:
        raise DataError(
            "there is nothing to feed the model",
            expected="at least one image and one run",
            fix="--data IMAGES",
        )


class _Clock:
    """Runs images through all steps and keeps the time of each."""

    def __init__(
        self, spec: ModelSpec, images: Sequence[ImageSource], call: Callable[[Tensors], Outcome]
    ) -> None:
        self.spec, self.images, self.call = spec, images, call

    def run(self, runs: int) -> Calls:
        """Run `runs` images; the whole has a clock of its own, so that the steps can be held against it."""
        whole, called, steps = 0.0, 0.0, np.zeros(3)
        given: Tensors = {}
        for turn in range(runs):
            start = perf_counter_ns()
            pixels = decode_image(self.images[turn % len(self.images)])
            read = perf_counter_ns()
            given = feeds([pixels], self.spec)
            prepared = perf_counter_ns()
            outcome = self.call(given)
            answered = perf_counter_ns()
            decode(outcome.outputs, self.spec, [(pixels.shape[0], pixels.shape[1])])
            end = perf_counter_ns()
            steps += (read - start, prepared - read, end - answered)
            whole += end - start
            called += outcome.host_ms
        mean = dict(zip((READ, PREPARE, RESULTS), (steps / runs / 1e6).tolist(), strict=True))
        notes: tuple[str, ...] = ()
        if not isinstance(self.images[0], str | bytes) and not hasattr(self.images[0], "__fspath__"):
            mean.pop(READ)
            notes = ("the images were given as pixels, so that reading files is not in it",)
        return Calls(whole / runs / 1e6, called / runs, mean, given, notes=notes)
