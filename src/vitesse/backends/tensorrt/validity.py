"""What TensorRT for RTX itself says of a plan on the GPU that is here; enterprise TensorRT cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from vitesse.backends.tensorrt.api import Api
from vitesse.backends.tensorrt.features import features_of
from vitesse.backends.tensorrt.logger import Log

# Names of its `EngineInvalidityDiagnostics`, whose values are bits of one sum.
_WORDS: Mapping[str, str] = {
    "VERSION_MISMATCH": "another version of the library built it",
    "UNSUPPORTED_CC": "it was not built for this compute capability",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "its content is damaged",
    "CUDA_ERROR": "the CUDA driver or runtime is not installed properly",
}


@dataclass(frozen=True)
class Validity:
    """The library's answer: VALID, SUBOPTIMAL or INVALID, and its reasons in words, at least one."""

    verdict: str
    words: tuple[str, ...]


class _Answer(Protocol):
    @property
    def name(self) -> str: ...


class _Runtime(Protocol):
    """What TensorRT for RTX's runtime has besides the calls that every TensorRT has."""

    def get_engine_validity(self, buffer: bytes) -> tuple[_Answer, int]: ...


def validity_of(api: Api, plan: bytes) -> Validity | None:
    """Ask the library; None where it cannot be asked. It looks at the plan's header and the GPU, and runs nothing."""
    if not features_of(api).engine_validity:
        return None
    log = Log(api)
    answer, bits = cast("_Runtime", api.Runtime(log.native)).get_engine_validity(plan)
    words = diagnostics(api, int(bits)) or log.errors or ("it gives no reason",)
    return Validity(answer.name, words)


def diagnostics(api: Api, bits: int) -> tuple[str, ...]:
    """Return the words for a sum of `EngineInvalidityDiagnostics`; bits without a name are given as a number."""
    known: Mapping[str, object] = getattr(
        getattr(api, "EngineInvalidityDiagnostics", None), "__members__", {}
    )
    said = []
    for name, member in known.items():
        value = int(getattr(member, "value", 0))
        if bits & value:
            said.append(_WORDS.get(name, name))
            bits &= ~value
    return (*said, *([f"diagnostic {bits}"] if bits else []))
