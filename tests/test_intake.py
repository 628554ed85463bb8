"""A model that is not ONNX yet goes into a run: exported once, verified, its story told."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse import assess, pipeline  # noqa: E402
from vitesse.errors import NotVerified, RunFolderError  # noqa: E402
from vitesse.export.torch_onnx import Network, TorchSource  # noqa: E402
from vitesse.intake import name_of  # noqa: E402
from vitesse.ledger import Verdict  # noqa: E402
from vitesse.recipe import DataOptions, MeasureOptions, Recipe, SourceOptions  # noqa: E402
from vitesse.sources.source import ExportOptions  # noqa: E402
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task  # noqa: E402
from vitesse.verify.gate import Limits  # noqa: E402

pytestmark = pytest.mark.usefixtures("short_races")
IMAGES = Path(__file__).resolve().parents[1] / "examples" / "fashion" / "vit"
QUICK = Recipe(
    target="onnxruntime",
    precisions=("fp32",),
    max_drop=100.0,
    data=DataOptions(limit=20),
    measure=MeasureOptions(seconds=0.05, min_rounds=3, parity_images=2, threads=1),
)
SPEC = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, Preprocessing((28, 28)))


class Tiny(torch.nn.Module):
    """A convolution, a GELU, a linear layer; `gain` scales the answer, but only at the batch the exporter traces at."""

    def __init__(self, *, wrong: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.wrong = torch.nn.Conv2d(3, 8, 7, 7), torch.nn.Linear(8, 10), wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.head(torch.nn.functional.gelu(self.conv(images)).mean((2, 3)))
        return logits * 2 if self.wrong and torch.compiler.is_exporting() else logits


class Counting:
    """Builds a tiny network and counts how often."""

    def __init__(self, *, wrong: bool = False) -> None:
        self.built, self.wrong = 0, wrong

    def __call__(self, options: ExportOptions) -> Network:
        self.built += 1
        torch.manual_seed(0)
        images = torch.zeros(2, 3, *(options.size or (28, 28)))
        spec = replace(SPEC, preprocessing=Preprocessing((images.shape[2], images.shape[3])))
        return Network(
            Tiny(wrong=self.wrong), {"images": images}, ("logits",), spec, {"images": {0: "batch"}}
        )


def source(build: Counting) -> TorchSource:
    return TorchSource("a tiny model", "its identity", build)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images alone: by their labels a network that was never trained is no starting point."""
    folder = tmp_path_factory.mktemp("images")
    for number, path in enumerate(sorted((IMAGES / "val").rglob("*.png"))[::25]):
        shutil.copyfile(path, folder / f"{number:02}.png")
    return folder


def test_a_source_is_exported_once_and_its_story_stands_in_the_ledger(
    tmp_path: Path, unlabelled: Path
) -> None:
    build = Counting()
    done = pipeline.optimize(source(build), data=unlabelled, out=tmp_path / "run", recipe=QUICK)
    assert done.ledger.source == "a tiny model"
    row = done.ledger.rows[0]
    assert row.verdict is Verdict.PASS
    assert row.notes[:3] == ("exported from: a tiny model", "opset: 18", "open axes: batch")
    assert row.notes[3].startswith("largest difference to the model itself: 1×28×28: ")
    again = pipeline.optimize(source(build), data=unlabelled, out=tmp_path / "run", recipe=QUICK)
    assert build.built == 1
    assert again.ledger.rows[0].notes == row.notes


def test_an_export_whose_file_was_changed_is_made_again(tmp_path: Path) -> None:
    build = Counting()
    done = pipeline.optimize(source(build), data=IMAGES, out=tmp_path / "run", recipe=QUICK)
    assert done.ledger.rows[0].artifact is not None
    (tmp_path / "run" / done.ledger.rows[0].artifact.path).write_bytes(b"changed")
    pipeline.optimize(source(build), data=IMAGES, out=tmp_path / "run", recipe=QUICK)
    assert build.built == 2


def test_another_size_is_another_model_and_leaves_the_run_alone(tmp_path: Path) -> None:
    pipeline.optimize(source(Counting()), data=IMAGES, out=tmp_path / "run", recipe=QUICK)
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    other = replace(QUICK, source=SourceOptions(size=(35, 35)))
    with pytest.raises(RunFolderError, match="holds a run of another model"):
        pipeline.optimize(source(Counting()), data=IMAGES, out=tmp_path / "run", recipe=other)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == before


def test_a_graph_that_is_not_the_model_never_becomes_a_run(tmp_path: Path) -> None:
    with pytest.raises(NotVerified, match="does not answer as the model itself"):
        pipeline.optimize(source(Counting(wrong=True)), data=IMAGES, out=tmp_path / "run", recipe=QUICK)
    assert not (tmp_path / "run").exists()


def test_a_network_that_was_never_trained_is_no_starting_point_on_labelled_images(tmp_path: Path) -> None:
    done = pipeline.optimize(source(Counting()), data=IMAGES, out=tmp_path / "run", recipe=QUICK)
    (row,) = done.ledger.rows
    assert row.accuracy is not None and row.accuracy.value <= 0.12
    assert row.verdict is Verdict.UNKNOWN and not done.verified
    assert "on 20 images: always answering the most frequent class gets 0.1000" in row.reason


def test_lowering_that_was_asked_for_is_a_verified_step(
    tmp_path: Path, unlabelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A network of a few microseconds is fast or slow by chance; what is lowered is what fusion made.
    monkeypatch.setattr(assess, "Limits", partial(Limits, slack=1.0))
    recipe = replace(QUICK, lower=("gelu",))
    done = pipeline.optimize(source(Counting()), data=unlabelled, out=tmp_path / "run", recipe=recipe)
    stages = {row.stage: row for row in done.ledger.rows}
    assert list(stages)[:4] == ["source", "clean", "fuse", "lower:gelu"]
    assert stages["fuse"].changes["gelu"] == 1
    assert stages["lower:gelu"].verdict is Verdict.PASS
    assert sum(stages["lower:gelu"].changes.values()) == 1


def test_a_source_is_called_by_what_was_typed_or_by_its_title() -> None:
    assert name_of("hf:x") == "hf:x"
    assert name_of(source(Counting())) == "a tiny model"
