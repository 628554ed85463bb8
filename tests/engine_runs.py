"""Run folders of tiny graphs, made without running anything, and a build that compiles nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiny_onnx import SPEC
from vitesse.artifact import Provenance, Store
from vitesse.backends.tensorrt.api import Api
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan
from vitesse.errors import BackendError
from vitesse.ledger import Accuracy, Ledger, Row, Verdict
from vitesse.metadata import serialise
from vitesse.progress import Progress
from vitesse.run import Run, RunFolder, open_run


def product(dtype: int, *, operator: str = "MatMul", inner: int | None = None) -> onnx.ModelProto:
    """logits (N, 3) = x (N, 6) by a matrix, computed in `dtype` between casts; `inner` adds a second product in it."""
    nodes, last = [helper.make_node("Cast", ["x"], ["h0"], to=dtype)], "h0"
    constants = []
    for number, (kind, width) in enumerate([(dtype, 6), *([] if inner is None else [(inner, 6)])]):
        nodes.append(helper.make_node("Cast", [last], [f"c{number}"], to=kind))
        matrix = np.linspace(-1, 1, 6 * width).reshape(6, width)
        constants.append(helper.make_tensor(f"w{number}", kind, (6, width), matrix.ravel().tolist()))
        nodes.append(
            helper.make_node(
                operator, [f"c{number}", f"w{number}"], [f"p{number}"], name=f"/{number}/{operator}"
            )
        )
        last = f"p{number}"
    nodes.append(helper.make_node("Cast", [last], ["wide"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Gather", ["wide", "some"], ["logits"], axis=1))
    constants.append(numpy_helper.from_array(np.arange(3), "some"))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def attention(
    dtype: int, *, width: int = 8, reads: tuple[str, str, str] = ("q", "k", "v")
) -> onnx.ModelProto:
    """logits = Attention(q, k, v) of shapes (N, 2, 4, width), computed in `dtype` between casts."""
    names = tuple(dict.fromkeys(reads))
    nodes = [helper.make_node("Cast", [name], [f"{name}0"], to=dtype) for name in names]
    nodes += [
        helper.make_node("Attention", [f"{name}0" for name in reads], ["mixed"], name="/a/Attention"),
        helper.make_node("Cast", ["mixed"], ["logits"], to=TensorProto.FLOAT),
    ]
    shape = ["N", 2, 4, width]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


FP32, FP16 = product(TensorProto.FLOAT), product(TensorProto.FLOAT16)
BF16 = product(TensorProto.BFLOAT16)
WITH_ISLAND = product(TensorProto.FLOAT16, inner=TensorProto.FLOAT)


def a_run(
    folder: Path, graphs: Mapping[str, onnx.ModelProto], *, drops: Mapping[str, float] | None = None
) -> Run:
    """Write a run whose steps made these graphs; `drops` are points lost, and more than 0.5 was too much."""
    RunFolder(folder).claim("model", "data", SPEC)
    rows = []
    for stage, model in graphs.items():
        made = Store(folder / "artifacts").put(
            serialise(model, SPEC), SPEC, Provenance(stage), suffix=".onnx"
        )
        drop = (drops or {}).get(stage, 0.0)
        verdict = Verdict.PASS if drop <= 0.5 else Verdict.REJECTED
        accuracy = Accuracy("top1", 0.9 - drop / 100, drop, 100)
        rows.append(Row(stage, verdict, "measured", artifact=made.ref(folder), accuracy=accuracy))
    Ledger("model.onnx", "cpu", tuple(rows), chosen=0).save(folder / "ledger.json")
    return open_run(folder)


class AnApi:
    """Stands for a TensorRT module."""

    def __init__(self, version: str = "1.0") -> None:
        self.__version__ = version


@dataclass
class FakeBuilds:
    """A `build_plan` that compiles nothing: it notes what it was asked for, and refuses capabilities by name."""

    refuses: tuple[str, ...] = ()
    asked: list[tuple[str, BuildOptions]] = field(default_factory=list)

    def __call__(
        self, api: Api, model: Path | bytes, options: BuildOptions, progress: Progress | None = None
    ) -> BuiltPlan:
        assert isinstance(model, Path)
        self.asked.append((model.name, options))
        (capability,) = options.compute_capabilities or ("here",)
        if capability in self.refuses:
            raise BackendError(f"no kernel for {capability}", fix="another GPU")
        content = f"plan {len(self.asked)} of {model.name} for {capability}".encode()
        return BuiltPlan(content, api.__version__, "fp16", 1.5, options.profiles, log=("a warning",))
