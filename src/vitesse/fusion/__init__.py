"""ONNX → smaller, faster ONNX: `clean_model` removes what need not be computed, `fuse_model` fuses operators."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateHashedInitializersPass, RemoveUnusedNodesPass

from vitesse.fusion.attention import ATTENTION_FUSIONS
from vitesse.fusion.clean import clean
from vitesse.fusion.contract import Signature, load, signature_of, verify
from vitesse.fusion.conv_affine import BATCH_NORM, CONV_AFFINE
from vitesse.fusion.folding import lift_constants
from vitesse.fusion.gelu import GELU
from vitesse.fusion.gemm import GEMM
from vitesse.fusion.layer_norm import LAYER_NORM
from vitesse.fusion.opset import raise_ir_version
from vitesse.fusion.rms_norm import RMS_NORM
from vitesse.fusion.rules import Fusion, apply
from vitesse.fusion.shapes import complete_shapes, infer_shapes

__all__ = ["FUSIONS", "LAST_FUSIONS", "Fused", "clean_model", "finished", "fuse_model"]

# Layer norm before RMS norm, whose pattern is a part of it.
FUSIONS: tuple[Fusion, ...] = (LAYER_NORM, RMS_NORM, GELU, BATCH_NORM, CONV_AFFINE, *ATTENTION_FUSIONS)
# Attention wants to see its linear layers as MatMuls, and this one the shapes of what attention wrote.
LAST_FUSIONS: tuple[Fusion, ...] = (GEMM,)


@dataclass(frozen=True)
class Fused:
    """A model and what was done to it.

    Args:
        model: the result; a tensor that survived keeps its name.
        changes: name of every step or fusion → how often it applied, also 0.
        reasons: name → distinct reasons why what looked like the pattern was left alone.
    """

    model: onnx.ModelProto
    changes: Mapping[str, int]
    reasons: Mapping[str, tuple[str, ...]]

    def notes(self) -> tuple[str, ...]:
        """The reasons as lines for a report."""
        return tuple(f"{name}: {reason}" for name, reasons in self.reasons.items() for reason in reasons)


def clean_model(model: onnx.ModelProto, keep: Collection[str] | None = None) -> Fused:
    """Stage "clean": fold what does not depend on the image, turn shape arithmetic into constants, drop the dead.

    Args:
        model: the graph.
        keep: names of the outputs that are read; predictions of inner decoder layers beside them are dropped
            (see `auxiliary.drop_outputs`). None: every output stays.

    Raises:
        ModelError: `model` is not a valid graph.
        NotVerified: the result broke the contract (see `contract.verify`).
    """
    graph = load(model)
    before = signature_of(graph)
    graph, changes, reasons = clean(graph, keep or ())
    return finished(graph, before, "clean", changes, reasons, keep)


def fuse_model(model: onnx.ModelProto) -> Fused:
    """Stage "fuse": replace groups of operators by one standard operator, raising the opset only where needed.

    Works best on a cleaned model: the patterns do not look through Identity, Dropout or shape arithmetic.

    Raises:
        ModelError: `model` is not a valid graph.
        NotVerified: the result broke the contract (see `contract.verify`).
    """
    graph = load(model)
    before = signature_of(graph)
    infer_shapes(graph)
    changes, reasons = apply(graph, FUSIONS)
    complete_shapes(graph)
    last_changes, last_reasons = apply(graph, LAST_FUSIONS)
    changes, reasons = changes | last_changes, reasons | last_reasons
    lift_constants(graph)
    RemoveUnusedNodesPass()(graph)
    DeduplicateHashedInitializersPass()(graph)
    return finished(graph, before, "fuse", changes, {name: why for name, why in reasons.items() if why})


def finished(
    graph: ir.Model,
    before: Signature,
    stage: str,
    changes: Mapping[str, int],
    reasons: Mapping[str, tuple[str, ...]],
    keep: Collection[str] | None = None,
) -> Fused:
    """Verify what a stage made and wrap it; raises NotVerified when it broke the contract."""
    raise_ir_version(graph)
    verify(graph, before, stage, keep)
    return Fused(ir.to_proto(graph), dict(changes), dict(reasons))
