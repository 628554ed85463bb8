"""Which artifact of a finished run a command works on: the chosen one, or the best portable graph for a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from vitesse.artifact import Artifact
from vitesse.backends import GPUS, targets
from vitesse.errors import UsageError
from vitesse.ledger import Row, Verdict
from vitesse.recipe import EIGHT_BITS, HALF
from vitesse.run import Run, artifact_of, spec_of
from vitesse.verify.gate import Limits


@dataclass(frozen=True)
class Selected:
    """A row of the ledger, its checked artifact set to run on the target, and why it was taken."""

    row: Row
    artifact: Artifact
    why: str


def select(run: Run, target: str = "", stage: str = "") -> Selected:
    """Return what a command works on.

    Without a target, or for one of the CPU, that is the chosen artifact. For a GPU it is a portable ONNX graph that
    kept its accuracy: `fp16` where the run made one, otherwise the last structural step that passed; `stage` names
    another.

    Raises:
        UsageError: unknown target or stage, or the stage lost too much accuracy; the message lists what there is.
        RunFolderError: the run is unfinished, or the file was changed since it was verified.
    """
    runtimes = targets(target) if target else ()
    if stage:
        row = _named(run, stage)
        if target in GPUS and not _portable(row):
            known = ", ".join(
                row.stage for row in run.ledger.rows if _portable(row) and keeps_accuracy(run, row)
            )
            raise UsageError(
                f"the stage {stage} of {run.folder} was written for another runtime than {target}",
                expected=f"one of: {known}",
            )
        return Selected(row, _on(run, row, runtimes), f"asked for by --stage {stage}")
    if not runtimes or target not in GPUS:
        row = run.ledger.chosen_row()
        return Selected(row, _on(run, row, ()), "the artifact that the run has chosen")
    portable = [row for row in run.ledger.rows if _portable(row) and keeps_accuracy(run, row)]
    half = next((row for name in HALF for row in portable if row.stage == name), None)
    if half is not None:
        return Selected(
            half, _on(run, half, runtimes), "16 bits is what a GPU multiplies fastest in every runtime"
        )
    whole = [
        row
        for row in portable
        if row.verdict is Verdict.PASS and ":" not in row.stage and not row.stage.startswith(EIGHT_BITS)
    ]
    if not whole:
        raise UsageError(
            f"{run.folder} has no portable graph that kept its accuracy",
            expected="one step of the run that passed",
            fix=f"see `vitesse report {run.folder}`",
        )
    return Selected(whole[-1], _on(run, whole[-1], runtimes), "the run made no FP16 graph: FP32")


def select_for(run: Run, target: str, stage: str, capability: str) -> Selected:
    """Return what an engine for one compute capability, such as "sm75", is built from.

    That is what `select` returns, unless the library cannot compile it for this GPU: TensorRT for RTX has no FP32
    product of matrices and no BF16 for sm75. Then it is the run's FP16 graph, with the layers in INT8 where `stage`
    asks for these and the run has such a graph; `why` says so.

    Raises:
        UsageError, RunFolderError: as `select`; UsageError also where the run has no graph for this GPU.
    """
    found = select(run, target, stage)
    if target != "tensorrt-rtx":
        return found
    # Imported here because running an artifact needs none of the packages that reading a graph's types does.
    from vitesse.backends.tensorrt.preparing import unfit_for

    lacking = unfit_for(onnx.load(found.artifact.path), capability)
    if not lacking:
        return found
    tried = [f"{found.row.stage}: {lacking}"]
    for name in _instead(found.row.stage):
        rows = [row for row in run.ledger.rows if row.stage == name and _portable(row)]
        if not rows or not keeps_accuracy(run, rows[-1]):
            continue
        other = _on(run, rows[-1], targets(target))
        lacks = unfit_for(onnx.load(other.path), capability)
        if not lacks:
            return Selected(rows[-1], other, f"{name} in place of {found.row.stage}: {lacking}")
        tried.append(f"{name}: {lacks}")
    raise UsageError(
        f"{run.folder} has no graph that TensorRT-RTX compiles for {capability}: {'; '.join(tried)}",
        expected="a graph in FP16 that kept its accuracy",
        cause="FP16 was not among the run's precisions, lost too much accuracy, or kept islands in FP32",
        fix=f"vitesse optimize {run.ledger.source} --data IMAGES --precisions fp32,fp16 --out {run.folder}, "
        f"or leave {capability} out",
    )


def _instead(stage: str) -> tuple[str, ...]:
    """Stages that do with FP16 what another does with FP32, best first."""
    names = (f"{stage}+fp16", "fp16") if stage in EIGHT_BITS else ("fp16",)
    return tuple(name for name in names if name != stage)


def keeps_accuracy(run: Run, row: Row) -> bool:
    """Whether a row kept the run's accuracy budget: it passed, or was rejected for its speed on that machine alone."""
    if row.verdict is Verdict.PASS:
        return True
    drop = None if row.accuracy is None else row.accuracy.drop
    return (
        row.verdict is Verdict.REJECTED
        and drop is not None
        and Limits(max_drop=run.ledger.max_drop).allow(drop)
    )


def _portable(row: Row) -> bool:
    """Whether every runtime takes the file: plain ONNX, not written for one runtime."""
    ref = row.artifact
    return (
        ref is not None
        and Path(ref.path).suffix == ".onnx"
        and not row.stage.startswith(("build:", "int8:", "nncf:"))
    )


def _named(run: Run, stage: str) -> Row:
    rows = [row for row in run.ledger.rows if row.stage == stage and row.artifact is not None]
    if not rows:
        known = ", ".join(row.stage for row in run.ledger.rows if row.artifact is not None)
        raise UsageError(f"the run has no artifact of a stage {stage!r}", expected=f"one of: {known}")
    if not keeps_accuracy(run, rows[-1]):
        raise UsageError(
            f"the stage {stage} of {run.folder} did not keep its accuracy: {rows[-1].reason}",
            expected="a stage that passed, or that was only too slow on the machine of the run",
            fix=f"see `vitesse report {run.folder}`",
        )
    return rows[-1]


def _on(run: Run, row: Row, runtimes: tuple[str, ...]) -> Artifact:
    found = artifact_of(run.folder, row, spec_of(run.folder))
    return replace(found, backend=runtimes[0]) if runtimes and _portable(row) else found
