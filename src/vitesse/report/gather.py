"""What the report shows beside the ledger: pictures before and after, time by part of the model and by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from vitesse.assess import TIMED_IMAGES, Assessor
from vitesse.backends.protocol import LoadOptions
from vitesse.choice import Accepted
from vitesse.data.results import Detections, Result
from vitesse.data.split import Sample
from vitesse.errors import VitesseError
from vitesse.ledger import Ledger
from vitesse.measure import Candidate
from vitesse.predict import Model
from vitesse.profile.by_module import ModuleProfile, profile_modules
from vitesse.profile.families import family
from vitesse.profile.operators import OperatorProfile
from vitesse.report.extras import ModuleBar, OperatorBar, Picture, ReportExtras, save_extras
from vitesse.report.figures import decimal
from vitesse.report.html import write_report
from vitesse.report.module_table import merged

PICTURES = 4
PROFILED_RUNS = 16
# Small images are enlarged, so that boxes and labels can be read beside each other.
SMALLEST_SIDE = 224


def write_run_report(folder: Path, ledger: Ledger, accepted: Sequence[Accepted], assessor: Assessor) -> Path:
    """Draw, profile, and write report.html and report.md into the run folder."""
    chosen = next((one for one in accepted if one.index == ledger.chosen), None)
    extras = ReportExtras(pictures_note="Nothing was chosen.", operators_note="Nothing was chosen.")
    if chosen is not None:
        extras = replace(
            _profiled(assessor, chosen.candidate),
            pictures=_pictures(assessor, chosen.candidate),
            method=_method(ledger),
        )
    save_extras(folder, extras)
    return write_report(folder, ledger, extras)


def _method(ledger: Ledger) -> str:
    if ledger.final is None:
        return ""
    foreign = ledger.final["foreign_cores"]
    beside = "" if foreign is None else f", while other processes kept {foreign:.2f} cores busy"
    return f"The last comparison of the finalists had {ledger.final['rounds']} rounds{beside}."


def _pictures(assessor: Assessor, chosen: Candidate) -> tuple[Picture, ...]:
    samples = assessor.dataset.val.spread(PICTURES).samples
    with (
        Model(assessor.source, LoadOptions(plain=True)) as before,
        Model(chosen.artifact, chosen.options) as after,
    ):
        return tuple(_picture(sample, before, after) for sample in samples)


def _picture(sample: Sample, before: Model, after: Model) -> Picture:
    pixels = sample.read()
    drawn, notes = [], []
    for model in (before, after):
        result = model(pixels)
        shown = Image.fromarray(pixels)
        factor = max(1, round(SMALLEST_SIDE / min(shown.size)))
        scaled: Result = result
        if isinstance(result, Detections):
            scaled = replace(result, boxes_xyxy=result.boxes_xyxy * factor)
            count = len(result.above(0.5))
            notes.append(f"{count} detection{'' if count == 1 else 's'}")
        else:
            notes.append(f"{result.names[0]} {result.scores[0]:.1%}")
        enlarged = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
        stream = BytesIO()
        scaled.draw(enlarged).save(stream, "PNG", optimize=True)
        drawn.append(stream.getvalue())
    return Picture(sample.path.name, drawn[0], drawn[1], f"{notes[0]} before, {notes[1]} after")


def _by_family(found: OperatorProfile) -> dict[str, float]:
    """Sum milliseconds per run over operators that do the same work; runtimes call them by different names."""
    times: dict[str, float] = {}
    for row in found.operators:
        times[family(row.operator)] = times.get(family(row.operator), 0.0) + row.ms
    return times


def _profiled(assessor: Assessor, chosen: Candidate) -> ReportExtras:
    images = [sample.path for sample in assessor.dataset.val.spread(TIMED_IMAGES).samples]
    try:
        before, after = (
            profile_modules(artifact, images, threads=chosen.options.threads, runs=PROFILED_RUNS)
            for artifact in (assessor.source, chosen.artifact)
        )
    except VitesseError as error:
        return ReportExtras(operators_note=f"Not profiled: {error.what}")
    times = [_by_family(one.operators) for one in (before, after)]
    names = sorted(times[0].keys() | times[1].keys(), key=lambda op: -max(one.get(op, 0.0) for one in times))
    bars = tuple(OperatorBar(op, times[0].get(op, 0.0), times[1].get(op, 0.0)) for op in names)
    return ReportExtras(
        operators=bars, modules=module_bars(before, after), modules_note=_reading(before, after)
    )


def module_bars(before: ModuleProfile, after: ModuleProfile) -> tuple[ModuleBar, ...]:
    """Return the parts of both profiles that take time, in the order in which an image passes through."""
    old, new = ({row.part: row.ms for row in one.rows if row.ms} for one in (before, after))
    return tuple(ModuleBar(part, old.get(part, 0.0), new.get(part, 0.0)) for part in merged([*old], [*new]))


def _reading(before: ModuleProfile, after: ModuleProfile) -> str:
    both = (before, after)
    calls, copies, covered = (
        " and ".join(texts)
        for texts in (
            [f"{decimal(one.unprofiled_call_ms)} ms" for one in both],
            [f"{decimal(one.copies_ms)} ms" for one in both],
            [f"{one.covered:.1%}" for one in both],
        )
    )
    return (
        f"From image file to result, mean of {before.runs} images with the runtime's profiler on; the rows add up to "
        f"{covered} of the whole. What is outside the operators is mostly the profiler itself: without it the "
        f"call takes {calls}. Operators that only move numbers take {copies} of the operators' time."
    )
