"""Every operator of a fused graph in plain torch: the reference of the plan and what runs where no kernel is better.

`OPERATORS[domain, op_type](node, tensors)` computes a node's outputs; `operator_of(node)` finds the row, or says what
is missing. One file per kind: arithmetic, matrices, convolutions, sampling, shapes, indexing, reductions,
normalisation, quantisation. The fused steps of the domain `vitesse.cuda` stand in the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from vitesse.backends.torch_cuda.operators import (  # noqa: F401  (each enters its rows)
    arithmetic,
    convolutions,
    indexing,
    matrices,
    normalisation,
    quantisation,
    reductions,
    sampling,
    shapes,
)
from vitesse.backends.torch_cuda.operators.operator import REGISTRY, Operator, described, domain_of
from vitesse.backends.torch_cuda.steps import DOMAIN, STEPS
from vitesse.errors import ModelError

__all__ = ["OPERATORS", "Operator", "described", "operator_of"]

OPERATORS: Mapping[tuple[str, str], Operator] = MappingProxyType(
    {**REGISTRY, **{(DOMAIN, name): Operator(DOMAIN, name, step) for name, step in STEPS.items()}}
)


def operator_of(node: ir.Node) -> Operator:
    """Return the row of a node's operator.

    Raises:
        ModelError: there is none; names the node, its operator and opset.
    """
    found = OPERATORS.get((domain_of(node), node.op_type))
    if found is None:
        names = sorted(name for domain, name in OPERATORS if domain == "")
        raise ModelError(
            f"{described(node)}: the torch-cuda engine does not have this operator",
            expected=f"one of {', '.join(names)}",
            cause="the graph was not fused, or holds control flow, text or an operator of a runtime's own",
            fix="run vitesse optimize on the original model, or build for another target, such as cuda or tensorrt",
        )
    return found
