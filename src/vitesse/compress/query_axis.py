"""Where the object queries are in a detector's graph: for each tensor, the axis that has one entry a query.

Followed from operator to operator, up to the constants and the selection (TopK) that the queries come from and down to
the outputs; never guessed from a length, for a feature map may have as many cells as there are queries. Attention among
the queries is followed too: a query that is gone is one that nobody attends to, which is what a mask would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from vitesse.compress.query_rules import Place, contracted, made_of, reshaped
from vitesse.fusion.layer_parts import named
from vitesse.fusion.rules import LeftAlone, constant

# They lengthen an axis by what their shape operand says.
MAKES_AXES = frozenset({"Expand", "ConstantOfShape"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# They read an axis of their own choice out of many: what they answer no longer has one entry a query.
_SELECTIONS = frozenset({"TopK", "GatherElements", "Gather"})


@dataclass
class QueryAxis:
    """Everything that has one entry a query.

    queries: how many there are.
    places: tensor → places of the axis; attention scores have two.
    constants: (node, input, place) of constants that hold an entry a query; another reader of the same constant may
        see something else in it.
    sources: the TopK operators that choose the queries.
    selections: the TopK operators that choose among the queries' answers.
    attends: whether queries attend to one another: the sign that the axis is the queries' and no other.
    """

    queries: int
    places: dict[ir.Value, set[Place]] = field(default_factory=dict)
    constants: set[tuple[ir.Node, int, Place]] = field(default_factory=set)
    sources: set[ir.Node] = field(default_factory=set)
    selections: set[ir.Node] = field(default_factory=set)
    attends: bool = False


def trace(seeds: Iterable[tuple[ir.Value, int]], queries: int) -> QueryAxis:
    """Follow the axis from `seeds`, (tensor, axis of length `queries`), through the whole graph.

    Shapes must have been inferred.

    Raises:
        LeftAlone: an operator mixes the queries, or is not known; the text says which.
    """
    found = QueryAxis(queries)
    todo = [(value, Place(axis)) for value, axis in seeds]
    while todo:
        value, place = todo.pop()
        if place in found.places.setdefault(value, set()):
            continue
        if value.is_graph_input() or constant(value) is not None:
            raise LeftAlone(f"the queries are fed or constant: `{value.name}`")
        found.places[value].add(place)
        todo += _upwards(found, value, place)
        for node, index in [(use.node, use.idx) for use in value.uses()]:
            todo += _downwards(found, node, index, place)
    return found


def _upwards(found: QueryAxis, value: ir.Value, place: Place) -> Iterator[tuple[ir.Value, Place]]:
    """The inputs that the axis of an operator's output comes from."""
    node = value.producer()
    assert node is not None
    if node.op_type == "TopK" and place.axis == _axis(node, value) and place.inner == 1:
        found.sources.add(node)
        yield from ((output, place) for output in node.outputs)
        return
    sources = made_of(node, value, place, found.queries)
    if not sources and node.op_type not in MAKES_AXES:
        raise LeftAlone(f"{named(node)} mixes the queries, or is not known")
    for index, source in sources:
        given = node.inputs[index]
        assert given is not None
        if constant(given) is not None:
            found.constants.add((node, index, source))
        else:
            yield given, source


def _downwards(found: QueryAxis, node: ir.Node, index: int, place: Place) -> Iterator[tuple[ir.Value, Place]]:
    """The outputs that carry the axis of an input on, or what an operator contracts it with."""
    given = node.inputs[index]
    assert given is not None
    if node.op_type == "Shape":
        return  # computed from the graph as it is at run time
    carried = False
    for output in node.outputs:
        for there in _candidates(found, node, given, output, place):
            if (index, place) in made_of(node, output, there, found.queries):
                carried = True
                yield output, there
    if carried:
        return
    if node.op_type in _SELECTIONS and index == 0 and place.axis == _axis(node, given):
        if node.op_type == "TopK":
            found.selections.add(node)
        elif constant(node.inputs[1]) is not None:
            raise LeftAlone(f"{named(node)} picks queries by number")
        return
    partner = contracted(node, index, place)
    if partner is None:
        raise LeftAlone(f"{named(node)} mixes the queries, or is not known")
    found.attends = True
    other = node.inputs[partner[0]]
    if other is None or constant(other) is not None:
        raise LeftAlone(f"{named(node)} weighs the queries by constants")
    yield other, partner[1]


def _candidates(
    found: QueryAxis, node: ir.Node, given: ir.Value, output: ir.Value, place: Place
) -> Iterable[Place]:
    if output.shape is None:
        raise LeftAlone(f"a shape at {named(node)} is not known")
    if node.op_type in _RESHAPES:
        moved = reshaped(given, output, place, found.queries)
        return () if moved is None else (moved,)
    return (Place(axis, place.inner) for axis in range(len(output.shape)))


def _axis(node: ir.Node, value: ir.Value) -> int:
    """The axis that a selection works on, of `value`, which has the same rank as what it selects from."""
    default = -1 if node.op_type == "TopK" else 0
    return int(node.attributes.get_int("axis", default) or 0) % max(len(value.shape or ()), 1)
