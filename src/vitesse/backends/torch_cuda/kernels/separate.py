"""A step as several others one after the other, each by what is fastest for it alone: what such kernels share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitesse.backends.torch_cuda.candidates import (
    KERNELS,
    PLAIN,
    Attributes,
    DeviceFacts,
    Run,
    Tactic,
    Tensors,
    kernels,
    tactic_of,
)
from vitesse.backends.torch_cuda.problem import Problem


class Separate:
    """What any step taken apart refuses and offers; see candidates.Kernel, and problem.Composed for its parts."""

    name: str
    step: str

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse nothing: a part that no kernel takes is computed in plain torch."""
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the only one: what there is to choose are its parts."""
        return [Tactic(self.name)]


def prepared(part: Problem, chosen: Mapping[str, Any]) -> Run:
    """Return the call of a part by the tactic that was chosen for it, as `Tactic.document` has it."""
    tactic = tactic_of(chosen)
    if tactic == PLAIN:
        return part.plain
    # Loaded only now: the table names the kernels that are composed, too.
    (kernel,) = kernels({tactic.kernel: KERNELS[tactic.kernel]}).found.values()
    return kernel.prepare(part.tensors, part.attributes, tactic)
