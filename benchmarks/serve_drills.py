"""Rollback drills: a release that misbehaves from one request on, and what its clients notice.

    python benchmarks/serve_drills.py [--out benchmarks/results/serve_drills.json]

Everything but the sessions and the clock is the server's own: router, breaker, sampler, state. A release answers 200
requests rightly, then it has the fault; a request arrives every 20 ms of a clock that is turned by hand, so that the
figures are the same on every machine. Lost is a request that got no answer, or an error; wrong, one whose answer holds
NaN or does not agree with the original's: a fault that shows only by comparison is found after some such answers.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitesse.data.postprocess import decode
from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.agreement import agreement
from vitesse.serve.releases.breaker import Breaker, Thresholds
from vitesse.serve.releases.observer import Unobserved
from vitesse.serve.releases.router import Router
from vitesse.serve.releases.sampler import DecodedSampler
from vitesse.serve.work import Array, Arrays, Executed, Work
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

SPEC = ModelSpec(
    Task.DETECTION,
    Decode.DETR_SOFTMAX,
    "images",
    {"logits": "logits", "boxes": "boxes"},
    Preprocessing((64, 64)),
)
QUERIES, CLASSES = 10, 4
STEP_S, RUN_S = 0.02, 0.01
HEALTHY, MOST = 200, 20_000
RELEASE = "int8-drilled"

Change = Callable[[dict[str, Array]], dict[str, Array]]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Fault:
    """What a session does from now on: raises `crash`, takes `slower` times as long, or changes its outputs."""

    crash: str = ""
    slower: float = 1.0
    change: Change | None = None


NONE = Fault()


class Session:
    """An executor that answers at once with detections made from the feeds; its fault can be changed."""

    def __init__(self, fault: Fault = NONE) -> None:
        self.fault, self.runs = fault, 0

    def submit(self, work: Work) -> None:
        self.runs += 1
        if self.fault.crash:
            work.done.set_exception(Refusal(500, "backend", self.fault.crash))
            return
        outputs = detections_of(work.feeds)
        if self.fault.change is not None:
            outputs = self.fault.change(outputs)
        work.done.set_result(Executed(outputs, 0.0, RUN_S * self.fault.slower, work.items, 0))


def detections_of(feeds: Arrays) -> dict[str, Array]:
    """Confident detections that depend on the image: the first pixel seeds them."""
    logits, boxes = [], []
    for image in feeds["images"]:
        rng = np.random.default_rng(int(image.flat[0]))
        raw = rng.normal(0, 0.5, (QUERIES, CLASSES + 1))
        raw[np.arange(QUERIES), rng.integers(0, CLASSES + 1, QUERIES)] += 5.0
        logits.append(raw)
        boxes.append(np.hstack([rng.uniform(0.3, 0.7, (QUERIES, 2)), rng.uniform(0.2, 0.4, (QUERIES, 2))]))
    return {"logits": np.array(logits, np.float32), "boxes": np.array(boxes, np.float32)}


def _with_nan(outputs: dict[str, Array]) -> dict[str, Array]:
    logits = outputs["logits"].copy()
    logits[:, 0, 0] = np.nan
    return {**outputs, "logits": logits}


def _moved(outputs: dict[str, Array]) -> dict[str, Array]:
    """Every box a tenth of its width to the right: scores, classes and shapes stay right."""
    boxes = outputs["boxes"].copy()
    boxes[..., 0] += 0.1 * boxes[..., 2]
    return {**outputs, "boxes": boxes}


def _less_sure(outputs: dict[str, Array]) -> dict[str, Array]:
    """Half of the logits, as with a wrong scale: the same classes with lower scores."""
    return {**outputs, "logits": (outputs["logits"] * np.float32(0.4)).astype(np.float32)}


FAULTS: Mapping[str, Fault] = {
    "exceptions": Fault(crash="CUDA error: misaligned address"),
    "NaN": Fault(change=_with_nan),
    "5 times as slow": Fault(slower=5.0),
    "boxes a tenth of their width off": Fault(change=_moved),
    "scores too low": Fault(change=_less_sure),
}


class Recorder(Unobserved):
    """Keeps the rollback."""

    def __init__(self) -> None:
        self.rollback: tuple[str, str] | None = None

    def rolled_back(self, release: str, kind: str, why: str) -> None:
        self.rollback = (kind, why)


@dataclass(frozen=True)
class Drill:
    """What came of one: requests with the fault until traffic was back, and what became of them."""

    fault: str
    requests_until_rollback: int
    seconds_until_rollback: float
    by_the_reference: int
    wrong: int
    lost: int
    kind: str
    why: str


def drill(name: str, fault: Fault, *, share: float = 0.1, seed: int = 3) -> Drill:
    """Serve 200 good requests, then bad ones until the release is rolled back; `share` of them are compared."""
    clock, recorder, numbers = Clock(), Recorder(), random.Random(seed)
    release, reference = Session(), Session()
    sampler = DecodedSampler(lambda _: SPEC, numbers.random, share=share, watch=0.2)
    router = Router(
        {"reference": reference, RELEASE: release}, "reference", RELEASE, Breaker(clock, Thresholds()), sampler,
        clock, numbers.random, recorder, wall=clock,
    )  # fmt: skip
    fallbacks = wrong = lost = 0
    for number in range(HEALTHY + MOST):
        if number == HEALTHY:
            release.fault = fault
        clock.now += STEP_S
        feeds = {"images": np.full((1, 3, 4, 4), number, np.float32)}
        try:
            routed = router.submit(Work(feeds, clock.now, clock.now + 30)).result(timeout=0)
        except (Refusal, TimeoutError):
            lost += 1
            continue
        if number >= HEALTHY:
            fallbacks += routed.served_by == "reference"
            wrong += not _right(routed.executed.outputs, feeds)
        if recorder.rollback is not None:
            break
    if recorder.rollback is None:
        raise SystemExit(f"the drill {name!r} was never rolled back")
    faulty = number + 1 - HEALTHY
    kind, why = recorder.rollback
    return Drill(name, faulty, round(faulty * STEP_S, 2), fallbacks, wrong, lost, kind, why)


def _right(outputs: Arrays, feeds: Arrays) -> bool:
    found, expected = (decode(one, SPEC, [(64, 64)]) for one in (outputs, detections_of(feeds)))
    return agreement(found, expected) > 0.99 and bool(np.isfinite(outputs["logits"]).all())


def table(drills: list[Drill]) -> str:
    """Return the drills as a Markdown table."""
    lines = [
        "| fault | found as | requests until rollback | at 50 a second, s | lost | wrong answers | reason |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.fault} | {one.kind} | {one.requests_until_rollback} | {one.seconds_until_rollback:.1f} | {one.lost} | "
        f"{one.wrong} | {one.why} |"
        for one in drills
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve_drills.json"))
    options = parser.parse_args()
    drills = [drill(name, fault) for name, fault in FAULTS.items()]
    print(table(drills))
    record = {
        "command": "python benchmarks/serve_drills.py",
        "compared": 0.1,
        "thresholds": asdict(Thresholds()),
        "drills": [asdict(one) for one in drills],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
