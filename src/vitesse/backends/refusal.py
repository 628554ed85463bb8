"""What a runtime's error text is about: a file that is gone or damaged, or a node of the graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import onnx

from vitesse.errors import BackendError
from vitesse.lowering import rewrite_of
from vitesse.scopes import path_of


def refusal(runtime: str, doing: str, path: Path, error: Exception) -> BackendError:
    """Turn what a runtime raised into a BackendError that says what is the matter with the file.

    Args:
        runtime: name and version for the message.
        doing: "loading", "reading" or "running".
        path: the model file.
        error: what was raised; its text is kept.
    """
    said = " ".join(str(error).split())
    what = f"{runtime} refuses {path} while {doing} it: {said}"
    if not path.is_file():
        return BackendError(what, expected="a model file", cause="the file is gone", fix="check the path")
    try:
        nodes = list(onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # protobuf and onnx raise a dozen kinds; each means that this is no readable ONNX
        nodes = []
    if doing != "running" and not nodes:
        cause = "the file is truncated or damaged, or is something else"
        return BackendError(
            what, expected="a readable model file", cause=cause, fix="export or copy it again"
        )
    node = meant(said, nodes)
    if node is None:
        return BackendError(what)
    cause = placed(node)
    if doing == "running":
        return BackendError(what, cause=cause)
    return BackendError(what, expected=f"operators that {runtime} has", cause=cause, fix=way_out(node))


def placed(node: onnx.NodeProto) -> str:
    """Return `operator Gelu, domain 'ai.onnx', node 'gelu_3', of the module encoder.layers.0`."""
    return f"operator {node.op_type}, domain {node.domain or 'ai.onnx'!r}, node {node.name!r}{_module(node)}"


def _module(node: onnx.NodeProto) -> str:
    """Where in the network the node came from, as far as its exporter noted it."""
    path = path_of(node.name, {entry.key: entry.value for entry in node.metadata_props})
    if path is None:
        return ""
    return f", of the module {'.'.join(path)}" if path else ", of the network itself"


def way_out(node: onnx.NodeProto) -> str:
    """Return the option that writes the node's operator in others, or say that there is none."""
    rewrite = rewrite_of(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rewrite is None:
        return f"no rewrite of {node.op_type} exists: export with another opset, or try another target"
    return f"--lower {rewrite.name} writes {node.op_type} in more basic operators"


def meant(said: str, nodes: Sequence[onnx.NodeProto]) -> onnx.NodeProto | None:
    """Return the node an error text is about: named by name and operator, by name, or by operator, in this order."""
    words = set(re.findall(r"\w+", said))
    by_operator = [node for node in nodes if node.op_type in words]
    by_name = sorted(
        (node for node in nodes if node.name and node.name in said), key=lambda node: -len(node.name)
    )
    both = [node for node in by_name if node.op_type in words]
    return next(iter(both or by_name or by_operator), None)
