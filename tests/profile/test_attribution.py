"""Kernels find their place by name, then by the kernels beside them; what is tied to nothing stays so."""

from __future__ import annotations

import onnx

from fusing import graph
from vitesse.profile.attribution import Matched, attribute, matched_ms
from vitesse.profile.modules import modules_of
from vitesse.profile.parts import Part
from vitesse.profile.recording import Kernel


def named_graph() -> onnx.ModelProto:
    model = graph("a = Relu(x) b = Neg(a) c = Relu(b) y = Neg(c)")
    for node, name in zip(
        model.graph.node,
        ("/backbone/a", "/encoder/layers.0/b", "/encoder/layers.1/c", "/decoder/y"),
        strict=True,
    ):
        node.name = name
    return model


def test_a_kernel_is_found_by_a_tensor_it_makes_whatever_it_is_called() -> None:
    kernels = [Kernel("fused_7", "Whatever", 2.0, 1, ("unknown", "b"))]
    ((place, how),) = attribute(kernels, modules_of(named_graph()))
    assert place is not None
    assert (place.part, place.path, how) == (Part.ENCODER, ("encoder", "layers.0"), Matched.DIRECT)


def test_an_inserted_kernel_takes_the_place_of_what_it_reads_else_of_its_reader() -> None:
    kernels = [
        Kernel("first", "Reorder", 1.0, 1),
        Kernel("a", "Relu", 1.0, 1, ("a",), ("first",)),
        Kernel("reorder", "Reorder", 1.0, 1, (), ("a",)),
        Kernel("again", "Reorder", 1.0, 1, (), ("reorder",)),
        Kernel("y", "Neg", 1.0, 1, ("y",), ("again",)),
    ]
    parts = [place.part for place, _ in attribute(kernels, modules_of(named_graph())) if place]
    assert parts == [Part.BACKBONE] * 4 + [Part.DECODER]


def test_between_two_modules_a_kernel_belongs_to_what_they_share() -> None:
    kernels = [
        Kernel("b", "Neg", 1.0, 1, ("b",)),
        Kernel("c", "Relu", 1.0, 1, ("c",)),
        Kernel("joined", "Concat", 1.0, 1, (), ("b", "c")),
    ]
    place, how = attribute(kernels, modules_of(named_graph()))[2]
    assert place is not None
    assert (place.path, how) == (("encoder",), Matched.NEIGHBOURS)


def test_what_is_tied_to_nothing_is_not_attributed_and_its_time_is_kept() -> None:
    kernels = [Kernel("a", "Relu", 3.0, 1, ("a",)), Kernel("alien", "Copy", 2.0, 1, ("alien",), ("other",))]
    attributed = attribute(kernels, modules_of(named_graph()))
    assert attributed[1] == (None, Matched.NOT)
    assert matched_ms(kernels, attributed) == {Matched.DIRECT: 3.0, Matched.NEIGHBOURS: 0.0, Matched.NOT: 2.0}
