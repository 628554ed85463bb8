"""From two graphs and some images to a case: is the candidate healthy, and if not, where does it go wrong?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vitesse.backends.protocol import Array, Tensors
from vitesse.data.postprocess import decode
from vitesse.data.results import Classification, Detections
from vitesse.diagnose.case import Case, error_of
from vitesse.diagnose.graph import Graph
from vitesse.diagnose.subject import Pictures, Side, batched, fed, same_names
from vitesse.diagnose.symptom import Number, Symptom, first_wrong
from vitesse.diagnose.tracing import trace
from vitesse.errors import NotVerified, SpecError, VitesseError
from vitesse.precision.emulation import computes_in_half
from vitesse.sources.signature import graph_inputs
from vitesse.spec import ModelSpec
from vitesse.verify.agreement import classification_agreement, detection_agreement
from vitesse.verify.gate import Limits
from vitesse.verify.health import HealthMeter
from vitesse.verify.parity import SET_LIKE, ParityMeter
from vitesse.verify.taps import Taps

# What lower precision may change: the share of the original's answers that must stay, and the rms difference of the
# outputs, of the image in the middle. Fine INT8 of the small trained models: 0.99 and 0.05.
_AGREEMENT = {Number.HALF: 0.97, Number.QUANTISED: 0.85}
_RMS = {Number.HALF: 0.02, Number.QUANTISED: 0.1}
_TRACED = 2
# Threads may add in another order; chance makes more of a difference.
_CHANCE = 1e-6

Answers = list[tuple[dict[str, Array], dict[str, Array]]]


def number_of(side: Side) -> Number:
    """Return in what a graph computes: rounded by Q/DQ, in half precision, or in float32."""
    if any(node.op_type == "QuantizeLinear" for node in side.model.graph.node):
        return Number.QUANTISED
    return Number.HALF if computes_in_half(side.model) else Number.EXACT


def examined(
    candidate: Side, original: Side | None, pictures: Pictures, count: int
) -> tuple[Case, Sequence[str]]:
    """Run both graphs on the images and say where the candidate goes wrong, if anywhere.

    Returns:
        (the case; its `symptom` is None where the candidate is healthy, what its outputs show, in words).

    Raises:
        BackendError: the original does not run.
    """
    theirs = fed(pictures.pixels, original, count) if original is not None else []
    ours = fed(pictures.pixels, candidate, count)
    calls: list[tuple[Tensors, Tensors]] = [
        (_shared(theirs[at], candidate, given, original) if theirs else {}, given)
        for at, given in enumerate(ours)
    ]
    number, names = number_of(candidate), _names(candidate, original)
    case = Case(candidate, original, number, pictures, calls, [], names, {}, None)
    answers: Answers = []
    for reference, given in calls:
        expected = original.outputs_of(reference) if original is not None else {}
        try:
            answers.append((expected, same_names(candidate.outputs_of(given), names)))
        except VitesseError as error:
            symptom = Symptom("refused", f"ONNX Runtime does not run the graph: {error.what}")
            return replace(case, symptom=symptom), (symptom.text,)
    case = replace(case, answers=answers)
    words = (*_unhealthy(case), *_unlike(case))
    if not words:
        whole = _random(case) or _batch(case)
        return replace(case, symptom=whole), (whole.text,) if whole is not None else ()
    return _located(case, words[0]), words


def _shared(theirs: Tensors, candidate: Side, ours: Tensors, original: Side | None) -> Tensors:
    """Without a spec, random numbers must be the same ones: the original takes the candidate's."""
    if candidate.spec is not None or original is None:
        return theirs
    names = [entry.name for entry in graph_inputs(original.runnable)]
    return dict(zip(names, ours.values(), strict=False))


def _names(candidate: Side, original: Side | None) -> Mapping[str, str]:
    """The original's output name → the candidate's: by name, else by role, else by place."""
    here = [entry.name for entry in candidate.model.graph.output]
    if original is None:
        return {name: name for name in here}
    there = [entry.name for entry in original.model.graph.output]
    if set(there) & set(here):
        return {name: name for name in there if name in here}
    if (
        candidate.spec is not None
        and original.spec is not None
        and set(candidate.spec.outputs) == set(original.spec.outputs)
    ):
        return {name: candidate.spec.outputs[role] for role, name in original.spec.outputs.items()}
    return dict(zip(there, here, strict=False))


def _unhealthy(case: Case) -> list[str]:
    """What is wrong with the outputs by themselves, and was not in the original."""
    meters = HealthMeter(), HealthMeter()
    for at, pair in enumerate(case.answers):
        for meter, outputs in zip(meters, pair, strict=True):
            meter.add(outputs, image=case.pictures.names[at] if case.pictures.names else "")
    before = {(found.kind, found.output) for found in meters[0].findings()}
    return [
        found.text
        for found in meters[1].findings()
        if found.fatal and (found.kind, found.output) not in before
    ]


