"""What `vitesse profile` is pointed at: a run, whose original and chosen artifacts are compared, or a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vitesse import stages
from vitesse.artifact import Artifact, Store
from vitesse.data.dataset import open_dataset
from vitesse.data.images import ImageSource
from vitesse.errors import UsageError
from vitesse.recipe import Recipe
from vitesse.run import artifact_of, open_run, spec_of

ORIGINAL = "original"
# Time hardly depends on the picture; a few show that.
IMAGES = 8

Titled = tuple[str, Artifact]


@contextmanager
def subject(text: str, recipe: Recipe, target: str | None = None) -> Iterator[tuple[Titled, ...]]:
    """Yield (title, artifact) of what is to be profiled, the original first; exported files live as long as the block.

    Args:
        text: a run folder, or any model as `sources.opening` lists them.
        target: build the model for this runtime first; a run's artifacts are built already.

    Raises:
        UsageError: a target or rewrites for a run.
        as `stages.open_model` and `run.open_run`.
    """
    folder = Path(text)
    if (folder / "ledger.json").is_file():
        if target is not None or recipe.lower:
            asked = f"--target {target}" if target is not None else f"--lower {','.join(recipe.lower)}"
            raise UsageError(
                f"{asked} with the run {folder}", expected="a model; a run's artifacts are built already"
            )
        yield _of_run(folder)
        return
    with TemporaryDirectory(prefix="vitesse-") as temporary:
        store = Store(Path(temporary))
        artifact = stages.open_model(
            text, preset=recipe.preset, spec=recipe.spec, options=recipe.source, store=store
        )
        if recipe.lower:
            artifact = stages.lower(artifact, recipe.lower, store).artifact
        if target is not None:
            artifact = stages.build(artifact, target, store).artifact
        yield ((Path(text).name or text, artifact),)


def pictures(data: Path | None) -> tuple[ImageSource, ...]:
    """Return a few images of a folder; none without one."""
    if data is None:
        return ()
    return tuple(sample.path for sample in open_dataset(data, holdout=0.0).val.spread(IMAGES).samples)


def _of_run(folder: Path) -> tuple[Titled, ...]:
    run, spec = open_run(folder), spec_of(folder)
    original = artifact_of(folder, run.ledger.rows[0], spec)
    if run.ledger.chosen in (None, 0):
        return ((ORIGINAL, original),)
    return ((ORIGINAL, original), (run.ledger.chosen_row().stage, run.artifact))
