"""`vitesse serve` with a release that misbehaves on command: the server of the drills in serve_drills_http.py.

    DRILL_FAULT=FILE python benchmarks/serve_drill_server.py RUN [--compared 0.02] [--slow-factor 2]

The sessions of every release, not those of the reference, do what FILE says at each run: the name of a fault below, or
nothing. `--compared` is the share of requests whose answers are compared with the reference's, `--slow-factor` how many
times as slow as it a release may be.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from vitesse.artifact import Artifact
from vitesse.backends import backend
from vitesse.backends.closing import Closing
from vitesse.backends.fake import FakeSession, Fault, with_nan
from vitesse.backends.protocol import Array, Engine, LoadOptions, Outcome, Session, Tensors
from vitesse.cli import main as vitesse
from vitesse.run import open_run
from vitesse.serve import served, variants
from vitesse.serve.releases.breaker import Thresholds

FAULT = "DRILL_FAULT"
SLOW, TIMES = "slow", 12


def moved(name: str, array: Array) -> Array:
    """Every box a tenth of its width to the right: scores, classes and shapes stay right."""
    if array.shape[-1] != 4:
        return array
    boxes = array.copy()
    boxes[..., 0] += 0.1 * boxes[..., 2]
    return boxes


FAULTS: Mapping[str, Fault] = {  # beside them: SLOW, which runs everything TIMES times
    "exceptions": Fault(crash="the kernel failed (injected)"),
    "NaN": Fault(change=with_nan),
    "boxes": Fault(change=moved),
}


class DrilledSession(Closing):
    """A session that has the fault which the file names at each run."""

    def __init__(self, inner: Session, file: Path) -> None:
        self._inner, self._file = inner, file
        self._faulty = {name: FakeSession(inner, fault) for name, fault in FAULTS.items()}

    def run(self, feeds: Tensors) -> Outcome:
        fault = self._file.read_text()
        # Runs and not a pause: whatever else keeps the machine busy slows the reference as much.
        for _ in range(TIMES - 1 if fault == SLOW else 0):
            self._inner.run(feeds)
        return self._faulty.get(fault, self._inner).run(feeds)

    def close(self) -> None:
        self._inner.close()


class DrilledEngine(Closing):
    """An engine of such sessions."""

    def __init__(self, inner: Engine, file: Path) -> None:
        self._inner, self._file = inner, file
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def session(self) -> DrilledSession:
        return DrilledSession(self._inner.session(), self._file)

    def close(self) -> None:
        self._inner.close()


class Runtime:
    """The runtime that the server loads artifacts with: every one but the original is drilled."""

    def __init__(self, name: str, original: str, file: Path) -> None:
        self._inner, self._original, self._file = backend(name), original, file

    def load(self, artifact: Artifact, options: LoadOptions) -> Engine:
        engine = self._inner.load(artifact, options)
        return engine if artifact.sha256 == self._original else DrilledEngine(engine, self._file)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--compared", type=float, default=0.02)
    parser.add_argument("--slow-factor", type=float, default=Thresholds().slow_factor)
    options = parser.parse_args()
    original, file = open_run(options.run).ledger.rows[0].artifact, Path(os.environ[FAULT])
    assert original is not None
    sampler = served.DecodedSampler
    variants.backend = lambda name: Runtime(name, original.sha256, file)
    served.DecodedSampler = lambda specs, random, share: sampler(specs, random, share=options.compared)
    served.Breaker = partial(served.Breaker, thresholds=Thresholds(slow_factor=options.slow_factor))
    return vitesse(["serve", str(options.run), "--port", "0", "--drain-s", "0"])


if __name__ == "__main__":
    sys.exit(main())
