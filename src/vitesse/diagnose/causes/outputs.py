"""The answers are there, under another name, in another form or order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vitesse.backends.protocol import Array
from vitesse.diagnose.case import SAME, Case, error_of
from vitesse.diagnose.rules import Cause, Confidence, Suspicion
from vitesse.spec import Decode

Boxes = NDArray[np.float64]
_SPEC = "vitesse diagnose {model} --against {against} --data {data} --spec spec.toml   ({what})"


def _pairs(case: Case) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    return case.answers[case.worst] if case.original is not None and case.answers else ({}, {})


def _differing(case: Case) -> Iterator[tuple[str, Array, Array]]:
    """Yield (name, the original's, the candidate's) of the outputs that are not the same."""
    expected, found = _pairs(case)
    for name, value in expected.items():
        if name in found and error_of({name: value}, found) > SAME:
            yield name, value, found[name]


def _equal(expected: Array | Boxes, found: Array) -> bool:
    if expected.shape != found.shape or not np.isfinite(found).all():
        return False
    spread = float(np.ptp(expected)) or 1.0
    return (
        float(np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).max(initial=0.0))
        <= SAME * spread
    )


def _swapped(case: Case) -> Suspicion | None:
    wrong = list(_differing(case))
    for name, value, _ in wrong:
        for other, _, given in wrong:
            if other != name and _equal(value, given):
                return Suspicion(
                    Confidence.PROVEN, f"`{other}` holds what the original calls `{name}`", other
                )
    return None


def _logits(case: Case) -> Iterator[tuple[str, Array, Array]]:
    spec = case.candidate.spec
    if spec is not None and "logits" in spec.outputs:
        names = {
            spec.outputs["logits"],
            *(case.original.spec.outputs.values() if case.original and case.original.spec else ()),
        }
        yield from (one for one in _differing(case) if one[0] in names and one[1].dtype.kind == "f")


def _activated(case: Case) -> Suspicion | None:
    for name, value, given in _logits(case):
        x = np.asarray(value, np.float64)
        exponents = np.exp(x - x.max(-1, keepdims=True))
        for word, activated in (
            ("sigmoid", 1 / (1 + np.exp(-x))),
            ("softmax", exponents / exponents.sum(-1, keepdims=True)),
        ):
            if _equal(activated, given):
                return Suspicion(Confidence.PROVEN, f"`{name}` is the {word} of the original's logits", name)
    return None


def _class_offset(case: Case) -> Suspicion | None:
    for name, value, given in _logits(case):
        for by in (-1, 1):
            if _equal(np.roll(value, by, axis=-1), given):
                text = f"the classes of `{name}` are shifted by {abs(by)}, as by a background class at the other end"
                return Suspicion(Confidence.PROVEN, text, name)
        if (
            given.ndim == value.ndim
            and given.shape[:-1] == value.shape[:-1]
            and given.shape[-1] < value.shape[-1]
        ):
            for start, word in ((0, "last"), (value.shape[-1] - given.shape[-1], "first")):
                if _equal(value[..., start : start + given.shape[-1]], given):
                    text = f"`{name}` lacks the {word} {value.shape[-1] - given.shape[-1]} classes"
                    return Suspicion(Confidence.PROVEN, text, name)
    return None


def _class_order(case: Case) -> Suspicion | None:
    """Every class of the candidate is another class of the original."""
    for name, value, given in _logits(case):
        if value.shape != given.shape or value.shape[-1] > 1000:
            continue
        r, c = (np.asarray(one, np.float64).reshape(-1, one.shape[-1]) for one in (value, given))
        if not np.isfinite(c).all():
            continue
        places = [int(np.abs(r - c[:, [at]]).max(axis=0).argmin()) for at in range(c.shape[1])]
        if len(set(places)) == len(places) and places != sorted(places) and _equal(r[:, places], c):
            return Suspicion(
                Confidence.PROVEN, f"the classes of `{name}` stand in another order: {places[:8]}…", name
            )
    return None


def _boxes(case: Case) -> Iterator[tuple[str, Boxes, Array]]:
    for name, value, given in _differing(case):
        if value.shape == given.shape and value.shape[-1:] == (4,) and value.dtype.kind == "f":
            yield name, np.asarray(value, np.float64), given


def _to_xyxy(b: Boxes) -> Boxes:
    return np.concatenate([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)


def _to_cxcywh(b: Boxes) -> Boxes:
    return np.concatenate([(b[..., :2] + b[..., 2:]) / 2, b[..., 2:] - b[..., :2]], -1)


def _to_xywh(b: Boxes) -> Boxes:
    return np.concatenate([b[..., :2], b[..., 2:] - b[..., :2]], -1)


# Words → what the boxes would be if the original's were read so.
_FORMS: Mapping[str, Callable[[Boxes], Boxes]] = {
    "corners (x1, y1, x2, y2) where the original gives (cx, cy, w, h)": _to_xyxy,
    "centre and size (cx, cy, w, h) where the original gives corners": _to_cxcywh,
    "corner and size (x1, y1, w, h) where the original gives corners": _to_xywh,
    "corner and size (x1, y1, w, h) where the original gives (cx, cy, w, h)": lambda b: _to_xywh(_to_xyxy(b)),
    "with y before x": lambda b: b[..., [1, 0, 3, 2]],
}


def _scales(case: Case) -> dict[str, Boxes]:
    sizes = {}
    spec = case.candidate.spec
    if spec is not None and case.pictures.pixels:
        height, width = case.pictures.pixels[case.worst].shape[:2]
        tensor_height, tensor_width = spec.preprocessing.size
        sizes = {"the image": (width, height), "the input tensor": (tensor_width, tensor_height)}
    found = {}
    for word, (w, h) in sizes.items():
        pixels = np.array([w, h, w, h], np.float64)
        found[f"in pixels of {word} where the original's are in 0..1"] = pixels
        found[f"in 0..1 where the original's are in pixels of {word}"] = 1 / pixels
    return found


def _box_format(case: Case) -> Suspicion | None:
    for name, boxes, given in _boxes(case):
        for words, form in _FORMS.items():
            for scaled, factor in {"": np.ones(4), **_scales(case)}.items():
                if _equal(form(boxes) * factor, given):
                    also = f", and {scaled}" if scaled else ""
                    return Suspicion(Confidence.PROVEN, f"`{name}` holds boxes as {words}{also}", name)
    return None


def _box_scale(case: Case) -> Suspicion | None:
    for name, boxes, given in _boxes(case):
        for words, factor in _scales(case).items():
            if _equal(boxes * factor, given):
                return Suspicion(Confidence.PROVEN, f"`{name}` holds boxes {words}", name)
    return None


def _query_order(case: Case) -> Suspicion | None:
    """The same detections in another order of queries: harmless to who reads them as a set."""
    spec = case.candidate.spec
    if spec is None or spec.decode is Decode.LOGITS:
        return None
    for name, value, given in _differing(case):
        if value.ndim < 2 or value.shape != given.shape or value.shape[1] < 2 or not np.isfinite(given).all():
            continue
        order = [np.lexsort(one[0].reshape(one.shape[1], -1).T) for one in (value, given)]
        if _equal(value[0][order[0]], given[0][order[1]]):
            return Suspicion(
                Confidence.PROVEN, f"the rows of `{name}` are the original's in another order", name
            )
    return None


FAULTS = (
    Cause(
        "swapped_outputs",
        "outputs are swapped",
        "an output equals what the original gives under another name",
        _SPEC.replace("{what}", "name each output's role under [outputs]"),
        _swapped,
    ),
    Cause(
        "activated_logits",
        "the graph applies sigmoid or softmax, and the reader applies it again",
        "an output equals the sigmoid or softmax of the original's logits",
        "vitesse export MODEL -o {model}   (export logits; the reader applies the activation)",
        _activated,
    ),
    Cause(
        "class_offset",
        "classes are shifted by one",
        "the logits equal the original's moved by one class, or lack the first or last",
        _SPEC.replace("{what}", "correct `labels` and `decode`"),
        _class_offset,
    ),
    Cause(
        "class_order",
        "classes stand in another order",
        "every class's logits equal those of another class of the original",
        _SPEC.replace("{what}", "put `labels` into the graph's order"),
        _class_order,
    ),
    Cause(
        "box_format",
        "boxes have another format",
        "the boxes equal the original's written as corners, as centre and size, or with y before x",
        "vitesse export MODEL -o {model}   (or correct `decode` in --spec spec.toml)",
        _box_format,
    ),
    Cause(
        "box_scale",
        "boxes have another scale",
        "the boxes equal the original's times, or divided by, the size of the image or of the tensor",
        "vitesse export MODEL -o {model}   (or correct `decode` in --spec spec.toml)",
        _box_scale,
    ),
    Cause(
        "query_order",
        "detections stand in another order",
        "the rows of an output are the original's, sorted otherwise",
        "vitesse optimize {against} --data {data}   (keeps the order)",
        _query_order,
    ),
)
