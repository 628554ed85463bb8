"""What every pass over a graph must leave as it was, executed on the result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass

from vitesse.errors import ModelError, NotVerified


@dataclass(frozen=True)
class Tensor:
    """An input or output as declared; `shape` has None where it is not declared."""

    name: str
    dtype: str
    shape: ir.Shape | None


@dataclass(frozen=True)
class Signature:
    """A model's inputs, outputs and metadata."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: tuple[tuple[str, str], ...]


def signature_of(model: ir.Model) -> Signature:
    """The signature of `model`; an initialiser listed as input is a default, not an input."""
    initializers = model.graph.initializers
    return Signature(
        tuple(_tensor(value) for value in model.graph.inputs if value.name not in initializers),
        tuple(_tensor(value) for value in model.graph.outputs),
        tuple(sorted(model.metadata_props.items())),
    )


def _tensor(value: ir.Value) -> Tensor:
    shape = None if value.shape is None else ir.Shape(list(value.shape))
    return Tensor(value.name or "", str(value.dtype), shape)


def _agree(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    if [(t.name, t.dtype) for t in before] != [(t.name, t.dtype) for t in after]:
        return False
    pairs = [(b.shape, a.shape) for b, a in zip(before, after, strict=True)]
    return all(b is None or a is None or _compatible(b, a) for b, a in pairs)


def _compatible(one: ir.Shape, other: ir.Shape) -> bool:
    """Same rank, and equal wherever both dimensions are numbers (inference may know more than was declared)."""
    if len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def load(proto: onnx.ModelProto) -> ir.Model:
    """Read a proto without copying its weights; raises ModelError when it is not a valid graph."""
    try:
        model = ir.from_proto(proto)
        CheckerPass()(model)
    except Exception as error:  # onnx_ir wraps what the C++ checker raises in several types
        raise ModelError(
            f"not a valid ONNX graph: {_innermost(error)}",
            expected="a graph that onnx.checker accepts",
            cause="a damaged file, or an exporter that wrote an operator wrongly",
            fix="export the model again, or run onnx.checker.check_model on it for the details",
        ) from error
    return model


def verify(model: ir.Model, before: Signature, stage: str, keep: Collection[str] | None = None) -> None:
    """Check the result of `stage` and declare its outputs as before.

    Args:
        model: the result.
        before: the signature of what the stage was given.
        stage: its name, for messages.
        keep: the outputs that must still be there, where the stage may drop others; None: all of them.

    Raises:
        NotVerified: names, types or shapes of inputs or outputs or the metadata changed, or the checker refuses.
    """
    after = signature_of(model)
    if keep is not None:
        left = {tensor.name for tensor in after.outputs}.union(keep)
        before = replace(before, outputs=tuple(one for one in before.outputs if one.name in left))
    same = {
        "inputs": _agree(before.inputs, after.inputs),
        "outputs": _agree(before.outputs, after.outputs),
        "metadata": before.metadata == after.metadata,
    }
    for what in (what for what, kept in same.items() if not kept):
        raise NotVerified(
            f"stage {stage} changed the {what} of the model: {getattr(after, what)}",
            expected=str(getattr(before, what)),
            cause="a defect of a rewrite rule",
            fix="skip the stage and report the model",
        )
    for value, declared in zip(model.graph.outputs, before.outputs, strict=True):
        value.shape = declared.shape
    try:
        CheckerPass()(model)
    except Exception as error:  # see load
        raise NotVerified(
            f"stage {stage} wrote a graph that onnx.checker refuses: {_innermost(error)}",
            expected="a valid graph",
            cause="a defect of a rewrite rule",
            fix="skip the stage and report the model",
        ) from error


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
