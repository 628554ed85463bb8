"""A run's artifacts as releases: their names, the state to begin with, and the way from a release to its file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from vitesse.artifact import Artifact
from vitesse.errors import RunFolderError
from vitesse.ledger import ArtifactRef, Row, Verdict
from vitesse.run import Run, artifact_of, spec_of
from vitesse.serve.releases.state import Phase, Release, ReleaseState, StateFile


def name_of(row: Row) -> str:
    """Return the release's name: STAGE-HASH, in characters that headers, metrics and file names take.

    Raises:
        RunFolderError: the step made no artifact.
    """
    ref = _ref(row)
    return f"{re.sub('[^A-Za-z0-9_.+-]+', '-', row.stage)}-{ref.sha256[:12]}"


def initial_state(run: Run, at: float) -> ReleaseState:
    """Return the state of a run that was never served: what it has chosen is live.

    The run has verified it, and the golden images check it on this machine before it is ready. A run whose choice
    is the original has nothing live: the reference answers.
    """
    chosen = run.ledger.chosen_row()
    if _ref(chosen).sha256 == _ref(run.ledger.rows[0]).sha256 or chosen.verdict is not Verdict.PASS:
        return ReleaseState()
    name = name_of(chosen)
    begun = ReleaseState((Release(name, _ref(chosen).sha256, Phase.LIVE),))
    return begun.with_event(at, name, "promoted", f"the run has chosen {chosen.stage}")


def with_choice(state: ReleaseState, run: Run, at: float) -> ReleaseState:
    """Add what the run has chosen meanwhile, such as after `vitesse optimize` went on, as a candidate."""
    chosen = run.ledger.chosen_row()
    if any(release.sha256 == _ref(chosen).sha256 for release in state.releases):
        return state
    if _ref(chosen).sha256 == _ref(run.ledger.rows[0]).sha256 or chosen.verdict is not Verdict.PASS:
        return state
    return state.with_candidate(
        name_of(chosen), _ref(chosen).sha256, at, f"the run has chosen {chosen.stage}"
    )


def brought_up_to_date(run: Run, file: StateFile, wall: Callable[[], float] = time.time) -> ReleaseState:
    """Return the state of a run's file with the run's choice in it; what changed is written.

    Raises:
        RunFolderError: the file is damaged, or the run is unfinished. StorageError: it cannot be written.
    """
    file.read()  # a damaged file is said, and not replaced: what was live is a person's to decide
    return file.update(lambda state: with_choice(state, run, wall()), lambda: initial_state(run, wall()))


def artifact_for(run: Run, release: Release) -> tuple[Row, Artifact]:
    """Return the row and the checked artifact of a release.

    Raises:
        RunFolderError: the run has no such artifact any more, or its file was changed.
    """
    for row in reversed(run.ledger.rows):
        if (
            row.artifact is not None
            and row.artifact.sha256 == release.sha256
            and name_of(row) == release.name
        ):
            return row, artifact_of(run.folder, row, spec_of(run.folder))
    raise RunFolderError(
        f"the run {run.folder} has no artifact for the release {release.name}",
        expected=f"a row whose artifact has sha256 {release.sha256[:12]}…",
        cause="the run was made again after this release was served",
        fix=f"vitesse release promote {run.folder}",
    )


def _ref(row: Row) -> ArtifactRef:
    if row.artifact is None:
        raise RunFolderError(
            f"the step {row.stage} made no artifact", expected=f"one; it ended with {row.reason}"
        )
    return row.artifact
