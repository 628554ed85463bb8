"""What lies in benchmarks/results of the races and tests of `torch-cuda`: the newest of each, and the targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
TARGET = "torch-cuda"
# Model, batch, precision → milliseconds at most; None: a row without a target.
TARGETS: Mapping[tuple[str, int, str], float | None] = {
    ("vit_b16", 32, "fp16"): 2.3,
    ("vit_b16", 32, "fp8"): 1.7,
    ("vit_l16", 32, "fp16"): 7.5,
    ("vit_l16", 32, "fp8"): 5.0,
    ("vit_b16", 1, "fp16"): 0.45,
    ("detr_r50", 1, "fp16"): 1.3,
    ("detr_r50", 8, "fp16"): 5.0,
    ("vit_h14", 32, "fp16"): None,
    ("vit_h14", 32, "fp8"): None,
    ("dinov2_b14", 8, "fp16"): None,
    ("dinov2_b14", 8, "fp8"): None,
}

Found = Mapping[str, Any]
Key = tuple[str, int, str]


@dataclass
class Results:
    """What lies in results/: groups of races by `MODEL:BATCH`, profiles by row, accuracy, tests; the newest of each.

    Candidates of different runs are never mixed: a group is taken as a whole, the newest in which the target itself was
    measured.
    """

    groups: dict[str, Found] = field(default_factory=dict)
    profiles: dict[str, Found] = field(default_factory=dict)
    accuracy: Found | None = None
    outcomes: Mapping[str, str] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)

    def of(self, key: Key) -> Found:
        """The group of a row; empty where there is none, or where it has not this precision."""
        group = self.groups.get(f"{key[0]}:{key[1]}", {})
        return group if key[2] in group.get("precisions", ()) else {}


def read(folder: Path = RESULTS) -> Results:
    """Read all results, older ones first."""
    records = [(path, json.loads(path.read_text())) for path in folder.glob("torch_cuda_*.json")]
    known = [(path, record) for path, record in records if "kind" in record]
    found = Results()
    for path, record in sorted(known, key=lambda one: one[1]["environment"]["date"]):
        groups = record.get("groups", {})
        found.groups |= {name: one for name, one in groups.items() if name not in found.groups or raced(one)}
        found.profiles |= record.get("rows", {})
        found.accuracy = record.get("accuracy", found.accuracy)
        found.outcomes = record.get("outcomes", found.outcomes)
        found.origins.append(origin(path.name, record))
    found.groups, found.profiles = dict(in_order(found.groups)), dict(in_order(found.profiles))
    return found


def in_order(named: Mapping[str, Found]) -> list[tuple[str, Found]]:
    """Groups or profiles as TARGETS has them, whatever run they are of; those without a row there at the end."""
    rows = [":".join(map(str, key)) for key in TARGETS]

    def place(entry: tuple[str, Found]) -> int:
        return next((at for at, row in enumerate(rows) if f"{row}:".startswith(f"{entry[0]}:")), len(rows))

    return sorted(named.items(), key=place)


def raced(group: Found) -> bool:
    """Whether a group has a figure of the target itself."""
    return any(own_ms(group, precision) is not None for precision in group.get("precisions", ()))


def own_ms(group: Found, precision: str) -> float | None:
    """Milliseconds of the target itself; None where it was not measured."""
    found: float | None = group.get("candidates", {}).get(f"{TARGET} {precision}", {}).get("ms")
    return found


def origin(name: str, record: Found) -> str:
    """File, command, machine, versions and day of a record."""
    environment = record["environment"]
    driver = next((f", driver {one['driver']}" for one in environment.get("gpus", []) if "driver" in one), "")
    gpu = environment.get("gpu", "no GPU")
    return (
        f"`{name}`: `{record['command']}` on {gpu}{driver}, torch {environment['torch']} "
        f"(CUDA {environment['cuda'] or 'none'}), {environment['date'][:10]}."
    )
