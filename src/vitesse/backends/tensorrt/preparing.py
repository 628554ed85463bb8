"""A graph before it is built: what TensorRT takes and computes wrongly, or what one GPU cannot compile, is found first.

Operators alone tell little here: a machine that builds for other GPUs cannot run them. What stands here was seen when
whole graphs were compiled; docs/tensorrt.md has the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx
from onnx import TensorProto

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt.graph_types import element_types
from vitesse.lowering import rewrite_of
from vitesse.lowering.lower import lower_model
from vitesse.metadata import serialise
from vitesse.sources.onnx_file import load_onnx

# Compute capability 7.5 (Turing) has tensor cores for FP16 and INT8; TensorRT for RTX 1.7 compiles no FP32 product of
# matrices for it, and nothing in BF16. Convolutions in FP32 it does compile.
TURING = "sm75"
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Attention"})


def prepared(
    artifact: Artifact, store: Store, *, name: str, distrusts: Collection[str], refuses: Collection[str] = ()
) -> Built:
    """Rewrite what the runtime `name` computes wrongly or refuses, and Attention in FP32, for which it has no kernel.

    Args:
        distrusts, refuses: names of rewrites; each is done where its operator is in the graph.

    Returns:
        The artifact itself where nothing had to be rewritten; otherwise a new one in `store`, and why.

    Raises:
        ModelError: the file is not whole and valid. NotVerified: a rewrite broke the graph's contract.
    """
    model = load_onnx(artifact.path)
    reasons = _needed(model, name, distrusts, refuses)
    if not reasons:
        return Built(artifact)
    lowered = lower_model(model, list(reasons))
    provenance = Provenance(f"lower:{name}", artifact.sha256, {"rewrites": ",".join(reasons)})
    made = store.put(serialise(lowered.model, artifact.spec), artifact.spec, provenance, suffix=".onnx")
    changes = {f"lowered:{rewrite}": count for rewrite, count in lowered.changes.items()}
    return Built(made, changes, (*reasons.values(), *lowered.notes()))


def unfit_for(model: onnx.ModelProto, capability: str) -> str:
    """Say why TensorRT for RTX cannot compile the graph for a compute capability such as "sm75"; "" where it can.

    Known are the gaps of sm75 alone. Islands of FP32 in an FP16 graph count, too.
    """
    if capability != TURING:
        return ""
    types = element_types(model)
    if TensorProto.BFLOAT16 in types.values():
        return "it computes in BF16, which compute capability 7.5 does not have"
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS and _in_fp32(node, types)]
    if not products:
        return ""
    first = products[0]
    return (
        f"it multiplies matrices in FP32 ({len(products)} operators, the first is {first.op_type} "
        f"{first.name!r}), which TensorRT-RTX does not compile for compute capability 7.5"
    )


def _needed(
    model: onnx.ModelProto, name: str, distrusts: Collection[str], refuses: Collection[str]
) -> Mapping[str, str]:
    """Rewrite → why, in the order in which their operators come."""
    found: dict[str, str] = {}
    for operator in dict.fromkeys(_operators(model)):
        rewrite = rewrite_of(operator)
        if rewrite is not None and rewrite.name in distrusts:
            found[rewrite.name] = f"{rewrite.name}: {name} is known to compute {operator} wrongly"
        elif rewrite is not None and rewrite.name in refuses:
            found[rewrite.name] = f"{rewrite.name}: {name} refuses {operator} as it stands in this graph"
    if "attention" not in found and "Attention" in _operators(model):
        why = _attention(model, name)
        found |= {"attention": why} if why else {}
    return found


def _attention(model: onnx.ModelProto, name: str) -> str:
    """Why Attention cannot be left as it is; "" where nothing is known against it."""
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    types = element_types(model)
    whole = sum(_in_fp32(node, types) for node in nodes)
    if whole:
        return f"attention: {name} has no kernel for Attention in FP32 ({whole} operators)"
    if any(node.input[0] == node.input[1] for node in nodes):
        # TensorRT for RTX 1.7.1 ends the process with a segmentation fault.
        return f"attention: {name} crashes on Attention whose queries and keys are one tensor"
    return ""


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    return (node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx"))


def _in_fp32(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    return node.domain in ("", "ai.onnx") and types.get(node.output[0]) == TensorProto.FLOAT
