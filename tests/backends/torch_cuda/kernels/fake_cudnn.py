"""What `cudnn.conv` uses of the package `cudnn`, on the CPU: a graph that remembers its nodes, computed in torch.

Plans behave as the real ones do: a graph is planned once, an engine of another number is not supported, and plans of
the package's own Python engines stand in the same list.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F


class DataType(enum.Enum):
    HALF = torch.float16
    BFLOAT16 = torch.bfloat16
    FLOAT = torch.float32
    FP8_E4M3 = torch.float8_e4m3fn


class HeurMode(enum.Enum):
    A = 0
    FALLBACK = 1


class KnobType(enum.Enum):
    TILE_SIZE = 0
    STAGES = 1


class NotSupportedError(RuntimeError):
    pass


class Node:
    """A tensor of the graph: how to compute it, and how it was declared."""

    def __init__(self, compute: Callable[[dict[Node, Any]], Any], **declared: Any) -> None:
        self.compute, self.declared = compute, declared

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("set_"):
            raise AttributeError(name)

        def declare(value: Any) -> Node:
            self.declared[name.removeprefix("set_")] = value
            return self

        return declare


class Graph:
    """Two engines of cuDNN, one of them twice, and one of the package's own."""

    PLANS = (
        (3, {KnobType.TILE_SIZE: 1}),
        (20_801, {}),
        (3, {KnobType.TILE_SIZE: 1}),
        (7, {KnobType.TILE_SIZE: 2, KnobType.STAGES: 4}),
    )
    WORKSPACE = 64

    def __init__(self, **context: Any) -> None:
        self.context, self.built, self.plans = context, {}, []
        self.validated = False

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: DataType) -> Node:
        made = Node(lambda pack: pack[made], name=name, dim=dim, stride=stride, data_type=data_type)
        return made

    def conv_fprop(self, image: Node, weight: Node, **where: Any) -> Node:
        def compute(pack: dict[Node, Any]) -> Any:
            (top, left), (bottom, right) = where["pre_padding"], where["post_padding"]
            x = F.pad(image.compute(pack).float(), (left, right, top, bottom))
            return F.conv2d(x, weight.compute(pack).float(), None, where["stride"], 0, where["dilation"])

        return Node(compute)

    def add(self, a: Node, b: Node) -> Node:
        return Node(lambda pack: a.compute(pack) + b.compute(pack).float())

    def mul(self, a: Node, b: Node) -> Node:
        return Node(lambda pack: a.compute(pack) * b.compute(pack).float())

    def relu(self, input: Node) -> Node:
        return Node(lambda pack: torch.relu(input.compute(pack)))

    def swish(self, input: Node) -> Node:
        return Node(lambda pack: F.silu(input.compute(pack)))

    def validate(self) -> None:
        self.validated = True

    def build_operation_graph(self) -> None:
        assert self.validated

    def create_execution_plans(self, modes: list[HeurMode]) -> None:
        assert not self.plans, "planning is one-shot"
        self.plans = list(self.PLANS)

    def create_execution_plan(self, engine: int, knobs: dict[KnobType, int]) -> None:
        if (engine, knobs) not in self.PLANS:
            raise NotSupportedError(f"no engine {engine} with these knobs")
        self.plans.append((engine, knobs))

    def get_execution_plan_count(self) -> int:
        return len(self.plans)

    def get_engine_and_knobs_at_index(self, index: int) -> tuple[int, dict[KnobType, int]]:
        return self.plans[index]

    def build_plan_at_index(self, index: int) -> None:
        self.built[index] = self.plans[index]

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self.built
        return self.WORKSPACE

    def execute_plan_at_index(self, pack: dict[Node, Any], workspace: Any, index: int, handle: Any) -> None:
        assert index in self.built
        assert workspace.numel() >= self.WORKSPACE
        for node, tensor in pack.items():
            assert list(tensor.shape) == node.declared["dim"]
            assert tensor.dtype == node.declared["data_type"].value
            moving = [axis for axis in range(4) if tensor.shape[axis] > 1]
            assert all(tensor.stride(axis) == node.declared["stride"][axis] for axis in moving)
        (out,) = (node for node in pack if node.declared.get("output"))
        largest = 448.0 if pack[out].dtype == torch.float8_e4m3fn else torch.inf
        pack[out].copy_(out.compute(pack).clamp(-largest, largest))


def module() -> ModuleType:
    """Make the package."""
    made: Any = ModuleType("cudnn")
    made.data_type, made.heur_mode, made.knob_type = DataType, HeurMode, KnobType
    made.pygraph, made.cudnnGraphNotSupportedError = Graph, NotSupportedError
    made.backend_version = lambda: 91300
    return made  # type: ignore[no-any-return]
