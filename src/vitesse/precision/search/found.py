"""What a search tried and found: values that are written to the run and shown in its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vitesse.errors import RunFolderError
from vitesse.storage import write_atomically

SCHEMA = 1

Blocks = frozenset[str]


@dataclass(frozen=True)
class Score:
    """How far a set of lowered blocks is from the original on the search images.

    drop: accuracy lost, in points (0.5 = half a point of AP, top-1 or agreement), negative where gained.
    error: relative distance of the outputs, 0 = equal (see `distance`); on few images far less noisy than `drop`.
    images: on how many of the search images.
    """

    drop: float
    error: float
    images: int


@dataclass(frozen=True)
class Speed:
    """From one interleaved run: time of the FP32 build over time of this one, its 95 % interval; p50 of both in ms."""

    gain: float
    low: float
    high: float
    latency_ms: float
    baseline_ms: float

    @property
    def faster(self) -> bool:
        """Whether it is faster than the FP32 build beyond noise."""
        return self.low > 1.0


@dataclass(frozen=True)
class Trial:
    """One set of blocks that was lowered.

    variant: how it was quantised; empty for the way that was given first.
    speed: where it was raced; `estimated_ms` is added up from the gains of its blocks.
    seconds: that making and scoring it took.
    verdict: in plain words, as `rejected: AP −12.4`.
    """

    blocks: Blocks
    score: Score
    speed: Speed | None = None
    estimated_ms: float | None = None
    seconds: float = 0.0
    variant: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """One block: `score` when it alone is lowered, None where that was not tried.

    share: of the operations of all blocks, 0 to 1, None where not known. gained_ms: what lowering it saves of one call;
    None where not known. fate: what became of it and why, in words.
    """

    block: str
    score: Score | None
    share: float | None
    gained_ms: float | None
    lowered: bool
    fate: str


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    chosen: blocks to lower; empty where nothing can be, and `reason` says why in words.
    variant: how to quantise them; empty for the way that was given first.
    trials: in the order in which they were made.
    max_drop: the budget in points; allowed: the part of it that a set may use on the few search images.
    metric: `coco_ap`, `top1` or `agreement`; original: its value before, 0 to 1, on `images` images.
    baseline_ms: p50 of the FP32 build, None where nothing was raced.
    estimate_s: said before the first trial; seconds: what it took, without what an earlier call had finished.
    notes: what must be known to read the figures.
    """

    runtime: str
    chosen: Blocks
    reason: str
    variant: str
    trials: tuple[Trial, ...]
    sensitivities: tuple[Sensitivity, ...]
    max_drop: float
    allowed: float
    metric: str
    original: float
    images: int
    baseline_ms: float | None
    estimate_s: float
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; sets of blocks as sorted lists."""
        raw = asdict(self)
        raw["chosen"] = sorted(self.chosen)
        for trial in raw["trials"]:
            trial["blocks"] = sorted(trial["blocks"])
        return {"schema": SCHEMA, **raw}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Build from what `to_json` gave; raises ValueError, TypeError or KeyError when it is damaged."""
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']!r}, this version reads {SCHEMA}")
        known = {name: value for name, value in raw.items() if name != "schema"}
        known["chosen"] = frozenset(raw["chosen"])
        known["trials"] = tuple(_trial(one) for one in raw["trials"])
        known["sensitivities"] = tuple(
            Sensitivity(**{**one, "score": None if one["score"] is None else Score(**one["score"])})
            for one in raw["sensitivities"]
        )
        known["notes"] = tuple(raw["notes"])
        return cls(**known)

    def save(self, run: Path) -> Path:
        """Write `search-RUNTIME.json` into the run folder, for its report; raises StorageError."""
        path = run / f"search-{self.runtime.replace(':', '-').replace('/', '-')}.json"
        write_atomically(path, (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode())
        return path


def load_found(path: Path) -> Found:
    """Read what `Found.save` wrote.

    Raises:
        RunFolderError: the file is damaged or of another schema.
    """
    try:
        return Found.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(
            f"cannot read the search's outcome {path}: {error}",
            expected=f"JSON of schema {SCHEMA}",
            cause="the file was edited, cut off, or written by another version",
            fix=f"repeat the optimize command, or delete {path} for a report without it",
        ) from error


def _trial(raw: Mapping[str, Any]) -> Trial:
    speed = None if raw["speed"] is None else Speed(**raw["speed"])
    return Trial(
        **{**raw, "blocks": frozenset(raw["blocks"]), "score": Score(**raw["score"]), "speed": speed}
    )
