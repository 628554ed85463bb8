"""From a torch module to a verified ONNX file; what is exported wrongly is caught."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.artifact import Store  # noqa: E402
from vitesse.errors import ModelError, NotVerified, UsageError  # noqa: E402
from vitesse.export.exporting import export_source  # noqa: E402
from vitesse.export.torch_onnx import Network, TorchSource  # noqa: E402
from vitesse.metadata import read_spec  # noqa: E402
from vitesse.sources.signature import graph_inputs  # noqa: E402
from vitesse.sources.source import Exported, ExportOptions  # noqa: E402
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task  # noqa: E402

SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, Preprocessing((16, 24)))
SIZES = frozenset({"batch", "height", "width"})


class Tiny(torch.nn.Module):
    """Convolution, mean over the image, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).relu().mean((2, 3)))


def source(module: Callable[[], torch.nn.Module] = Tiny, axes: frozenset[str] = SIZES) -> TorchSource:
    def build(options: ExportOptions) -> Network:
        torch.manual_seed(0)
        size = options.size or (16, 24)
        spec = replace(SPEC, preprocessing=replace(SPEC.preprocessing, size=size))
        names = {"images": {0: "batch", 2: "height", 3: "width"}}
        return Network(module(), {"images": torch.zeros(2, 3, *size)}, ("logits",), spec, names, stride=2)

    return TorchSource("a tiny model", "identity", build, axes)


def test_the_file_carries_its_spec_its_story_and_the_distance_to_the_model(tmp_path: Path) -> None:
    artifact = export_source(source(), ExportOptions()).put(Store(tmp_path))
    model = onnx.load(artifact.path)
    assert read_spec(model) == artifact.spec == SPEC
    assert graph_inputs(model)[0].shape == ("batch", 3, 16, 24)
    how = artifact.provenance.options
    assert (how["exported from"], how["opset"], how["open axes"]) == ("a tiny model", "18", "batch")
    assert how["largest difference to the model itself"].startswith("1×16×24: ")
    assert "3×16×24: " in how["largest difference to the model itself"]


def test_open_height_and_width_are_checked_at_sizes_other_than_the_traced_one(tmp_path: Path) -> None:
    artifact = export_source(source(), ExportOptions(dynamic=SIZES)).put(Store(tmp_path))
    assert graph_inputs(onnx.load(artifact.path))[0].shape == ("batch", 3, "height", "width")
    assert "1×10×10" in artifact.provenance.options["largest difference to the model itself"]


def test_without_open_axes_the_batch_is_one(tmp_path: Path) -> None:
    artifact = export_source(source(), ExportOptions(dynamic=frozenset())).put(Store(tmp_path))
    assert graph_inputs(onnx.load(artifact.path))[0].shape == (1, 3, 16, 24)
    assert artifact.provenance.options["open axes"] == "none"


def test_another_size_is_taken_and_stands_in_the_spec() -> None:
    assert export_source(source(), ExportOptions(size=(32, 8))).spec.preprocessing.size == (32, 8)


def test_a_graph_that_answers_otherwise_at_another_batch_is_refused() -> None:
    class AtTwo(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * (1.0 if torch.compiler.is_exporting() else images.shape[0] / 2)

    with pytest.raises(
        NotVerified, match=r"batch of 1×16×24: the output `logits` differs by [0-9.e+]+ % of its range"
    ):
        export_source(source(AtTwo), ExportOptions())


def test_a_graph_that_gives_nan_is_refused() -> None:
    class Broken(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * float("nan")

    with pytest.raises(NotVerified, match="NaN"):
        export_source(source(Broken), ExportOptions())


def test_what_torch_cannot_trace_is_a_model_error_with_the_innermost_reason() -> None:
    class Branching(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if images.sum() > 0 else images.mean((2, 3))

    with pytest.raises(
        ModelError, match=r"cannot export the model: \w+: .*[\s\S]*control flow that depends on values"
    ):
        export_source(source(Branching), ExportOptions())


def test_an_axis_the_model_cannot_leave_open_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"--dynamic height,width: a tiny model cannot[\s\S]*of: batch"):
        source(axes=frozenset({"batch"})).export(ExportOptions(dynamic=SIZES))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"opset": 17}, "expected: 18 or more"),
        ({"opset": 99}, "the newest that onnx"),
        ({"dynamic": frozenset({"depth"})}, "--dynamic depth"),
        ({"dynamic": frozenset({"height"})}, "height and width together"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ExportOptions(**wrong)  # type: ignore[arg-type]


def test_the_reference_is_the_module_itself() -> None:
    exported: Exported = source().export(ExportOptions())
    images = np.ones((1, 3, 16, 24), np.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        np.testing.assert_array_equal(
            exported.reference({"images": images})["logits"], Tiny()(torch.from_numpy(images)).numpy()
        )
