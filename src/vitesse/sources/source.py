"""What a model source is: something that can be exported to one ONNX graph, with its spec and its own answer.

    text ──▶ open_source (sources/__init__) ──▶ Source ──export(options)──▶ Exported ──▶ export/check ──▶ Artifact

Every kind of source (a checkpoint, a hub model, a JAX function) ends in the same `Exported`, so that exporting,
verifying and the pipeline know one thing only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from vitesse.backends.protocol import Tensors
from vitesse.errors import UsageError
from vitesse.spec import ModelSpec

AXES = ("batch", "height", "width")


@dataclass(frozen=True)
class Given:
    """What the user says about a model beside its weights.

    Args:
        spec: of `--spec`: labels, preprocessing, names of inputs and outputs; None = the source's own.
        settings: of `--set KEY=VALUE`: what the weights do not show, such as DETR's number of attention heads.
    """

    spec: ModelSpec | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def refuse_unknown(self, source: str, *known: str) -> None:
        """Raise UsageError for a setting that `source` does not have."""
        unknown = sorted(set(self.settings) - set(known))
        if unknown:
            raise UsageError(
                f"--set {unknown[0]}={self.settings[unknown[0]]}: {source} has no such setting",
                expected=f"one of: {', '.join(known)}" if known else "none: everything is in the weights",
            )


@dataclass(frozen=True)
class ExportOptions:
    """How a graph is made.

    Args:
        opset: ONNX operator set, at least 18: torch's exporter writes no older one.
        dynamic: which of `batch`, `height`, `width` the graph leaves open; the rest is fixed.
        keep_aux: keep the auxiliary outputs of every decoder layer, stacked, as training code has them.
        size: image (height, width) in pixels; None = the source's own. Traced at, where it is dynamic.
    """

    opset: int = 18
    dynamic: frozenset[str] = frozenset({"batch"})
    keep_aux: bool = False
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        wrong = sorted(self.dynamic - set(AXES))
        if wrong:
            raise UsageError(f"--dynamic {','.join(wrong)}", expected=f"some of {', '.join(AXES)}")
        if self.opset < 18:
            raise UsageError(
                f"--opset {self.opset}",
                expected="18 or more",
                cause="torch's exporter writes none older; below 17 a LayerNorm falls apart into eight operators, "
                "whose squares overflow in FP16",
            )
        newest = int(onnx.defs.onnx_opset_version())
        if self.opset > newest:
            raise UsageError(
                f"--opset {self.opset}",
                expected=f"at most {newest}, the newest that onnx {onnx.__version__} knows",
            )
        if len(self.dynamic & {"height", "width"}) == 1:
            raise UsageError(
                f"--dynamic {','.join(sorted(self.dynamic))}",
                expected="height and width together, or neither",
            )

    def require_axes(self, able: AbstractSet[str], title: str, *, cause: str = "") -> None:
        """Raise UsageError, with the cause, when an axis shall stay open that the source `title` cannot leave open."""
        impossible = [axis for axis in AXES if axis in self.dynamic - able]
        if impossible:
            raise UsageError(
                f"--dynamic {','.join(impossible)}: {title} cannot leave that open",
                expected=f"of: {', '.join(axis for axis in AXES if axis in able) or 'none'}",
                cause=cause,
            )

    @property
    def dynamic_size(self) -> bool:
        """Whether height and width are open."""
        return "height" in self.dynamic


@dataclass(frozen=True)
class Exported:
    """A graph, how it is fed and read, and the framework's own answer to compare it with.

    Args:
        model: the ONNX graph; inputs and outputs are named as `spec` says.
        reference: feeds by input name → outputs by output name, computed by the original framework (float32).
        stride: dynamic height and width must be multiples of it, pixels.
    """

    model: onnx.ModelProto
    spec: ModelSpec
    reference: Callable[[Tensors], Tensors]
    dynamic: frozenset[str]
    stride: int = 1


class Source(Protocol):
    """A model that can be exported."""

    @property
    def title(self) -> str:
        """What it is, for people: "DETR, ResNet-50, 91 classes (model.pth)"."""
        ...

    @property
    def identity(self) -> str:
        """A hash of the weights and of all else that decides the graph, so that a finished export is found again."""
        ...

    def export(self, options: ExportOptions) -> Exported:
        """Make the graph; raises UsageError for an axis or option the model cannot have, ModelError when it fails."""
        ...
