"""The graph is right, and fed with something else than it expects: tried by feeding it otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vitesse.backends.protocol import Tensors
from vitesse.data.preprocess import feeds
from vitesse.diagnose.case import Case
from vitesse.diagnose.rules import Cause, Confidence, Suspicion
from vitesse.spec import ModelSpec, Preprocessing
from vitesse.verify.diverge import Tolerance

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_SPEC = "vitesse optimize {model} --data {data} --spec spec.toml   ({what} under [preprocessing])"


def _fed(case: Case, **changes: object) -> Tensors | None:
    """Prepare the worst image otherwise; None where nobody says how it is prepared."""
    spec = case.candidate.spec
    if spec is None or not case.pictures.pixels or not _is_fed_wrongly(case):
        return None
    rules = replace(spec.preprocessing, **changes)  # type: ignore[arg-type]
    return feeds([case.pictures.pixels[case.worst]], replace(spec, preprocessing=rules))


def _is_fed_wrongly(case: Case) -> bool:
    """Whether other input may explain it: it gives other numbers, no overflow, from the first layer on."""
    if case.symptom is None or case.symptom.kind != "differs":
        return False
    before = (
        case.seen[name]
        for node in case.graph.upstream(case.symptom.tensor)
        for name in node.output
        if name in case.graph.moving and name in case.seen and name != case.symptom.tensor
    )
    return not any(seen.difference is not None and seen.difference.within(Tolerance()) for seen in before)


def _rules(case: Case) -> Preprocessing | None:
    return None if case.candidate.spec is None else case.candidate.spec.preprocessing


def _channel_order(case: Case) -> Suspicion | None:
    rules = _rules(case)
    if rules is None:
        return None
    other = "BGR" if rules.color == "RGB" else "RGB"
    given = _fed(case, color=other)
    # Mean and std may belong to the place or to the colour.
    turned = _fed(case, color=other, mean=rules.mean[::-1], std=rules.std[::-1])
    if any(one is not None and case.cures(given=one) for one in (given, turned)):
        text = f"fed with {other} in place of {rules.color}, it answers as the original does"
        return Suspicion(Confidence.PROVEN, text, _image(case))
    return None


def _normalised_inside(case: Case) -> Suspicion | None:
    rules = _rules(case)
    if rules is None or (rules.mean, rules.std) == _PLAIN:
        return None
    for scale, words in ((rules.scale, "values in 0..1"), (1.0, "pixels in 0..255")):
        given = _fed(case, mean=_PLAIN[0], std=_PLAIN[1], scale=scale)
        if given is not None and case.cures(given=given):
            text = (
                f"fed with {words}, not normalised, it answers as the original does: it normalises by itself"
            )
            return Suspicion(Confidence.PROVEN, text, _image(case))
    return None


def _not_normalised(case: Case) -> Suspicion | None:
    rules = _rules(case)
    if rules is None:
        return None
    for (mean, std), words in (
        (_IMAGENET, "ImageNet's mean and std"),
        (_HALVES, "mean 0.5 and std 0.5"),
        (_PLAIN, ""),
    ):
        if not words or (rules.mean, rules.std) == (mean, std):
            continue
        given = _fed(case, mean=mean, std=std)
        if given is not None and case.cures(given=given):
            text = f"fed with values normalised by {words}, it answers as the original does"
            return Suspicion(Confidence.PROVEN, text, _image(case))
    return None


def _pixel_scale(case: Case) -> Suspicion | None:
    rules = _rules(case)
    if rules is None:
        return None
    for factor in (255.0, 1 / 255):
        scaled = {"scale": rules.scale * factor, "mean": _times(rules.mean, factor), "std": rules.std}
        given = _fed(case, **scaled)
        if given is not None and case.cures(given=given):
            text = f"fed with values {factor:.4g} times as large, it answers as the original does"
            return Suspicion(Confidence.PROVEN, text, _image(case))
    return None


def _times(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)


def _other_preprocessing(case: Case) -> Suspicion | None:
    """The two files name other preprocessing, and the candidate agrees when fed as the original is."""
    if case.original is None or case.original.spec is None or case.candidate.spec is None:
        return None
    theirs, ours = case.original.spec.preprocessing, case.candidate.spec.preprocessing
    differing = list(_differences(case.original.spec, case.candidate.spec))
    if theirs == ours or not differing or not case.pictures.pixels or not _is_fed_wrongly(case):
        return None
    spec = replace(case.candidate.spec, preprocessing=theirs)
    if case.cures(given=feeds([case.pictures.pixels[case.worst]], spec)):
        text = f"its own spec prepares images otherwise ({', '.join(differing)}); fed as the original is, it agrees"
        return Suspicion(Confidence.PROVEN, text, _image(case))
    return None


def _differences(theirs: ModelSpec, ours: ModelSpec) -> Iterator[str]:
    for name, value in vars(ours.preprocessing).items():
        other = getattr(theirs.preprocessing, name)
        if value != other:
            yield f"{name} {value}, the original's {other}"


def _image(case: Case) -> str:
    return case.candidate.spec.image_input if case.candidate.spec is not None else ""


FAULTS = (
    Cause(
        "other_preprocessing",
        "the model's own spec prepares images otherwise than the original's",
        "the two specs differ; tried by feeding the candidate as the original",
        _SPEC.replace("{what}", "take the original's"),
        _other_preprocessing,
    ),
    Cause(
        "channel_order",
        "red and blue are swapped",
        "tried by feeding BGR in place of RGB",
        _SPEC.replace("{what}", 'color = "BGR"'),
        _channel_order,
    ),
    Cause(
        "normalised_twice",
        "images are normalised twice: by the graph and before it",
        "tried by feeding images that are not normalised",
        _SPEC.replace("{what}", "mean = [0, 0, 0], std = [1, 1, 1], and scale as the graph expects"),
        _normalised_inside,
    ),
    Cause(
        "not_normalised",
        "images are not normalised as the model expects",
        "tried with the usual means and standard deviations",
        _SPEC.replace("{what}", "mean and std of the training"),
        _not_normalised,
    ),
    Cause(
        "pixel_scale",
        "pixels have another scale: 0..255 or 0..1",
        "tried by feeding values 255 times as large, and as small",
        _SPEC.replace("{what}", "correct `scale`"),
        _pixel_scale,
    ),
)
