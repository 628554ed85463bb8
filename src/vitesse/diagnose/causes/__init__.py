"""All known causes. Their order is that of the answer where two are equally sure: the most specific first."""

from __future__ import annotations

from collections.abc import Mapping

from vitesse.diagnose.causes import (
    decoder_layers,
    half,
    inputs,
    operators,
    outputs,
    quantised,
    shapes,
    weights,
)
from vitesse.diagnose.rules import Cause

FAMILIES: Mapping[str, tuple[Cause, ...]] = {
    "outputs": outputs.FAULTS,
    "decoder layers": (*decoder_layers.FAULTS, *decoder_layers.HAZARDS),
    "half precision": half.FAULTS,
    "quantised": (*quantised.FAULTS, *quantised.HAZARDS),
    "inputs": inputs.FAULTS,
    "operators": (*operators.FAULTS, *operators.HAZARDS),
    "sizes": (*shapes.FAULTS, *shapes.HAZARDS),
    "weights": weights.FAULTS,
}
CAUSES: tuple[Cause, ...] = tuple(cause for family in FAMILIES.values() for cause in family)
