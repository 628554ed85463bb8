"""Which layers of a graph can be computed in eight bits, and what share of the work they are.

Convolutions and linear layers with constant weights, and on request the two products of attention. Never: the layer
that reads the pixels, for its rounding reaches everything; the heads, whose errors reach boxes and scores undamped;
and everything that is no product: normalisation, softmax, GELU and residual sums stay as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from vitesse.errors import DataError
from vitesse.metadata import read_spec
from vitesse.precision.blocks import block_names
from vitesse.profile.costs import costs_of
from vitesse.profile.graph import Flow
from vitesse.profile.modules import Found, Modules, Place, modules_of
from vitesse.profile.parts import Part
from vitesse.profile.structure import NORMALISATION

LINEAR = ("MatMul", "Gemm")
OP_TYPES = ("Conv", *LINEAR)
WEIGHT_INPUT = 1
# Heads wherever they stand: those behind the encoder choose queries and place their boxes.
_HEAD = re.compile(r"(class|cls|score|bbox|box|mask)_(embed|head|predictor)")
# Between a product of attention and its softmax, or the softmax and the product with the values.
_SCORES = frozenset({"Add", "Mul", "Div", "Where", "Cast", "Reshape", "Sub", "Clip"})

# Content of a graph → what `_flops` returned, newest last: a search quantises the same graph again and again.
_counted: dict[str, list[float | None] | None] = {}
_COUNTED_GRAPHS = 8
_LARGEST_BYTES = 2**30  # protobuf writes no more than twice that


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights, or a product of attention.

    Args:
        name: of the node, as `node_names` gives it, unique in the graph.
        op_type: Conv, MatMul or Gemm.
        block: the block it belongs to; blocks are what a search lowers or leaves as a whole.
        activation: name of the tensor it reads.
        weight: name of its weights; empty for a product of attention.
        output: name of the tensor it makes.
        channel_axis: of the activation: 1 for a convolution, else the last one, -1.
        flops: operations for one image, as `profile.costs` counts them; None where shapes are not known.
        factor: name of the other tensor that a product of attention reads; empty for layers with weights.
    """

    name: str
    op_type: str
    block: str
    activation: str
    weight: str
    output: str
    channel_axis: int
    flops: float | None
    factor: str = ""


def node_names(graph: onnx.GraphProto) -> list[str]:
    """Return a unique name for every node, in order: its own, or for want of one its operator and first output."""
    seen: set[str] = set()
    names: list[str] = []
    for node in graph.node:
        name = node.name
        if not name or name in seen:
            name = f"{node.op_type}_{next(filter(None, node.output), len(names))}"
        seen.add(name)
        names.append(name)
    return names


def layers_of(model: onnx.ModelProto, *, attention: bool = False) -> tuple[Layer, ...]:
    """Return the layers that may be quantised, in the order of the graph.

    A head is what the names of modules say is one, or a layer behind the last normalisation of its path; in a graph
    without normalisations, a layer behind which no other convolution or linear layer follows.

    Args:
        model: with float32 weights as initialisers.
        attention: the products of attention too, where they stand as MatMul and not inside the operator `Attention`.
    """
    flow, modules = Flow(model.graph), modules_of(model)
    weighted = weighted_nodes(model)
    inner = _leads_to_normalisation(flow)
    pixels = _first_layers(flow, set(weighted))
    chosen = [
        at
        for at in weighted
        if at not in pixels and not _is_head(modules.places[at]) and (inner is None or at in inner)
    ]
    if inner is None:
        chosen = [at for at in chosen if flow.downstream(flow.after[at]) & set(weighted)]
    products = _attention_products(flow) if attention else []
    return _described(model, flow, modules, sorted([*chosen, *products]))


