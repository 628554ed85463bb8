"""What the user types is understood, or the error says what would be."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitesse.errors import MissingExtra, ModelError, UsageError
from vitesse.sources import opening
from vitesse.sources.download import Remote
from vitesse.sources.named import NAMED, Named
from vitesse.sources.opening import is_onnx, open_source
from vitesse.sources.source import Given


class Recorder:
    """Stands in for an opener and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *arguments: Any, **options: Any) -> str:
        self.calls.append((arguments, options))
        return "the source"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Replace every opener by a recorder, by the name of its function."""
    recorders: dict[str, Recorder] = {}
    for module, function in (*opening._PREFIXES.values(), opening.DETR, opening.VIT):
        recorders[function] = Recorder()
        stand_in = ModuleType(module)
        setattr(stand_in, function, recorders[function])
        monkeypatch.setitem(sys.modules, module, stand_in)
    return recorders


@pytest.mark.parametrize(
    ("text", "opener", "argument"),
    [
        ("hf:PekingU/rtdetr_r50vd", "open_huggingface", "PekingU/rtdetr_r50vd"),
        ("timm:vit_base_patch16_224", "open_timm", "vit_base_patch16_224"),
        ("flax:my.models:vit", "open_flax", "my.models:vit"),
    ],
)
def test_a_prefix_names_the_library(
    opened: dict[str, Recorder], text: str, opener: str, argument: str
) -> None:
    given = Given(settings={"a": "b"})
    assert open_source(text, given) == "the source"  # type: ignore[comparison-overlap]
    assert opened[opener].calls[0][0] == (argument, given)
    assert not is_onnx(text)


@pytest.mark.parametrize(
    ("name", "opener"),
    [("a.pth", "open_detr"), ("a.pt", "open_detr"), ("a.safetensors", "open_detr"), ("a.npz", "open_vit")],
)
def test_a_suffix_names_the_checkpoint(
    opened: dict[str, Recorder], tmp_path: Path, name: str, opener: str
) -> None:
    (tmp_path / name).touch()
    open_source(tmp_path / name)
    assert opened[opener].calls[0][0] == (tmp_path / name, Given())
    assert not is_onnx(tmp_path / name)


def test_a_folder_of_transformers_is_known_by_its_config(opened: dict[str, Recorder], tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    open_source(tmp_path)
    assert opened["open_huggingface"].calls[0][0][0] == str(tmp_path)
    assert not is_onnx(tmp_path)


def test_an_onnx_file_and_any_other_file_are_read_as_onnx(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    assert is_onnx("missing.onnx")
    assert is_onnx(tmp_path / "model")
    assert is_onnx(tmp_path)
    assert not is_onnx("detr_resnet50")


def test_a_published_model_takes_its_own_settings_and_the_users(
    opened: dict[str, Recorder], tmp_path: Path
) -> None:
    weights = tmp_path / "copy.pth"
    weights.touch()
    open_source("detr_resnet50_dc5", Given(settings={"heads": "8"}), weights=weights)
    (path, given), options = opened["open_detr"].calls[0]
    assert path == weights
    assert given.settings == {"dilation": "true", "heads": "8"}
    assert options == {"title": "detr_resnet50_dc5"}


def test_a_published_model_is_downloaded_where_no_weights_are_given(
    opened: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Remote] = []
    monkeypatch.setattr(opening, "download", lambda remote, progress: asked.append(remote) or tmp_path / "x")
    open_source("ViT-B_16-224")
    assert asked == [NAMED["ViT-B_16-224"].remote]
    assert opened["open_vit"].calls[0][0][0] == tmp_path / "x"


def test_timm_takes_weights_from_a_file(opened: dict[str, Recorder]) -> None:
    open_source("timm:vit", weights=Path("w.pth"))
    assert opened["open_timm"].calls[0][1] == {"weights": Path("w.pth")}


@pytest.mark.parametrize("text", ["hf:x", "model.npz"])
def test_weights_beside_a_model_that_has_its_own_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--weights w.pth beside [\s\S]*give w.pth itself as the model"):
        open_source(text, weights=Path("w.pth"))


def test_what_means_nothing_lists_what_would_and_the_closest_name() -> None:
    with pytest.raises(UsageError) as caught:
        open_source("detr_resnet5")
    text = str(caught.value)
    assert "no model 'detr_resnet5'" in text
    assert "hf:NAME" in text
    assert "next step: perhaps detr_resnet50" in text


def test_a_missing_checkpoint_and_missing_weights_are_named() -> None:
    with pytest.raises(ModelError, match=r"no model at gone\.npz"):
        open_source("gone.npz")
    with pytest.raises(ModelError, match=r"no weights at gone\.pth"):
        open_source("detr_resnet50", weights=Path("gone.pth"))


def test_a_missing_library_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in [name for name in sys.modules if name.startswith("vitesse.sources.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"transformers is not installed[\s\S]*vitesse\[huggingface\]"):
        open_source("hf:x")


def test_an_unknown_setting_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"--set head=8: DETR has no such setting\n  expected: one of: heads"
    ):
        Given(settings={"head": "8"}).refuse_unknown("DETR", "heads")


@pytest.mark.parametrize("name", NAMED)
def test_every_published_model_has_an_address_and_detr_the_start_of_its_hash(name: str) -> None:
    named: Named = NAMED[name]
    assert named.remote.url.startswith("https://")
    assert named.remote.file_name.endswith((".pth", ".npz"))
    if name.startswith("detr"):
        digits = named.remote.sha256
        assert len(digits) == 8
        assert int(digits, 16) >= 0
        assert named.remote.file_name.endswith(f"-{digits}.pth")
        assert ("dc5" in name) == (named.settings == {"dilation": "true"})
