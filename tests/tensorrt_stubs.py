"""The package `tensorrt-stubs` (10.13), copied and mended, so that a type checker can read it.

As published it cannot be parsed: parameters are called `in`, one without a default follows one with; and a module
variable called `bool` hides the type in every annotation.
"""

from __future__ import annotations

import ast
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_PACKAGES = ("tensorrt", "tensorrt_bindings")
_HEAD = re.compile(r"(\s*def \w+\()")
_ANY = "self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:"


def stubs_installed() -> bool:
    try:
        return distribution("tensorrt-stubs").version.startswith("10.")
    except PackageNotFoundError:
        return False


def mended_stubs(folder: Path) -> int:
    """Write the mended packages into a folder; return how many signatures had to become `Any`."""
    root = Path(str(distribution("tensorrt-stubs").locate_file("")))
    mended = 0
    for package in _PACKAGES:
        (folder / package).mkdir(parents=True)
        for source in (root / package).glob("*.pyi"):
            lines = [_unhidden(line) for line in source.read_text().splitlines()]
            lines.insert(1, "import builtins")
            mended += _make_parsable(lines)
            (folder / package / source.name).write_text("\n".join(lines))
    return mended


def _unhidden(line: str) -> str:
    return line if line.startswith("bool:") else re.sub(r"(?<!')\bbool\b(?!')", "builtins.bool", line)


def _make_parsable(lines: list[str]) -> int:
    count = 0
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            assert error.lineno is not None
            head = _HEAD.match(lines[error.lineno - 1])
            assert head, lines[error.lineno - 1]
            lines[error.lineno - 1] = head[1] + _ANY
            count += 1
        else:
            return count