def blocks_of(layers: Sequence[Layer]) -> Mapping[str, tuple[Layer, ...]]:
    """Return block name → its layers, both in the order of the graph."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.block, []).append(layer)
    return {block: tuple(members) for block, members in found.items()}


def flops_share(lowered: Iterable[Layer], model: onnx.ModelProto) -> float:
    """Return the share, 0 to 1, of the operations of all convolutions and linear layers that `lowered` does.

    Heads and the layer that reads the pixels are in the whole; products of attention are in neither.

    Raises:
        DataError: shapes, and so operations, are not known.
    """
    costs = _flops(model)
    weighted = weighted_nodes(model)
    if costs is None or not weighted or any(costs[at] is None for at in weighted):
        raise DataError(
            "the share of operations cannot be told: not all shapes are known",
            expected="an input of fixed size, or a spec inside the model that names the size",
        )
    names = node_names(model.graph)
    wanted = {layer.name for layer in lowered}
    each = {at: costs[at] or 0.0 for at in weighted}
    return sum(cost for at, cost in each.items() if names[at] in wanted) / sum(each.values())


def weighted_nodes(model: onnx.ModelProto) -> list[int]:
    """Return the positions of convolutions and linear layers with constant float32 weights, heads too."""
    fed = {value.name for value in model.graph.input}
    ranks = {
        tensor.name: len(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in fed
    }
    return [
        at
        for at, node in enumerate(model.graph.node)
        if node.op_type in OP_TYPES
        and node.domain in ("", "ai.onnx")
        and ranks.get(node.input[WEIGHT_INPUT], 0) >= 2
        and (node.op_type == "Conv" or ranks[node.input[WEIGHT_INPUT]] == 2)
    ]


def _described(
    model: onnx.ModelProto, flow: Flow, modules: Modules, chosen: Sequence[int]
) -> tuple[Layer, ...]:
    names, costs = node_names(model.graph), _flops(model)
    blocks = block_names(flow, modules, chosen)
    layers = []
    for at in chosen:
        node = flow.nodes[at]
        constant = node.input[WEIGHT_INPUT] in flow.constants
        layers.append(
            Layer(
                name=names[at],
                op_type=node.op_type,
                block=blocks[at],
                activation=node.input[0],
                weight=node.input[WEIGHT_INPUT] if constant else "",
                output=node.output[0],
                channel_axis=1 if node.op_type == "Conv" else -1,
                flops=None if costs is None else costs[at],
                factor="" if constant else node.input[1],
            )
        )
    return tuple(layers)


def _is_head(place: Place) -> bool:
    # By structure, all that follows the last attention or convolution counts as heads; the normalisations tell better.
    named = place.found is not Found.STRUCTURE and place.part in (Part.HEADS, Part.POST)
    return named or any(_HEAD.search(name.lower()) for name in place.path)


def _leads_to_normalisation(flow: Flow) -> set[int] | None:
    """Return the nodes from which a normalisation is reached; None in a graph without one."""
    ends = [at for at, node in enumerate(flow.nodes) if node.op_type in NORMALISATION]
    return flow.upstream(ends) if ends else None


def _first_layers(flow: Flow, weighted: set[int]) -> set[int]:
    """Return the layers that work on the pixels: no other layer stands between the image and them."""
    behind = [False] * len(flow.nodes)
    first = set()
    for at in range(len(flow.nodes)):
        behind[at] = any(behind[i] or i in weighted for i in flow.before[at] if flow.from_image[i])
        if at in weighted and flow.from_image[at] and not behind[at]:
            first.add(at)
    return first


def _attention_products(flow: Flow) -> list[int]:
    """Return the products of two computed tensors before and behind a softmax."""
    products = {
        at
        for at, node in enumerate(flow.nodes)
        if node.op_type == "MatMul" and len(flow.computed(at)) == 2 and flow.from_image[at]
    }
    found: set[int] = set()
    for at, node in enumerate(flow.nodes):
        if node.op_type == "Softmax":
            for edges in (flow.before, flow.after):
                found |= products & _near(flow, edges[at], edges)
    return sorted(found)


def _near(flow: Flow, starts: Sequence[int], edges: Sequence[Sequence[int]]) -> set[int]:
    """Return what is met from `starts` on, going on through what only scales or moves scores."""
    met, todo = set(), list(starts)
    while todo:
        at = todo.pop()
        if at not in met:
            met.add(at)
            todo.extend(edges[at] if flow.nodes[at].op_type in _SCORES else ())
    return met


def _flops(model: onnx.ModelProto) -> list[float | None] | None:
    """Return the operations of every node for one image, which callers do not change; None where shapes are open."""
    if model.ByteSize() > _LARGEST_BYTES:
        return _count(model)
    content = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    if content in _counted:
        return _counted[content]
    made = _count(model)
    while len(_counted) >= _COUNTED_GRAPHS:
        del _counted[next(iter(_counted))]
    _counted[content] = made
    return made


def _count(model: onnx.ModelProto) -> list[float | None] | None:
    spec = read_spec(model)
    shapes = {}
    for value in model.graph.input:
        dims = [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]
        if dims and dims[0] is None:
            dims[0] = 1
        if spec is not None and value.name == spec.image_input and len(dims) == 4:
            first = 2 if spec.preprocessing.layout == "NCHW" else 1
            dims[first : first + 2] = spec.preprocessing.size
        shapes[value.name] = [length for length in dims if length is not None]
        if len(shapes[value.name]) != len(dims):
            return None
    return [None if cost.unknown else cost.flops for cost in costs_of(model, shapes)]
