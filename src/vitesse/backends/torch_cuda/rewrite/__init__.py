"""A static graph of standard operators → fused steps: what runs between two steps costs a kernel and memory traffic.

quantised ─▶ patches ─▶ conv ─▶ conv_pairs ─▶ views ─▶ attention ─▶ linear ─▶ positions ─▶ siblings ─▶ norm
─▶ quantise_outputs ─▶ quantise ─▶ conv_pools ─▶ conv_chains ─▶ norm_linear ─▶ one_scale
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitesse.backends.torch_cuda.rewrite.attention import attention
from vitesse.backends.torch_cuda.rewrite.conv import conv
from vitesse.backends.torch_cuda.rewrite.conv_chains import conv_chains
from vitesse.backends.torch_cuda.rewrite.conv_pairs import conv_pairs
from vitesse.backends.torch_cuda.rewrite.conv_pools import conv_pools
from vitesse.backends.torch_cuda.rewrite.linear import linear
from vitesse.backends.torch_cuda.rewrite.norm import norm
from vitesse.backends.torch_cuda.rewrite.norm_linear import norm_linear
from vitesse.backends.torch_cuda.rewrite.one_scale import one_scale
from vitesse.backends.torch_cuda.rewrite.patches import patches
from vitesse.backends.torch_cuda.rewrite.positions import positions
from vitesse.backends.torch_cuda.rewrite.quantised import left_alone, quantise, quantise_outputs, quantised
from vitesse.backends.torch_cuda.rewrite.reasons import Notes
from vitesse.backends.torch_cuda.rewrite.siblings import siblings
from vitesse.backends.torch_cuda.rewrite.views import views

__all__ = ["rewrite"]


def rewrite(model: ir.Model) -> tuple[ir.Model, dict[str, int], tuple[str, ...]]:
    """Return the graph in fused steps, how often each rule applied (also 0), and what was left alone, and why.

    Args:
        model: a graph from `specialise`: static shapes and types everywhere, what is constant folded. It is not
            changed; the weights are shared.

    Raises:
        ModelError: a shape is not static.
    """
    graph, notes, counts = model.clone(), Notes(), dict[str, int]()
    for name, rule in _rules(notes):
        counts[name] = rule(graph)
        RemoveUnusedNodesPass()(graph)
    return graph, counts, (*notes.lines(), *left_alone(graph))


def _rules(notes: Notes) -> list[tuple[str, Callable[[ir.Model], int]]]:
    """The rules in their order.

    What reads E4M3 comes first, so that every later rule sees its layers as steps. Layers take residuals before norms
    do: an epilogue adds them without another pass over memory. Which steps write E4M3 is known when all are there, and
    only then which convolutions make and read 16 bits, and which norms one layer alone reads in them. Layers that stand
    side by side share a scale last.
    """
    return [
        ("quantised", quantised),
        ("patches", patches),
        ("conv", conv),
        ("conv_pairs", conv_pairs),
        ("views", views),
        ("attention", lambda graph: attention(graph, notes)),
        ("linear", lambda graph: linear(graph, notes)),
        ("positions", lambda graph: positions(graph, notes)),
        ("siblings", lambda graph: siblings(graph, notes)),
        ("norm", lambda graph: norm(graph, notes)),
        ("quantise_outputs", quantise_outputs),
        ("quantise", quantise),
        ("conv_pools", conv_pools),
        ("conv_chains", conv_chains),
        ("norm_linear", norm_linear),
        ("one_scale", one_scale),
    ]
