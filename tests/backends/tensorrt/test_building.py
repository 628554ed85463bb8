"""A build that fails for want of an attention kernel is done once more with attention written out; others are not."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from engine_runs import AnApi, attention
from tiny_onnx import as_artifact
from vitesse.artifact import Store
from vitesse.backends.tensorrt import building
from vitesse.backends.tensorrt.api import Api, load_api
from vitesse.backends.tensorrt.building import Finished, build_artifact
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan
from vitesse.errors import BackendError
from vitesse.progress import Progress

NO_KERNEL = (
    "x cannot build y: MyelinCheckException: failed. Attention operation was not "
    "supported by a dedicated kernel."
)


@dataclass
class Refusing:
    """A `build_plan` that refuses graphs with Attention, or all, with these words."""

    said: str
    always: bool = False
    built: list[str] = field(default_factory=list)

    def __call__(
        self, api: Api, model: Path, options: BuildOptions, progress: Progress | None = None
    ) -> BuiltPlan:
        self.built.append(model.name)
        if self.always or "Attention" in {node.op_type for node in onnx.load(model).graph.node}:
            raise BackendError(self.said)
        return BuiltPlan(b"plan", "1.0", "fp16", 1.0, options.profiles)


def finished(
    model: onnx.ModelProto, folder: Path, api: Api | None = None, options: BuildOptions | None = None
) -> Finished:
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return build_artifact(
        api or AnApi(),  # type: ignore[arg-type]
        as_artifact(file),
        options or BuildOptions(),
        store=Store(folder / "store"),
        name="tensorrt-rtx",
        distrusts=("grid_sample",),
        batch=(1, 2, 4),
    )


def test_attention_without_a_kernel_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Refusing(NO_KERNEL)
    monkeypatch.setattr(building, "build_plan", build)
    made = finished(attention(TensorProto.FLOAT16), tmp_path)
    assert len(build.built) == 2
    assert made.graph.changes == {"lowered:attention": 1}
    assert made.graph.notes[0] == "attention: tensorrt-rtx refuses Attention as it stands in this graph"
    assert made.graph.artifact.path.name == build.built[1]
    assert {span.opt[0] for span in made.options.profiles[0].inputs.values()} == {2}


@pytest.mark.parametrize(
    ("model", "said", "builds"),
    [
        (attention(TensorProto.FLOAT16), "out of memory", 1),
        (attention(TensorProto.FLOAT), NO_KERNEL, 1),
        (attention(TensorProto.FLOAT16), NO_KERNEL, 2),
    ],
    ids=["another refusal", "already written out", "twice"],
)
def test_what_that_does_not_mend_is_raised(
    model: onnx.ModelProto, said: str, builds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Refusing(said, always=True)
    monkeypatch.setattr(building, "build_plan", build)
    with pytest.raises(BackendError, match=said[:20]):
        finished(model, tmp_path)
    assert len(build.built) == builds


@pytest.mark.parametrize(
    ("model", "written_out"),
    [
        (attention(TensorProto.FLOAT16, width=8), True),
        (attention(TensorProto.FLOAT16, width=16), False),
        (attention(TensorProto.FLOAT16, width=256), False),
        (attention(TensorProto.FLOAT16, width=512), True),
        (attention(TensorProto.FLOAT, width=64), True),
        (attention(TensorProto.FLOAT16, width=64, reads=("q", "q", "v")), True),
    ],
    ids=["8 wide", "16 wide", "256 wide", "512 wide", "FP32", "queries that are keys"],
)
def test_rtx_builds_every_attention_some_of_it_written_out(
    model: onnx.ModelProto, *, written_out: bool, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU")
    options = BuildOptions(compute_capabilities=("sm86",))
    made = finished(model, tmp_path, load_api("tensorrt_rtx"), options)
    assert bool(made.graph.changes) == written_out, "docs/tensorrt.md says which attention has a kernel"
    assert made.plan.plan[:4] == b"vtrt"
