"""Writes docs/diagnose.md: the example is what is printed, the table what is registered.

PYTHONPATH=tests python -m diagnose.documented
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from PIL import Image

from diagnose.broken import BROKEN
from diagnose.changes import pictures
from vitesse.diagnose.causes import FAMILIES
from vitesse.diagnose.command import diagnose
from vitesse.metadata import write_spec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnose.md"
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"


def example() -> str:
    """What is printed about a model whose LayerNorm overflows in FP16."""
    broken = next(one for one in BROKEN if one.cause == "half_layer_norm")
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            onnx.save(write_spec(broken.original(), broken.spec()), "original.onnx")
            onnx.save(broken.candidate(), "model.onnx")
            Path("images").mkdir()
            for at, pixels in enumerate(pictures()):
                Image.fromarray(pixels).save(f"images/{at}.png")
            found = diagnose(Path("model.onnx"), Path("original.onnx"), Path("images"))
        finally:
            os.chdir(before)
    return "\n".join(f"    {line}" for line in ("$ " + COMMAND, *found.lines()))


COMMAND = "vitesse diagnose model.onnx --against original.onnx --data images/"


def table() -> str:
    """All causes by family."""
    rows = ["| Cause | What it is | Evidence | Remedy |", "|---|---|---|---|"]
    for family, causes in FAMILIES.items():
        rows.append(f"| **{family}** | | | |")
        for cause in causes:
            kind = " (hazard)" if cause.hazard else ""
            remedy = cause.remedy.format(model="model.onnx", against="original.onnx", data="images/")
            command, _, words = remedy.partition("   ")
            rows.append(
                f"| `{cause.id}`{kind} | {cause.title} | {cause.evidence} | `{command}` {words} |".replace(
                    " |", " |"
                )
            )
    return "\n".join(row.replace("  |", " |") for row in rows)


def between(text: str, name: str) -> str:
    """The part of the page that is generated under a name."""
    return text.partition(BEGIN.format(name))[2].partition(END.format(name))[0].strip("\n")


def filled(text: str) -> str:
    """The page with both parts made anew."""
    for name, part in (("example", example()), ("causes", table())):
        begin, end = BEGIN.format(name), END.format(name)
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
