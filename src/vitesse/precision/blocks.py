"""Layers gathered into blocks by the modules they belong to: `encoder.layers.0.attention`, `backbone.layer1.0`.

A block is what a search lowers or leaves as a whole, so there should be few: names are made coarser, first in the
backbone, then in transformer layers, until there are at most `MOST`. Where nodes carry no names, blocks are numbered
from one normalisation, or residual sum of convolutions, to the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vitesse.profile.graph import Flow
from vitesse.profile.modules import Modules, Place
from vitesse.profile.parts import Part, has_decoder, part_by_name
from vitesse.profile.structure import NORMALISATION

MOST = 40
# Fewer blocks than this for more layers than that: the names tell them not apart.
_FEWEST, _MANY = 4, 12
# They hold the modules of a part and say nothing about which one it is.
_WRAPPERS = frozenset(
    {"model", "module", "body", "network", "features", "conv_encoder", "encoder", "decoder", "transformer"}
)
_INDEX = re.compile(r"[._]\d+$")
# torchvision and DETR write both as one: layer1.0.
_STAGE_AND_BLOCK = re.compile(r"\d[._]\d+$")
_CROSS = re.compile(r"cross|multihead_attn|encoder_attn", re.IGNORECASE)
_ATTENTION = re.compile(r"att", re.IGNORECASE)


def block_names(flow: Flow, modules: Modules, chosen: Sequence[int]) -> Mapping[int, str]:
    """Return position → block name for the nodes at the `chosen` positions, in ascending order."""
    if not chosen:
        return {}
    decoder = has_decoder(place.path for place in modules.places)
    for backbone_depth, kinds in ((2, True), (1, True), (1, False)):
        named = {
            at: _named(modules.places[at], flow.nodes[at].op_type, decoder, backbone_depth, kinds)
            for at in chosen
        }
        if len(set(named.values())) <= MOST:
            break
    pathless = sum(not modules.places[at].path for at in chosen)
    if 2 * pathless > len(chosen) or (len(set(named.values())) < _FEWEST and len(chosen) > _MANY):
        return _numbered(flow, modules, chosen)
    return named


def _named(place: Place, op_type: str, decoder: bool, backbone_depth: int, kinds: bool) -> str:
    own, rest = _inside(place, decoder)
    rest = [name for name in rest if _plain(name) not in _WRAPPERS]
    if place.part is Part.BACKBONE:
        return ".".join([_plain(own), *_stage(rest, backbone_depth)])
    indexed = bool(_INDEX.search(own))
    kept, inner = ([], rest) if indexed else (rest[:1], rest[1:])
    name = ".".join([own, *kept])
    if not (indexed or (kept and _INDEX.search(kept[0]))) or op_type == "Conv" or not kinds:
        return name
    return f"{name}.{_kind(inner)}"


def _inside(place: Place, decoder: bool) -> tuple[str, list[str]]:
    """Return the module that makes up the part, and the path inside it."""
    for depth, name in enumerate(place.path):
        if part_by_name((name,), decoder=decoder) is place.part:
            return name, list(place.path[depth + 1 :])
    return str(place.part).replace(" ", "_"), list(place.path)


def _stage(rest: Sequence[str], depth: int) -> Sequence[str]:
    """Return the stage (depth 1) or the residual block inside it (depth 2)."""
    if not rest or _STAGE_AND_BLOCK.search(rest[0]):
        return [_plain(name) if depth == 1 else name for name in rest[:1]]
    inner = depth > 1 and len(rest) > 1 and bool(_INDEX.search(rest[1]))
    return rest[:2] if inner else rest[:1]


def _kind(inner: Sequence[str]) -> str:
    if any(_CROSS.search(name) for name in inner):
        return "cross_attention"
    return "attention" if any(_ATTENTION.search(name) for name in inner) else "mlp"


def _plain(name: str) -> str:
    return _INDEX.sub("", name)


def _numbered(flow: Flow, modules: Modules, chosen: Sequence[int]) -> Mapping[int, str]:
    """Number the stretches between normalisations; among convolutions, between residual sums."""
    wanted = set(chosen)
    numbers: dict[int, tuple[Part, int]] = {}
    stretch = 0
    for at, node in enumerate(flow.nodes):
        residual = node.op_type == "Add" and len(flow.computed(at)) == 2
        ends = modules.places[at].part is Part.BACKBONE and residual
        if node.op_type in NORMALISATION or ends:
            stretch += 1
        if at in wanted:
            numbers[at] = (modules.places[at].part, stretch)
    order = list(dict.fromkeys(numbers.values()))
    joined = -(-len(order) // MOST)  # neighbours put together where there are too many
    seen: dict[Part, dict[int, int]] = {}
    names = {}
    for place, (part, _) in enumerate(order):
        group = seen.setdefault(part, {})
        number = group.setdefault(place // joined, len(group))
        names[order[place]] = f"{str(part).replace(' ', '_')}.{number}"
    return {at: names[key] for at, key in numbers.items()}
