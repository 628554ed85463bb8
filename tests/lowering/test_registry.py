from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fusing import graph, normal, ops, run
from tiny_onnx import SPEC, as_artifact
from vitesse import stages
from vitesse.artifact import Store
from vitesse.backends.onnxruntime import OnnxRuntimeBackend
from vitesse.errors import UsageError
from vitesse.lowering import REWRITES, rewrite_of
from vitesse.lowering.lower import lower_model
from vitesse.lowering.needed import needs

DOCS = Path(__file__).resolve().parents[2] / "docs" / "lowering.md"
# A model of one operator for each rewrite: (body, inputs, outputs, opset, constants).
EXAMPLES = {
    "attention": ("y = Attention(x, x, x)", "float[N,2,5,8] x", "float[N,2,5,8] y", 23, {}),
    "einsum": ('y = Einsum<equation="bqd,dk->bqk">(x, w)', "float[N,5,8] x", "float[N,5,3] y", 17, {"w": normal(8, 3)}),
    "gelu": ("y = Gelu(x)", "float[N,5,8] x", "float[N,5,8] y", 20, {}),
    "grid_sample": ("y = GridSample(x, g)", "float[N,2,5,8] x", "float[N,2,3,4] y", 20, {"g": normal(2, 3, 4, 2)}),
    "group_norm": (
        "y = GroupNormalization<num_groups=2>(x, s, s)", "float[N,4,5,8] x", "float[N,4,5,8] y", 21, {"s": normal(4)}
    ),
    "hard_swish": ("y = HardSwish(x)", "float[N,5,8] x", "float[N,5,8] y", 14, {}),
    "layer_norm": ("y = LayerNormalization(x, s)", "float[N,5,8] x", "float[N,5,8] y", 17, {"s": normal(8)}),
    "resize": (
        'y = Resize<mode="cubic">(x, , , s)', "float[2,2,5,8] x", "float[2,2,9,4] y", 19, {"s": np.array([2, 2, 9, 4])}
    ),
    "rms_norm": ("y = RMSNormalization(x, s)", "float[N,5,8] x", "float[N,5,8] y", 23, {"s": normal(8)}),
}  # fmt: skip


def example(name: str) -> onnx.ModelProto:
    body, inputs, outputs, opset, constants = EXAMPLES[name]
    return graph(body, inputs, outputs, opset, **constants)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    (info,) = model.graph.input
    return {info.name: normal(*(dim.dim_value or 2 for dim in info.type.tensor_type.shape.dim), seed=5)}


def test_every_rewrite_has_an_example_and_a_row_in_the_docs() -> None:
    assert set(EXAMPLES) == set(REWRITES)
    table = DOCS.read_text()
    assert [name for name in REWRITES if f"| `{name}` |" not in table] == []


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_does_what_its_row_says_and_nothing_twice(name: str) -> None:
    before, row = example(name), REWRITES[name]
    assert (row.name, row.fusion().name, row.fusion().opset) == (name, name, row.opset)
    assert rewrite_of(row.operator) is row
    done = lower_model(before, [name])
    assert done.changes == {name: 1}
    assert row.operator not in ops(done.model)
    assert set(ops(done.model)) <= set(row.emits)
    np.testing.assert_allclose(run(done.model, feeds(before))[0], run(before, feeds(before))[0], atol=5e-6)
    again = lower_model(done.model, [name])
    assert again.changes == {name: 0}
    assert again.model.graph.node == done.model.graph.node


@pytest.mark.parametrize("name", REWRITES)
def test_a_model_without_the_operator_counts_zero(name: str) -> None:
    done = lower_model(graph("y = Relu(x)"), [name])
    assert (done.changes, done.reasons) == ({name: 0}, {})


def test_rewrites_are_applied_in_the_order_they_are_named() -> None:
    body = "n = LayerNormalization(x, s) y = Gelu(n)"
    done = lower_model(graph(body, opset=20, s=normal(8)), ["gelu", "layer_norm", "gelu"])
    assert list(done.changes.items()) == [("gelu", 1), ("layer_norm", 1)]


def test_an_unknown_rewrite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        lower_model(graph("y = Relu(x)"), ["gelu", "gridsample"])
    assert caught.value.what == "unknown rewrite 'gridsample'"
    assert caught.value.expected == f"some of: {', '.join(REWRITES)}"


def test_the_table_loads_no_rewriter() -> None:
    code = "import sys, vitesse.lowering; print([m for m in sys.modules if m.startswith(('onnx', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_stage_makes_an_artifact_with_counts_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(example("gelu").SerializeToString())
    built = stages.lower(as_artifact(path), ["gelu", "grid_sample"], Store(tmp_path / "artifacts"))
    built.artifact.check()
    assert built.artifact.provenance.stage == "lower"
    assert (built.changes, built.notes) == ({"gelu": 1, "grid_sample": 0}, ())
    assert "Gelu" not in ops(onnx.load(built.artifact.path))


class Without(OnnxRuntimeBackend):
    """ONNX Runtime that refuses some operators, and computes Elu in the place of another."""

    def __init__(self, name: str, *refused: str, wrong: str = "", distrusts: tuple[str, ...] = ()) -> None:
        self.name, self._refused, self._wrong, self.distrusts = name, refused, wrong, distrusts

    def load(self, artifact, options=None):  # type: ignore[no-untyped-def]
        model = onnx.load(artifact.path)
        for node in model.graph.node:
            if node.op_type in self._refused:
                node.domain = "nowhere"
            if node.op_type == self._wrong:
                node.op_type = "Elu"
        artifact.path.write_bytes(model.SerializeToString())
        return super().load(artifact, options)


def test_what_a_runtime_refuses_computes_otherwise_or_distrusts_is_needed() -> None:
    body = "g = Gelu(x) n = LayerNormalization(g, s) y = HardSwish(n)"
    model = graph(body, opset=20, s=normal(8))
    runtime = Without("needy", "LayerNormalization", wrong="Gelu", distrusts=("hard_swish",))
    found = {need.rewrite: need.why for need in needs(runtime, model, SPEC)}
    off = found.pop("gelu")
    assert off.startswith("needy computes Gelu otherwise: off by ") and off.endswith(
        " % of its largest value"
    )
    assert found == {
        "layer_norm": "needy refuses LayerNormalization",
        "hard_swish": "needy is known to compute HardSwish wrongly",
    }
    assert needs(OnnxRuntimeBackend(), model, SPEC) == ()


def test_building_rewrites_what_the_runtime_lacks_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph("g = Gelu(x) y = HardSwish(g)", opset=20).SerializeToString())
    built = Without("without gelu", "Gelu").build(as_artifact(path), Store(tmp_path / "artifacts"))
    assert built.changes["lowered:gelu"] == 1
    assert built.notes == ("lowered:gelu: without gelu refuses Gelu",)
    assert ops(onnx.load(built.artifact.path))["Gelu"] == 0
    untouched = OnnxRuntimeBackend().build(as_artifact(path), Store(tmp_path / "artifacts"))
    assert untouched.artifact.path == path and not any(untouched.changes.values())
