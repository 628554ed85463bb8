"""Beside every plan of a run: which build it came from, so that the same build is not done twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vitesse.backends.tensorrt.manifest import PLAN_SUFFIX, ManifestError, read_manifest
from vitesse.storage import sha256_of, write_atomically


@dataclass(frozen=True)
class BuildRecord:
    """A finished build: the hash of everything it depends on, and what its `engines.EngineRow` says."""

    key: str
    stage: str = ""
    why: str = ""
    changes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def record_path(plan: Path) -> Path:
    """Return where the record of a plan lies."""
    return plan.with_name(plan.name + ".build.json")


def keep_record(plan: Path, record: BuildRecord) -> None:
    """Write the record of a plan; raises StorageError when it cannot be written."""
    write_atomically(record_path(plan), (json.dumps(asdict(record), indent=1) + "\n").encode())


def record_of(plan: Path) -> BuildRecord | None:
    """Return the record of a plan; None where it is absent or damaged, and then the plan is nobody's build."""
    try:
        raw = json.loads(record_path(plan).read_text(encoding="utf-8"))
        changes = {str(name): int(count) for name, count in raw["changes"].items()}
        notes = tuple(map(str, raw["notes"]))
        return BuildRecord(str(raw["key"]), str(raw["stage"]), str(raw["why"]), changes, notes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_record(folder: Path, key: str) -> tuple[Path, BuildRecord] | None:
    """Return the plan of a build done before and its record, if the plan is still the file that its manifest names."""
    for plan in sorted(folder.glob(f"*{PLAN_SUFFIX}")):
        record = record_of(plan)
        if record is None or record.key != key:
            continue
        try:
            manifest = read_manifest(plan)
        except ManifestError:
            continue
        if sha256_of(plan) == manifest.plan_sha256:
            return plan, record
    return None
