"""What a graph must lose before TensorRT gets it, and what Turing cannot compile."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine_runs import BF16, FP16, FP32, WITH_ISLAND, attention
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact, Store
from vitesse.backends import backend
from vitesse.backends.tensorrt.preparing import prepared, unfit_for
from vitesse.sources.onnx_file import load_onnx


def grid_sample() -> onnx.ModelProto:
    node = helper.make_node("GridSample", ["x", "grid"], ["logits"], name="/sample", mode="linear")
    graph = helper.make_graph(
        [node],
        "sample",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5]),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, [1, 3, 3, 2]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 3, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(model: onnx.ModelProto, folder: Path) -> Artifact:
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return as_artifact(file)


def answers(artifact: Artifact, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    random = np.random.default_rng(seed)
    with backend("onnxruntime").load(artifact) as engine, engine.session() as session:
        feeds = {
            info.name: random.uniform(
                -1, 1, [2 if isinstance(size, str) else size for size in info.shape]
            ).astype(np.float32)
            for info in engine.inputs
        }
        return np.array(session.run(feeds).outputs["logits"])


@pytest.mark.parametrize(
    ("model", "rewrite", "gone", "why"),
    [
        (
            attention(TensorProto.FLOAT),
            "attention",
            "Attention",
            "no kernel for Attention in FP32 (1 operators)",
        ),
        (
            attention(TensorProto.FLOAT16, reads=("q", "q", "v")),
            "attention",
            "Attention",
            "crashes on Attention whose queries and keys are one tensor",
        ),
        (grid_sample(), "grid_sample", "GridSample", "is known to compute GridSample wrongly"),
    ],
    ids=["attention in FP32", "queries that are keys", "grid_sample"],
)
def test_it_is_rewritten_with_the_same_answer_and_said(
    model: onnx.ModelProto, rewrite: str, gone: str, why: str, tmp_path: Path
) -> None:
    before = saved(model, tmp_path)
    made = prepared(before, Store(tmp_path / "store"), name="tensorrt", distrusts=("grid_sample",))
    assert made.changes == {f"lowered:{rewrite}": 1}
    assert any(why in note for note in made.notes)
    assert gone not in {node.op_type for node in load_onnx(made.artifact.path).graph.node}
    assert made.artifact.provenance.parent_sha256 == before.sha256
    # In FP16 the two forms round in different places.
    np.testing.assert_allclose(answers(made.artifact), answers(before), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("model", "distrusts"),
    [(attention(TensorProto.FLOAT16), ("grid_sample",)), (grid_sample(), ()), (FP32, ("grid_sample",))],
    ids=["attention in FP16 has a kernel", "GridSample is trusted", "nothing to rewrite"],
)
def test_what_the_library_takes_stays_the_same_file(
    model: onnx.ModelProto, distrusts: tuple[str, ...], tmp_path: Path
) -> None:
    before = saved(model, tmp_path)
    made = prepared(before, Store(tmp_path / "store"), name="tensorrt", distrusts=distrusts)
    assert made.artifact is before
    assert not made.changes
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (FP32, "it multiplies matrices in FP32 (1 operators, the first is MatMul '/0/MatMul')"),
        (WITH_ISLAND, "it multiplies matrices in FP32 (1 operators, the first is MatMul '/1/MatMul')"),
        (attention(TensorProto.FLOAT), "the first is Attention '/a/Attention'"),
        (BF16, "it computes in BF16"),
        (FP16, ""),
        (attention(TensorProto.FLOAT16), ""),
        (grid_sample(), ""),
    ],
    ids=["FP32", "an island", "attention", "BF16", "FP16", "attention in FP16", "no product"],
)
def test_turing_lacks_fp32_products_and_bf16(model: onnx.ModelProto, why: str) -> None:
    found = unfit_for(model, "sm75")
    assert why in found
    assert bool(found) == bool(why)
    assert unfit_for(model, "sm86") == ""
