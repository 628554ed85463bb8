"""Which module of the original network a node came from: the notes exporters leave, read and merged.

A module path is a tuple from the outside in, an index joined to its list: `("transformer", "decoder", "layers.0")`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

# torch's exporter writes a list: the qualified names of the modules from the outside in, then the operator's own.
MODULE_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"  # "outer: Class/outer.inner: Class/linear_3: aten.linear.default"
_CLASSES = "pkg.torch.onnx.class_hierarchy"  # a list of class names, then the operator's

Path = tuple[str, ...]

_INDEX = re.compile(r"\d+")
# What torch writes for operators it made itself, outside every module.
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"


def module_path(notes: Mapping[str, str]) -> Path | None:
    """Read a node's metadata; `()` is the network itself, None means that the node has no note of its module."""
    if notes.get(MODULE_SCOPES):
        scopes = _listed(notes[MODULE_SCOPES])
        return None if scopes is None else _joined(_innermost(scopes[:-1]))
    if notes.get(_NAMESPACE):
        parts = [part.partition(":")[0].strip() for part in notes[_NAMESPACE].split("/")]
        return _joined(_innermost(parts[:-1]))
    if notes.get(_CLASSES):
        classes = _listed(notes[_CLASSES])
        return None if classes is None else tuple(classes[:-1])
    return None


def path_in_name(name: str) -> Path | None:
    """Read a node name as torch's TorchScript exporter wrote it: `/model/encoder/layers.0/self_attn/MatMul`.

    A list of modules repeats its own name before the index (`/blocks/blocks.0`); it is named once in the path.
    """
    if not name.startswith("/"):
        return None
    parts: list[str] = []
    for part in name.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return _joined(".".join(parts))


def path_of(name: str, notes: Mapping[str, str]) -> Path | None:
    """Return the module path of a node by its metadata, else by its name; None where neither tells."""
    noted = module_path(notes)
    return path_in_name(name) if noted is None else noted


def common_path(paths: Sequence[Path | None]) -> Path | None:
    """Return the modules that all nodes share which became one; None where none of them is known.

    Where they share none, the last one's path: its result is what the new nodes compute.
    """
    known = [path for path in paths if path is not None]
    if not known:
        return None
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*known, strict=False))
    return tuple(level[0] for level in levels) or known[-1]


def scopes_note(path: Path, operator: str) -> str:
    """Write a path as torch's exporter does, under `MODULE_SCOPES`."""
    return str([*(".".join(path[:depth]) for depth in range(len(path) + 1)), operator])


def inherited(name: str, notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes for a node that does the work of the node `name`: its own, and the module its name tells."""
    path = path_of(name, notes)
    return dict(notes) if path is None else {MODULE_SCOPES: scopes_note(path, name), **notes}


def _listed(text: str) -> list[str] | None:
    """Parse a list of strings; None when it is not one, for another tool may have written it."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return [str(one) for one in found] if isinstance(found, list) and found else None


def _innermost(modules: Sequence[str]) -> str:
    """Return the qualified name of the innermost module; names grow from the outside in."""
    return next((name for name in reversed(modules) if name and name != _NOWHERE), "")


def _joined(qualified: str) -> Path:
    """Split at dots and join each index to the list it belongs to."""
    path: list[str] = []
    for part in filter(None, qualified.split(".")):
        if path and _INDEX.fullmatch(part):
            path[-1] = f"{path[-1]}.{part}"
        else:
            path.append(part)
    return tuple(path)
