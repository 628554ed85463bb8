"""Standard operators → the forms ONNX Runtime's CPU kernels run fastest.

Only what was measured faster than what ONNX Runtime does to the graph by itself is here; what was measured and
left out stands in docs/onnxruntime_lowering.md.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitesse.backends.onnxruntime_lowering_integers import lower_quantised
from vitesse.backends.onnxruntime_lowering_matrices import linear_layers_on_matrices
from vitesse.fusion.shapes import infer_shapes


def lower(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return `model` in ONNX Runtime's favourite form and how often each lowering applied, also 0.

    Inputs, outputs and metadata stay as they are; `model` itself is not changed.
    """
    graph = ir.from_proto(model)
    infer_shapes(graph)
    counts = lower_quantised(graph)
    counts["linear_layers_on_matrices"] = linear_layers_on_matrices(graph)
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph), counts
