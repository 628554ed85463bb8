from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from vitesse.errors import ModelError  # noqa: E402
from vitesse.sources.torch_weights import read_weights  # noqa: E402

TENSORS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


class Planted:
    """An object whose unpickling runs code: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_tensors_and_the_options_of_training_are_read(tmp_path: Path, zipped: bool) -> None:
    content = {"model": TENSORS, "args": argparse.Namespace(nheads=4, lr=1e-4), "epoch": 3}
    found = read_weights(saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped))
    assert found.tensors.keys() == TENSORS.keys()
    assert torch.equal(found.tensors["layer.weight"], TENSORS["layer.weight"])
    assert found.args == {"nheads": 4, "lr": 1e-4}
    assert not found.averaged


@pytest.mark.parametrize(
    "wrapped",
    [
        TENSORS,
        {"model": TENSORS},
        {"state_dict": TENSORS, "epoch": 1},
        {"model": {"module": TENSORS}},
        {"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
        {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in TENSORS.items()}},
        {"model": {f"module._orig_mod.{name}": tensor for name, tensor in TENSORS.items()}},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrapped: object) -> None:
    assert read_weights(saved(tmp_path / "a.pth", wrapped)).tensors.keys() == TENSORS.keys()


def test_a_prefix_that_not_every_name_has_stays(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert read_weights(saved(tmp_path / "a.pth", mixed)).tensors.keys() == mixed.keys()


@pytest.mark.parametrize("key", ["ema", "model_ema"])
def test_averaged_weights_are_preferred_as_training_programs_do(tmp_path: Path, key: str) -> None:
    averaged = {name: tensor + 1 for name, tensor in TENSORS.items()}
    found = read_weights(saved(tmp_path / "a.pth", {"model": TENSORS, key: {"module": averaged}}))
    assert found.averaged
    assert torch.equal(found.tensors["layer.bias"], averaged["layer.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_real_numbers_become_float32_and_counters_stay_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    content = {"w": torch.tensor([0.5, -2.0], dtype=dtype), "steps": torch.tensor(7)}
    found = read_weights(saved(tmp_path / "a.pth", content)).tensors
    assert found["w"].dtype == torch.float32
    assert found["w"].tolist() == [0.5, -2.0]
    assert found["steps"].dtype == torch.int64


def test_safetensors_are_told_by_their_content(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    path = tmp_path / "pytorch_model.bin"
    safetensors.save_file({name: tensor.half() for name, tensor in TENSORS.items()}, path)
    found = read_weights(path)
    assert torch.equal(found.tensors["layer.weight"], TENSORS["layer.weight"])
    content = path.read_bytes()
    for size in (20, len(content) // 2, len(content) - 1):
        assert "cut off" in refusal(written(path, content[:size]))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_that_wants_to_run_code_is_refused_by_name_and_does_not_run(
    tmp_path: Path, zipped: bool
) -> None:
    path = saved(
        tmp_path / "a.pth", {"model": Planted(tmp_path / "ran")}, _use_new_zipfile_serialization=zipped
    )
    text = refusal(path)
    assert "is refused: its pickle asks for" in text
    assert "runs code" in text
    assert "torch.save({'model': model.state_dict()}" in text
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # the planted object is live: without the guard it does run
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": TENSORS, "out": Path("runs")}, "pathlib"),
        ({"model": TENSORS, "best": np.float64(0.4)}, "numpy"),
    ],
    ids=["whole module", "path", "numpy scalar"],
)
def test_what_else_a_pickle_asks_for_is_named(tmp_path: Path, content: object, name: str) -> None:
    text = refusal(saved(tmp_path / "a.pth", content))
    assert f"asks for {name}" in text
    assert "the whole model was saved instead of its weights" in text


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_checkpoint_that_was_cut_off_is_called_that_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "a.pth", {"model": TENSORS}, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for size in range(8, len(content), max(1, len(content) // 40)):
        assert "cut off" in refusal(written(path, content[:size]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'{"model_type": "detr"}', "a JSON text"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"weights of my model", "it begins with b'weights of m'"),
        (pickle.dumps([1, 2]), "its pickle breaks off, or is not one of"),
    ],
)
def test_another_file_is_named_as_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(written(tmp_path / "a.pth", content))


def test_another_zip_archive_is_no_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", b"")
    text = refusal(written(tmp_path / "a.pth", buffer.getvalue()))
    assert "a zip archive, but not one of torch.save: it holds photo.jpg" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    assert "a TorchScript program" in refusal(path)


@pytest.mark.parametrize(
    ("content", "seen"), [({"optimizer": {"lr": 1}}, "the keys optimizer"), ([1, 2], "found list")]
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: object, seen: str) -> None:
    assert seen in refusal(saved(tmp_path / "a.pth", content))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "no weights at" in refusal(tmp_path / "absent.pth")
    assert "cannot read" in refusal(tmp_path)