def _unlike(case: Case) -> list[str]:
    """How the answers differ from the original's beyond what the number format explains."""
    if case.original is None:
        return []
    spec = case.original.spec
    meter = ParityMeter(spec)
    for expected, found in case.answers:
        meter.add(expected, found)
    misfits = [found.text for found in meter.findings() if found.kind in ("shape", "missing", "unreadable")]
    if misfits:
        return misfits
    parity, limits = meter.parity(), Limits()
    if parity is None:
        return ["the two graphs have no output in common"]
    exact = (
        parity.max_rel is not None and parity.max_rel <= limits.max_rel and parity.cosine >= limits.min_cosine
    )
    if exact:
        return []
    text = (
        f"`{parity.worst_output}` differs by up to {parity.max_abs:.3g}, smallest cosine {parity.cosine:.4f}"
    )
    if case.number is Number.EXACT:
        return [text]
    agreement = _agreement(case, spec)
    if agreement is not None and agreement < _AGREEMENT[case.number]:
        return [f"{100 * agreement:.1f} % of the answers are the original's; {text}"]
    # Detections out of a top-k may swap places: there the numbers do not tell, place by place.
    as_set = spec is not None and spec.decode in SET_LIKE and agreement is not None
    middle = float(np.median([error_of(*pair) for pair in case.answers]))
    return (
        [] if as_set or middle <= _RMS[case.number] else [f"{text}, in the middle {100 * middle:.2g} % rms"]
    )


def _agreement(case: Case, spec: ModelSpec | None) -> float | None:
    """The share of the original's answers that stay; None where they cannot be read, or there are none."""
    if spec is None or not case.pictures.pixels or case.pictures.random:
        return None
    read: tuple[list[Classification | Detections], ...] = ([], [])
    try:
        for pixels, pair in zip(case.pictures.pixels, case.answers, strict=True):
            for results, outputs in zip(read, pair, strict=True):
                results += decode(outputs, spec, [pixels.shape[:2]])
        theirs, ours = read
        if isinstance(theirs[0], Classification):
            classes = [[one for one in side if isinstance(one, Classification)] for side in (ours, theirs)]
            return classification_agreement(*classes)["agreement"]
        boxes = [
            {at: one for at, one in enumerate(side) if isinstance(one, Detections)} for side in (ours, theirs)
        ]
        return detection_agreement(*boxes)["agreement"]
    except (SpecError, NotVerified):
        return None


def _located(case: Case, text: str) -> Case:
    """Trace the worst image and another one, and name the first wrong tensor."""
    others = [at for at in range(len(case.calls)) if at != case.worst]
    chosen = [case.worst, *others][:_TRACED]
    seen = trace(
        case.original.runnable if case.original is not None else None,
        case.candidate.runnable,
        [case.calls[at] for at in chosen],
    )
    case = replace(case, seen=seen)
    found = first_wrong(case.graph, seen, case.number)
    if found is None and case.candidate.runnable is not case.candidate.model:
        found = _inside(case)
    return replace(case, symptom=found or Symptom("differs", text))


def _inside(case: Case) -> Symptom | None:
    """Look at the tensors that only the emulated graph has, such as the scores inside Attention."""
    return first_wrong(Graph(case.candidate.runnable), case.seen, case.number)


def _random(case: Case) -> Symptom | None:
    """Whether the same image gives another answer."""
    if not case.calls:
        return None
    # Within one session: a new one would begin with the same random numbers.
    taps = Taps(case.candidate.runnable, case.graph.outputs, optimised=False)
    first, again = (dict(taps.run(case.calls[0][1])) for _ in range(2))
    if error_of(first, again) <= _CHANCE:
        return None
    return Symptom("random", "the same image gives another answer the second time")


def _batch(case: Case) -> Symptom | None:
    """Whether two images in one call give what they give one by one, in a graph that says it takes more than one."""
    opens = all(
        entry.shape and isinstance(entry.shape[0], str) for entry in graph_inputs(case.candidate.model)
    )
    pair = [given for _, given in case.calls[:2]]
    same_size = len(pair) == 2 and all(pair[0][name].shape == pair[1][name].shape for name in pair[0])
    if not opens or not same_size:
        return None
    try:
        together = same_names(case.candidate.outputs_of(batched(pair)), case.output_names)
    except VitesseError as error:
        return Symptom("batch", f"one image runs, and two in one call do not: {error.what}")
    for name, value in together.items():
        single = [case.answers[at][1][name] for at in range(2)]
        expected = np.concatenate(single) if value.ndim else single[0]
        limit = 1e-3 if case.number is Number.EXACT else _RMS[case.number]
        if value.shape != expected.shape or (
            value.dtype.kind == "f" and error_of({name: expected}, {name: value}) > limit
        ):
            text = (
                f"two images in one call give another `{name}` {value.shape} than one by one {expected.shape}"
            )
            return Symptom("batch", text)
    return None
