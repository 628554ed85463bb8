"""What was found out about a network's units, as a file that `vitesse prune --importance` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.compress.importance.scores import Scores
from vitesse.compress.importance.sensitivity import Curve, Sensitivity, Together
from vitesse.compress.importance.units import Group, Kind, groups
from vitesse.errors import DataError
from vitesse.sources.trainable import Trainable
from vitesse.storage import write_atomically

FILE = "importance.json"
_FORMAT = "vitesse.importance"


@dataclass(frozen=True)
class Importance:
    """The importance of every unit of a network, and what masking cost where it was measured.

    Args:
        model: what the user called the network.
        method: how the scores were made, see `scores`.
        images: on how many images the scores were made; 0 where none are needed.
        scores: group name → (size,); a group that the method says nothing about is not in it.
        metric: "coco_ap", "top1" or "agreement": what the sensitivity is measured in.
        scored: on how many images the metric was measured.
        sensitivity: None where it was not asked for.
    """

    model: str
    kind: str
    method: str
    images: int
    groups: tuple[Group, ...]
    scores: Scores
    metric: str = ""
    scored: int = 0
    sensitivity: Sensitivity | None = None


def write_importance(found: Importance, path: Path) -> None:
    """Write the file atomically; raises StorageError where that fails."""
    write_atomically(path, (json.dumps(_to_json(found), indent=1) + "\n").encode())


def read_importance(path: Path) -> Importance:
    """Read a file of `write_importance`.

    Raises:
        DataError: there is none, or it is another kind of file, or damaged.
    """
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != _FORMAT:
            raise ValueError(f"its format is {raw['format']!r}")
        return _from_json(raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise DataError(
            f"cannot read the importance in {path}: {reason}",
            expected=f"{FILE} as `vitesse importance` writes it",
            cause="another file, or one that was cut off or edited",
            fix="run `vitesse importance MODEL --data IMAGES --out FOLDER`",
        ) from error


def scores_for(path: Path, trainable: Trainable) -> Scores:
    """Read the scores of a file and check that they are those of this network: group name → (size,).

    Raises:
        DataError: the file cannot be read, or its groups are not those of the network.
    """
    found = read_importance(path)
    own, theirs = set(groups(trainable)), set(found.groups)
    if own != theirs:
        odd = min(own ^ theirs, key=lambda group: group.name)
        has = "the network" if odd in own else path.name
        raise DataError(
            f"{path} is not about this network: {has} alone has {odd.name} with {odd.size} {odd.kind}",
            expected=f"the {len(own)} groups of the network, each of its size",
            cause=f"it was made for {found.model}, or before the network was pruned",
            fix="run `vitesse importance` on this network",
        )
    return found.scores


def _to_json(found: Importance) -> dict[str, Any]:
    listed = [
        {
            "name": group.name,
            "kind": group.kind.value,
            "size": group.size,
            "scores": found.scores[group.name].tolist() if group.name in found.scores else None,
        }
        for group in found.groups
    ]
    return {
        "format": _FORMAT,
        "model": found.model,
        "kind": found.kind,
        "method": found.method,
        "images": found.images,
        "groups": listed,
        "metric": found.metric,
        "scored": found.scored,
        "sensitivity": None if found.sensitivity is None else _sensitivity_json(found.sensitivity),
    }


def _sensitivity_json(found: Sensitivity) -> dict[str, Any]:
    return {
        "base": found.base,
        "curves": {name: vars(curve) for name, curve in found.curves.items()},
        "alone": {name: drops.tolist() for name, drops in found.alone.items()},
        "together": [vars(one) for one in found.together],
        "agreement": {kind.value: value for kind, value in found.agreement.items()},
    }


def _from_json(raw: Mapping[str, Any]) -> Importance:
    listed = tuple(Group(one["name"], Kind(one["kind"]), int(one["size"])) for one in raw["groups"])
    scores = {
        one["name"]: np.array(one["scores"], np.float64) for one in raw["groups"] if one["scores"] is not None
    }
    for group in listed:
        if group.name in scores and scores[group.name].shape != (group.size,):
            raise ValueError(f"{group.name} has {scores[group.name].shape} scores for {group.size} units")
    measured = raw["sensitivity"]
    return Importance(
        model=raw["model"],
        kind=raw["kind"],
        method=raw["method"],
        images=raw["images"],
        groups=listed,
        scores=scores,
        metric=raw["metric"],
        scored=raw["scored"],
        sensitivity=None if measured is None else _sensitivity(measured),
    )


def _sensitivity(raw: Mapping[str, Any]) -> Sensitivity:
    return Sensitivity(
        raw["base"],
        {
            name: Curve(*map(tuple, (one["shares"], one["masked"], one["drops"])))
            for name, one in raw["curves"].items()
        },
        {name: np.array(drops, np.float64) for name, drops in raw["alone"].items()},
        tuple(
            Together(Kind(one["kind"]), tuple((name, index) for name, index in one["units"]), one["drop"])
            for one in raw["together"]
        ),
        {Kind(kind): value for kind, value in raw["agreement"].items()},
    )
