"""Which arrays of what a JAX function returns are the model's outputs, and what they are called in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from vitesse.errors import SpecError
from vitesse.spec import ROLES, Decode, ModelSpec, Preprocessing, Task

_WHOLE = ""  # where the array is when the function returns it bare


@dataclass(frozen=True)
class Outputs:
    """Names in the graph, and where each is among the leaves of what the function returns."""

    names: tuple[str, ...]
    leaves: tuple[int, ...]

    def of(self, returned: Any) -> tuple[Any, ...]:
        """Return the arrays, in the order of the names."""
        leaves = jax.tree_util.tree_leaves(returned)
        return tuple(leaves[index] for index in self.leaves)


def describe(returned: Any) -> str:
    """Return `logits float32[2,91], boxes float32[2,4]` for a tree of arrays or of their shapes."""
    return ", ".join(
        f"{path or 'an array'} {leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in _leaves(returned)
    )


def default_spec(returned: Any, size: tuple[int, int]) -> ModelSpec:
    """Return the spec of a classifier as google-research/vision_transformer trains them: pixels from -1 to 1.

    Args:
        returned: shapes of what the function returns; logits (batch, classes) alone, first, or under that name.
        size: image (height, width) in pixels.

    Raises:
        SpecError: there are no such logits, so that nobody knows how to read the outputs.
    """
    leaves = dict(_leaves(returned))
    logits = next((leaves[path] for path in (_WHOLE, "logits", "0") if path in leaves), None)
    if logits is None or len(logits.shape) != 2:
        raise SpecError(
            f"the function returns {describe(returned)}, and no spec says how to read it",
            expected="a spec; without one only logits (batch, classes) are understood",
            cause="a detector, whose class scores may mean a softmax or sigmoids",
            fix='give a spec with task = "detection" and decode = "detr_softmax" or "detr_sigmoid"',
        )
    half = (0.5, 0.5, 0.5)
    rules = Preprocessing(size, mean=half, std=half)
    return ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, rules)


def choose_outputs(returned: Any, spec: ModelSpec, *, keep_aux: bool) -> Outputs:
    """Find the spec's outputs in what the function returns.

    A role is found under the output's name in the spec, under the name of the role, or by its place in a tuple:
    (logits, boxes). All else is auxiliary: left out, or behind the others as `aux_PATH` where `keep_aux` says so.

    Raises:
        SpecError: an output is missing.
    """
    roles = ROLES[spec.decode]
    paths = [path for path, _ in _leaves(returned)]
    chosen: dict[str, int] = {}
    for place, role in enumerate(roles):
        chosen[spec.outputs[role]] = _find(
            paths, (spec.outputs[role], role, str(place)), role, returned, spec
        )
    if keep_aux:
        used = set(chosen.values())
        chosen |= {f"aux_{path}": index for index, path in enumerate(paths) if index not in used}
    return Outputs(tuple(chosen), tuple(chosen.values()))


def _find(paths: Sequence[str], wanted: Sequence[str], role: str, returned: Any, spec: ModelSpec) -> int:
    known: Mapping[str, int] = {path: index for index, path in enumerate(paths)}
    for path in wanted:
        if path in known:
            return known[path]
    if paths == [_WHOLE] and len(spec.outputs) == 1:
        return 0
    raise SpecError(
        f"the function returns {describe(returned)}, and none of it is the output `{spec.outputs[role]}` ({role})",
        expected=f"a dict with these names, or a tuple in this order: {', '.join(spec.outputs.values())}",
        fix="return the outputs so, or correct outputs in the spec",
    )


def _leaves(returned: Any) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(returned)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]
