"""What every step gained and cost: rows with a verdict, written to `ledger.json` (schema 1).

Units: accuracy and value in 0..1, drop in points (0.5 = half a point of AP or top-1), latency in milliseconds,
throughput in images per second, memory in MB (1e6 bytes), gain = baseline p50 / this p50 from one interleaved run.
A field that was not measured is null, and `unmeasured` says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from vitesse.errors import RunFolderError
from vitesse.storage import write_atomically

SCHEMA = 1


class Verdict(StrEnum):
    """How a row ends. Unknown is never a pass."""

    PASS = "PASS"
    REJECTED = "REJECTED"  # works, but costs too much accuracy or is not faster
    FAIL = "FAIL"  # the stage broke the model
    UNKNOWN = "UNKNOWN"  # could not be checked


@dataclass(frozen=True)
class ArtifactRef:
    """A file of the run: `path` relative to the run folder, content hash, size in bytes, and the runtime for it."""

    path: str
    sha256: str
    bytes: int
    backend: str = "onnxruntime"


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the validation images.

    `metric` is `coco_ap`, `top1` (against labels) or `agreement` (against the original model, no labels at hand).
    `value` in 0..1; `drop` in points against the source row, None on the source row itself when nothing is lost
    by definition; `details` holds the secondary figures (AP50, AP75, top-5, …) in 0..1.
    """

    metric: str
    value: float
    drop: float | None
    images: int
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Parity:
    """Worst distance to the untouched model's outputs: largest absolute and relative difference, smallest cosine.

    Each is the worst over all outputs; `worst_output` is the one with the largest relative difference.
    """

    max_abs: float
    cosine: float
    max_rel: float | None = None
    worst_output: str = ""
    first_diverging: str = ""


@dataclass(frozen=True)
class Latency:
    """Quantiles of one call at batch 1, milliseconds."""

    p50: float
    p90: float
    p99: float
    mean: float | None = None
    samples: int = 0


@dataclass(frozen=True)
class Row:
    """One step. `gain_spread` is the interquartile range of the paired per-round ratios behind `gain`;

    `run_options` are the LoadOptions the figures were taken with, `seconds` the time the step and its checks took;
    `input_size` (height, width) is what the artifact is fed with, where that is not the source's size; `preprocessing`
    all of its spec's rules, as JSON has them, where they are not the source's. `flops` are the operations of one image,
    two to a multiply-add, and `parameters` the trained numbers, both counted on the graph; null for an engine, which
    computes what the graph computes that it was built from. `training_log` is the path of a training's `training.csv`,
    relative to the run folder.
    """

    stage: str
    verdict: Verdict
    reason: str
    changes: Mapping[str, int] = field(default_factory=dict)
    artifact: ArtifactRef | None = None
    accuracy: Accuracy | None = None
    parity: Parity | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    memory_mb: float | None = None
    gain: float | None = None
    gain_spread: tuple[float, float] | None = None
    load_ms: float | None = None
    cold_start_ms: float | None = None
    seconds: float | None = None
    run_options: Mapping[str, int] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    preprocessing: Mapping[str, Any] | None = None
    flops: float | None = None
    parameters: int | None = None
    training_log: str | None = None
    notes: tuple[str, ...] = ()
    unmeasured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """All rows of a run. `chosen` is the index of the row whose artifact is deployed, None while undecided.

    `final` compares the chosen artifact, interleaved, with the original as people run it (the runtime's default
    options): `gain`, `gain_spread` [low, high], `baseline_p50_ms`, `chosen_p50_ms`. `latency_budget` holds
    `budget_ms`, `p50_ms`, `met` (None: could not be told) and `reason`.
    """

    source: str
    target: str
    rows: tuple[Row, ...] = ()
    chosen: int | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    max_drop: float = 0.5
    latency_budget: Mapping[str, Any] | None = None
    final: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    def with_row(self, row: Row) -> Ledger:
        """Return a ledger with `row` appended."""
        return replace(self, rows=(*self.rows, row))

    def chosen_row(self) -> Row:
        """Return the row that was chosen; raises RunFolderError while the run is unfinished."""
        if self.chosen is None:
            raise RunFolderError(
                "this run has not chosen an artifact yet",
                expected="a finished run",
                cause="optimize was interrupted",
                fix="repeat the same `vitesse optimize` command: it goes on from the finished steps",
            )
        return self.rows[self.chosen]

    def to_json(self) -> str:
        """Serialise; NaN is not JSON, so a stray NaN raises here rather than reaching a reader."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write atomically, so that an interrupted run leaves the previous ledger."""
        write_atomically(path, self.to_json().encode())


def row_from(raw: Mapping[str, Any]) -> Row:
    """Build a row from parsed JSON; raises KeyError, TypeError or ValueError when it is damaged."""

    def build(kind: type[Any], value: Any) -> Any:
        return None if value is None else kind(**value)

    known = dict(raw)
    known["verdict"] = Verdict(raw["verdict"])
    for name, kind in (
        ("artifact", ArtifactRef),
        ("accuracy", Accuracy),
        ("parity", Parity),
        ("latency_ms", Latency),
    ):
        known[name] = build(kind, raw.get(name))
    spread = raw.get("gain_spread")
    known["gain_spread"] = None if spread is None else (float(spread[0]), float(spread[1]))
    size = raw.get("input_size")
    known["input_size"] = None if size is None else (int(size[0]), int(size[1]))
    known["notes"] = tuple(raw.get("notes", ()))
    return Row(**known)


def load_ledger(path: Path) -> Ledger:
    """Read a `ledger.json`; raises RunFolderError when it is absent, damaged or of another schema."""
    if not path.is_file():
        raise RunFolderError(
            f"no ledger at {path}",
            expected="a run folder written by `vitesse optimize`",
            fix=f"vitesse optimize MODEL --data IMAGES --out {path.parent}",
        )
    try:
        raw = json.loads(path.read_text())
        if raw.get("schema") != SCHEMA:
            raise ValueError(f"schema {raw.get('schema')!r}, this version reads {SCHEMA}")
        return Ledger(**{**raw, "rows": tuple(row_from(row) for row in raw["rows"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(
            f"cannot read the ledger {path}: {error}",
            expected=f"JSON of schema {SCHEMA}",
            cause="the file was edited, cut off, or written by another version",
            fix="optimize again into a new folder",
        ) from error
