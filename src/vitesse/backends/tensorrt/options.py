"""What an engine is built for: shapes, memory, effort, GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, the most usual and the largest shape of one input; every dimension min ≤ opt ≤ max."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: the range of every dynamic input, by name."""

    inputs: Mapping[str, ShapeRange]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        profiles: one or more, for several sizes; empty = one made from the graph's own shapes, which must be fixed.
        workspace_bytes: scratch memory that one layer may take; 0 = all there is.
        level: builder optimisation level 0..5; None = the library's own.
        compute_capabilities: such as ("sm75", "sm86"), for a build without the GPU; empty = the GPU that is here.
        timing_cache: file in which measured tactics are kept across builds.
        version_compatible: other versions of the same major release may run the engine.
        verbose: keep the builder's whole log.
    """

    profiles: tuple[Profile, ...] = ()
    workspace_bytes: int = 0
    level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    version_compatible: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine and what the build was like.

    Args:
        plan: the bytes to deserialise.
        version: of the library.
        precision: the types of the network's products, such as "fp16", "int8+fp16".
        seconds: parsing and building.
        layers: the library's own layer information, as JSON text; "" where it gave none.
        log: warnings and errors, in order, without repeats.
        settings: what was set on the builder and what was not there to be set, in words.
    """

    plan: bytes
    version: str
    precision: str
    seconds: float
    profiles: tuple[Profile, ...]
    layers: str = ""
    log: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
