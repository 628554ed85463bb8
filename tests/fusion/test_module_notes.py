"""A node that replaces several belongs to the module that all of them share."""

from __future__ import annotations

import numpy as np
import onnx

from fusing import graph
from vitesse.fusion import fuse_model
from vitesse.scopes import MODULE_SCOPES, module_path

GELU = """d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"""


def gelu(*notes: str | None, names: tuple[str, ...] = ()) -> onnx.NodeProto:
    """Fuse an exact GELU of five nodes with these notes or names and return the one node."""
    model = graph(GELU, root=float(np.sqrt(2)), one=1.0, half=0.5)
    for node, note in zip(model.graph.node, notes, strict=False):
        if note:
            node.metadata_props.add(key=MODULE_SCOPES, value=note)
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    (fused,) = fuse_model(model).model.graph.node
    assert fused.op_type == "Gelu"
    return fused


def notes_of(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def test_modules_that_differ_inside_meet_in_the_outer_one() -> None:
    inner = "['', 'blocks.3', 'blocks.3.mlp', 'blocks.3.mlp.act', 'gelu']"
    outer = "['', 'blocks.3', 'blocks.3.mlp', 'mul']"
    assert module_path(notes_of(gelu(inner, inner, inner, inner, outer))) == ("blocks.3", "mlp")


def test_where_they_share_none_the_last_nodes_module_stays() -> None:
    fused = gelu("['', 'encoder', 'div']", None, None, None, "['', 'decoder', 'mul']")
    assert module_path(notes_of(fused)) == ("decoder",)


def test_scopes_in_names_become_a_note_for_the_new_node_has_another_name() -> None:
    names = tuple(f"/model/layers.0/act/{at}" for at in range(5))
    assert module_path(notes_of(gelu(names=names))) == ("model", "layers.0", "act")


def test_nodes_without_any_hint_leave_none() -> None:
    assert MODULE_SCOPES not in notes_of(gelu())
