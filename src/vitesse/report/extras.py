"""What the report shows beside the ledger: pictures, time by part and by operator, notes. Kept in the run folder.

`report-data.json` holds the figures and names the files in `pictures/`, so that `vitesse report RUN` can
write the report again from the run folder alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitesse.errors import RunFolderError
from vitesse.storage import write_atomically

FILE = "report-data.json"
FOLDER = "pictures"
SCHEMA = 1


@dataclass(frozen=True)
class Picture:
    """One image with the results of the original and of the chosen artifact drawn on it, as PNG or JPEG."""

    title: str
    before_png: bytes
    after_png: bytes
    note: str = ""


@dataclass(frozen=True)
class OperatorBar:
    """Time in one operator type, mean milliseconds per run, in the original and in the chosen artifact."""

    op: str
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class ModuleBar:
    """Time in one part of the model, or before and after it, as `OperatorBar`; in the order of an image's way."""

    part: str
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class ReportExtras:
    """Everything the ledger does not hold. `operators_note`, `modules_note` and `pictures_note` say why a section
    is empty, or what it shows; `method` adds a sentence to how it was measured; `not_measured` is (what, why)."""

    pictures: tuple[Picture, ...] = ()
    operators: tuple[OperatorBar, ...] = ()
    modules: tuple[ModuleBar, ...] = ()
    pictures_note: str = ""
    operators_note: str = ""
    modules_note: str = ""
    method: str = ""
    not_measured: tuple[tuple[str, str], ...] = ()


def save_extras(run: Path, extras: ReportExtras) -> Path:
    """Write `report-data.json` and the pictures into the run folder and return the JSON's path.

    Pictures are written first: a JSON never names a file that is not there.

    Raises:
        StorageError: the folder cannot be written.
    """
    pictures = []
    for number, picture in enumerate(extras.pictures, start=1):
        names = {}
        for side, content in (("before", picture.before_png), ("after", picture.after_png)):
            name = f"{FOLDER}/{number:02d}-{side}{_suffix(content)}"
            write_atomically(run / name, content)
            names[side] = name
        pictures.append({"title": picture.title, "note": picture.note, **names})
    raw = {
        "schema": SCHEMA,
        "pictures": pictures,
        "operators": [asdict(bar) for bar in extras.operators],
        "modules": [asdict(bar) for bar in extras.modules],
        "pictures_note": extras.pictures_note,
        "operators_note": extras.operators_note,
        "modules_note": extras.modules_note,
        "method": extras.method,
        "not_measured": extras.not_measured,
    }
    write_atomically(run / FILE, (json.dumps(raw, indent=1, allow_nan=False) + "\n").encode())
    return run / FILE


def load_extras(run: Path) -> ReportExtras:
    """Read what `save_extras` wrote; a run that was interrupted before has none, and the report says so.

    Raises:
        RunFolderError: the file is damaged, of another schema, or names a picture that is gone or elsewhere.
    """
    path = run / FILE
    if not path.is_file():
        reason = "the run has no report-data.json; it was interrupted before the report"
        return ReportExtras(pictures_note=f"Not drawn: {reason}.", operators_note=f"Not profiled: {reason}.")
    try:
        raw = json.loads(path.read_text())
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']!r}, this version reads {SCHEMA}")
        return ReportExtras(
            pictures=tuple(_picture(run, one) for one in raw["pictures"]),
            operators=tuple(OperatorBar(**one) for one in raw["operators"]),
            modules=tuple(ModuleBar(**one) for one in raw.get("modules", ())),  # absent in older runs
            pictures_note=raw["pictures_note"],
            operators_note=raw["operators_note"],
            modules_note=raw.get("modules_note", ""),
            method=raw["method"],
            not_measured=tuple((str(what), str(why)) for what, why in raw["not_measured"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"cannot read the report's data {path}: {error}",
            expected=f"JSON of schema {SCHEMA} and the pictures it names",
            cause="a file was edited, cut off or deleted",
            fix=f"repeat the optimize command, or delete {path} for a report without pictures and operators",
        ) from error


def _picture(run: Path, raw: Mapping[str, Any]) -> Picture:
    def content(name: str) -> bytes:
        path = (run / name).resolve()
        if not path.is_relative_to((run / FOLDER).resolve()):
            raise ValueError(f"{name!r} lies outside {FOLDER}/")
        return path.read_bytes()

    return Picture(raw["title"], content(raw["before"]), content(raw["after"]), raw["note"])


def _suffix(content: bytes) -> str:
    return ".jpg" if content.startswith(b"\xff\xd8") else ".png"
