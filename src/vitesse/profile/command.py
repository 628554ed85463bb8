"""What `vitesse profile` does with artifacts that are already there: profile, print or give as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitesse.artifact import Artifact
from vitesse.data.images import ImageSource, decode_image
from vitesse.data.preprocess import feeds
from vitesse.errors import UsageError
from vitesse.profile.by_module import ModuleProfile, profile_modules
from vitesse.profile.calls import random_images
from vitesse.profile.operators import OperatorProfile, profile
from vitesse.report.module_table import print_modules, print_operators


@dataclass(frozen=True)
class Profiled:
    """One artifact's profile, or the original's and the chosen one's; one of the two fields is set."""

    modules: tuple[tuple[str, ModuleProfile], ...] = ()
    operators: tuple[tuple[str, OperatorProfile], ...] = ()
    notes: tuple[str, ...] = ()

    def show(self, console: Console | None = None) -> None:
        """Print the table; to standard output without a console."""
        console = console or Console()
        if self.modules:
            print_modules(self.modules, console)
        else:
            print_operators(self.operators, console)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, by title."""
        profiles = {title: found.to_json() for title, found in self.modules}
        profiles |= {title: found.to_json() for title, found in self.operators}
        return {"by": "module" if self.modules else "op", "profiles": profiles, "notes": list(self.notes)}


def profile_target(
    artifacts: Sequence[tuple[str, Artifact]],
    images: Sequence[ImageSource] = (),
    *,
    by: str = "module",
    threads: int = 1,
    runs: int = 20,
    depth: int = 0,
    graphs: Sequence[Path] = (),
) -> Profiled:
    """Profile one artifact, or two to be compared, the original first.

    Args:
        artifacts: (title, artifact), one or two.
        images: what to feed; without any, random ones of the spec's size, which do for timing.
        by: `module` or `op`.
        depth, graphs: as `by_module.profile_modules`.

    Raises:
        UsageError: another `by`, no artifact or more than two, or a runtime whose times cannot be read.
        DataError, BackendError: as `by_module.profile_modules`.
    """
    if by not in ("module", "op"):
        raise UsageError(f"--by {by}", expected="module or op")
    if not 1 <= len(artifacts) <= 2:
        raise UsageError(f"{len(artifacts)} artifacts to profile", expected="one, or two to be compared")
    notes = () if images else ("fed with random images of the model's size; give --data for real ones",)
    given = {title: list(images) or random_images(artifact.spec) for title, artifact in artifacts}
    if by == "module":
        modules = tuple(
            (
                title,
                profile_modules(one, given[title], threads=threads, runs=runs, depth=depth, graphs=graphs),
            )
            for title, one in artifacts
        )
        return Profiled(modules=modules, notes=notes)
    operators = tuple(
        (title, profile(one, _prepared(one, given[title]), threads=threads, runs=runs))
        for title, one in artifacts
    )
    return Profiled(operators=operators, notes=notes)


def _prepared(artifact: Artifact, images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    return [feeds([decode_image(image)], artifact.spec) for image in images]
