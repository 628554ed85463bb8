"""From two models and some feeds to the gate's verdict: what the pipeline does for a step, without timing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

import tiny_graphs
from vitesse.data.postprocess import decode
from vitesse.data.results import Classification, Detections
from vitesse.errors import SpecError
from vitesse.ledger import Verdict
from vitesse.spec import ModelSpec, Task
from vitesse.verify.agreement import classification_agreement, detection_agreement
from vitesse.verify.gate import Evidence, Limits, Speed, StepKind, judge
from vitesse.verify.parity import ParityMeter

Feeds = Sequence[Mapping[str, Any]]
FASTER = Speed(1.5, 1.4, 1.6)


def judged(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    spec: ModelSpec,
    feeds: Feeds,
    kind: StepKind = StepKind.STRUCTURAL,
) -> tuple[Verdict, str]:
    """The verdict on `candidate`, taken to be faster than `original`, with agreement as its accuracy."""
    meter = ParityMeter(spec)
    before, after = tiny_graphs.runner(original), tiny_graphs.runner(candidate)
    outputs = [(before(one), after(one)) for one in feeds]
    for index, (reference, found) in enumerate(outputs):
        meter.add(reference, found, image=f"image {index + 1}")
    try:
        drop: float | None = 100 * (1 - _agreement(outputs, spec))
    except SpecError:
        drop = None
    evidence = Evidence(
        kind,
        metric="agreement",
        images=len(feeds),
        drop=drop,
        accuracy_reason="the outputs cannot be read",
        parity=meter.parity(),
        findings=meter.findings(),
        speed=FASTER,
    )
    return judge(evidence, Limits())


def change(model: Callable[[], onnx.ModelProto], tensor: str, operator: str, *values: Any) -> onnx.ModelProto:
    """`model()` with an operator, and constants as its further inputs, put behind `tensor`."""
    changed = model()
    names = []
    for index, value in enumerate(values):
        names.append(f"{tensor}_{operator}_{index}")
        tiny_graphs.set_weight(changed, names[-1], np.asarray(value))
    attributes = {"axis": -1} if operator == "Gather" else {}
    tiny_graphs.insert_after(changed, tensor, operator, *names, **attributes)
    return changed


def _agreement(outputs: Sequence[tuple[Any, Any]], spec: ModelSpec) -> float:
    original = [decode(reference, spec, [spec.preprocessing.size])[0] for reference, _ in outputs]
    found = [decode(candidate, spec, [spec.preprocessing.size])[0] for _, candidate in outputs]
    if spec.task is Task.CLASSIFICATION:
        classes = [[one for one in side if isinstance(one, Classification)] for side in (found, original)]
        return classification_agreement(*classes)["agreement"]
    boxes = [
        {index: one for index, one in enumerate(side) if isinstance(one, Detections)}
        for side in (found, original)
    ]
    return detection_agreement(*boxes)["agreement"]
