"""Kernels for tests: right, wrong, crashing or refusing ones, in place of libraries."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitesse.backends.torch_cuda.candidates import DeviceFacts, Kernels, Run, Tactic
from vitesse.backends.torch_cuda.steps import STEPS


@dataclass
class FakeKernel:
    """Computes a step by its plain function, and does wrong as it is told to.

    scale: what the first output is multiplied by. delay_s: of each call. crash, refusal: texts.
    """

    name: str
    step: str = "Linear"
    scale: float = 1.0
    delay_s: float = 0.0
    crash: str = ""
    refusal: str = ""
    configs: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{}])
    prepared: list[Tactic] = field(default_factory=list)

    def refuses(
        self, tensors: Sequence[Tensor | None], attributes: Mapping[str, Any], device: DeviceFacts
    ) -> str:
        return self.refusal

    def tactics(
        self, tensors: Sequence[Tensor | None], attributes: Mapping[str, Any], device: DeviceFacts
    ) -> list[Tactic]:
        return [Tactic(self.name, config) for config in self.configs]

    def prepare(self, tensors: Sequence[Tensor | None], attributes: Mapping[str, Any], tactic: Tactic) -> Run:
        self.prepared.append(tactic)
        keywords = {name: value for name, value in attributes.items() if name != "wanted"}

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            if self.crash:
                raise RuntimeError(self.crash)
            time.sleep(self.delay_s + tactic.config.get("delay_s", 0.0))
            first, *others = STEPS[self.step](*given, **keywords)
            assert first is not None
            return (first * self.scale if self.scale != 1 else first, *others)

        return run


def kernels_of(*fakes: FakeKernel) -> Kernels:
    """The only kernels there are, considered on the CPU too."""
    return Kernels({fake.name: fake for fake in fakes}, on_cpu=True)
