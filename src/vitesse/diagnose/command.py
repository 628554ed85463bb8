"""What `vitesse diagnose` does: examine, ask every rule, and say cause and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitesse.diagnose.case import Case
from vitesse.diagnose.causes import CAUSES
from vitesse.diagnose.examine import examined
from vitesse.diagnose.rules import Cause, Confidence, Suspicion
from vitesse.diagnose.subject import fitted, pictures_of, side_of, spec_of
from vitesse.diagnose.symptom import Symptom
from vitesse.errors import UsageError
from vitesse.metadata import read_spec
from vitesse.sources.onnx_file import load_onnx
from vitesse.spec import ModelSpec

_WORDS = {Confidence.PROVEN: "tried out", Confidence.LIKELY: "likely", Confidence.POSSIBLE: "possible"}


@dataclass(frozen=True)
class NamedCause:
    """A cause as it is told: what it is, how sure, what speaks for it and where, the command that mends it."""

    id: str
    title: str
    confidence: str
    evidence: str
    tensor: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one model.

    healthy: every answer is what it should be, as far as was looked.
    symptom: where it goes wrong; None where healthy.
    outputs: what the outputs show, in words.
    causes: the most likely one first, others that are also possible behind it; empty where healthy or unknown.
    hazards: right here, and known to go wrong in other runtimes.
    notes: what was looked at, and what could not be.
    """

    model: str
    against: str
    images: int
    healthy: bool
    symptom: Symptom | None
    outputs: tuple[str, ...]
    causes: tuple[NamedCause, ...]
    hazards: tuple[NamedCause, ...]
    notes: tuple[str, ...]

    @property
    def cause(self) -> str:
        """The id of the likely cause; `unknown` where no rule explains the symptom, empty where healthy."""
        if self.healthy:
            return ""
        return self.causes[0].id if self.causes else "unknown"

    def show(self, console: Console | None = None) -> None:
        """Print it; to standard output without a console."""
        console = console or Console()
        if self.healthy:
            beside = f", as {self.against} does" if self.against else ""
            console.print(
                f"healthy: {self.model} answers {self.images} images{beside}", highlight=False, markup=False
            )
        for line in self.lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def lines(self) -> Sequence[str]:
        """Return what is wrong, why and what to do, one line each; nothing but hazards and notes where healthy."""
        told = [f"outputs      {text}" for text in self.outputs]
        if self.symptom is not None and self.symptom.tensor:
            told.append(f"first wrong  {self.symptom.text}")
        for title, causes in (
            ("cause", self.causes[:1]),
            ("possible", self.causes[1:]),
            ("hazard", self.hazards),
        ):
            for cause in causes:
                told.append(f"{title:<12} {cause.title} [{cause.id}, {cause.confidence}]")
                told.append(f"{'':<12} {cause.evidence}")
                told.append(f"{'':<12} {cause.remedy}")
        if not self.healthy and not self.causes:
            told.append(
                "cause        unknown: no known cause explains this; the first wrong tensor is where to look"
            )
        return [*told, *(f"note         {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        plain = asdict(self)
        plain["symptom"] = None if self.symptom is None else self.symptom.to_json()
        return {"cause": self.cause, **plain}


def diagnose(
    model: Path,
    against: Path | None = None,
    data: Path | None = None,
    *,
    spec: ModelSpec | None = None,
    preset: str | None = None,
    spec_file: Path | None = None,
    images: int = 8,
) -> Diagnosis:
    """Say whether a model answers as it should, and where, why and how to mend it where it does not.

    Args:
        model: the ONNX file in question.
        against: the one it was made from; without it, the graph alone and the health of its outputs are looked at.
        data: a folder of images; without it random ones are fed, which do not reach the values of real ones.
        spec, preset, spec_file: how both are fed and read; by default as their metadata says.
        images: how many.

    Raises:
        ModelError: a file is no valid model.
        SpecError: the spec does not fit, or nothing says how images become the input.
        DataError: there are no images, or one cannot be read.
        UsageError: fewer than one image.
        BackendError: the original does not run.
    """
    if images < 1:
        raise UsageError(f"--images {images}", expected="1 or more; 2 or more tell what does not move")
    graph = load_onnx(Path(model))
    original = None if against is None else load_onnx(Path(against))
    own = spec_of(original if original is not None else graph, spec, preset, spec_file)
    theirs = None if original is None else side_of(original, own)
    given = spec is not None or preset is not None or spec_file is not None
    ours = side_of(graph, None)
    ours = side_of(graph, fitted(own if given else (read_spec(graph) or own), ours.runnable, original))
    pictures = pictures_of(data, ours.spec, images)
    case, outputs = examined(ours, theirs, pictures, images)
    causes, hazards = _asked(case)
    named = {"model": str(model), "against": str(against or "ORIGINAL.onnx"), "data": str(data or "IMAGES")}
    return Diagnosis(
        str(model),
        "" if against is None else str(against),
        len(case.calls),
        case.symptom is None,
        case.symptom,
        tuple(outputs),
        tuple(_told(cause, found, case, named) for cause, found in causes),
        tuple(_told(cause, found, case, named) for cause, found in hazards),
        _notes(case, against),
    )


Found = tuple[Cause, Suspicion]


def _asked(case: Case) -> tuple[list[Found], list[Found]]:
    """Ask every rule; faults only where there is a symptom, the surest first and of these the most specific."""
    faults: list[Found] = []
    hazards: list[Found] = []
    for cause in CAUSES:
        if not cause.hazard and case.symptom is None:
            continue
        found = cause.find(case)
        if found is not None:
            (hazards if cause.hazard else faults).append((cause, found))
    faults.sort(key=lambda one: -one[1].confidence)
    return faults, hazards


def _told(cause: Cause, found: Suspicion, case: Case, named: dict[str, str]) -> NamedCause:
    tensor = found.tensor or (case.symptom.tensor if case.symptom is not None else "")
    return NamedCause(
        cause.id, cause.title, _WORDS[found.confidence], found.text, tensor, cause.remedy.format(**named)
    )


def _notes(case: Case, against: Path | None) -> tuple[str, ...]:
    notes = []
    if case.pictures.random:
        notes.append(
            "fed with random images, which do not reach the values of real ones; give --data for those"
        )
    if against is None:
        notes.append(
            "nothing to compare with: wrong answers that look like answers are not found; give --against"
        )
    if case.candidate.runnable is not case.candidate.model:
        notes.append("half precision is emulated: float32 on CPU, rounded behind every operator")
    return tuple(notes)
