"""training.csv: one row for every step that is worth a row, readable while the training goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitesse.errors import VitesseError
from vitesse.storage import storage_error, write_atomically

NOTE = "note"


class Log:
    """Appends rows to a CSV file; each is on disk when `write` returns.

    The columns are those of the first row that has a loss; rows before it wait for them.

    Args:
        path: the file; rows of an earlier start are kept up to `step`, later ones are dropped, because the
            training goes on from there and will write them again.
        step: how many steps are done; with 0 nothing is kept.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._waiting: list[Mapping[str, float | str]] = []
        kept = [row for row in _rows(path) if step > 0 and float(row["step"]) <= step]
        self._columns = list(kept[0]) if kept else []
        write_atomically(path, self._text(kept, header=True).encode())

    def write(self, row: Mapping[str, float | str]) -> None:
        """Append `row`: "step", "seconds", and what else there is of the columns that `read_log` names.

        Raises:
            VitesseError: the row has a column that the first one had not.
            StorageError: the file cannot be written.
        """
        self._waiting.append(row)
        header = not self._columns
        if header and "loss" not in row:
            return
        if header:
            parts = [name for name in row if name.startswith("loss.")]
            self._columns = ["step", "seconds", "rate", "loss", *parts, "gradient_norm", "score", NOTE]
        if unknown := set(row) - set(self._columns):
            raise VitesseError(
                f"the loss has a part {', '.join(sorted(unknown))} at step {row['step']}",
                expected=f"the parts of the first step: {', '.join(self._columns)}",
                cause="the task names its parts differently from batch to batch",
            )
        text, self._waiting = self._text(self._waiting, header=header), []
        try:
            with self._path.open("a", newline="") as stream:
                stream.write(text)
        except OSError as error:
            raise storage_error(self._path, error) from error

    def _text(self, rows: Sequence[Mapping[str, float | str]], *, header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header and self._columns:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def read_log(path: Path) -> tuple[Mapping[str, float], ...]:
    """The numbers of a training.csv, row by row, without what is empty and without the notes.

    Columns: step (done so far), seconds (training time so far), rate, loss (the sum), loss.PART, gradient_norm
    (before clipping), score.
    """
    return tuple(
        {name: float(value) for name, value in row.items() if value and name != NOTE} for row in _rows(path)
    )


def _rows(path: Path) -> list[Mapping[str, str]]:
    """The complete rows; a last line that a full disk or a kill cut short is not one."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
    return [row for row in rows if None not in row.values()]
