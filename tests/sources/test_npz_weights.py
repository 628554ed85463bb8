from pathlib import Path

import numpy as np
import pytest

from vitesse.errors import ModelError
from vitesse.sources.npz_weights import npz_names, read_npz


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_names_are_told_without_reading_the_arrays(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", evil=np.array([print], dtype=object), good=np.zeros(2))
    assert npz_names(path) == ("evil", "good")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_every_floating_type_becomes_float32(tmp_path: Path, kind: str) -> None:
    found = read_npz(saved(tmp_path / "a.npz", w=np.array([0.5, -3.0], kind)), ["w"])["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [0.5, -3.0])


def test_bfloat16_which_numpy_stores_as_raw_bytes_becomes_float32(tmp_path: Path) -> None:
    wanted = np.array([[1.0, -2.5], [0.15625, 3e38]], np.float32)
    upper_half = (wanted.view(np.uint32) >> 16).astype(np.uint16)
    found = read_npz(saved(tmp_path / "a.npz", w=upper_half.view("V2")), ["w"])["w"]
    np.testing.assert_allclose(found, wanted, rtol=2**-7)
    np.testing.assert_array_equal(found[0], wanted[0])  # exact where seven bits are enough


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", w=np.zeros(2, np.int64))
    with pytest.raises(ModelError, match=r"'w' in .* is int64\n  expected: real numbers"):
        read_npz(path, ["w"])


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.npz", cls=np.array([print], dtype=object))
    with pytest.raises(ModelError, match="needs pickle, which is refused"):
        read_npz(path, ["cls"])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_download_that_was_cut_off_is_named(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path / "a.npz", w=np.zeros(1000))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelError, match="the download was cut off"):
        npz_names(path)


def test_damage_inside_an_array_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", w=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    with pytest.raises(ModelError, match="cannot read"):
        read_npz(written(path, bytes(content)), ["w"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty\n"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", r"git-LFS pointer.*\n(.*\n)*.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page, not the file itself"),
        (b"\x93NUMPY\x01\x00v\x00", r"one array \(\.npy\)"),
        (b"\x80\x04\x95\x10", "a Python pickle: a PyTorch checkpoint"),
        (b"hello", "cannot read"),
    ],
)  # fmt: skip
def test_a_file_that_is_something_else_is_named_as_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        npz_names(written(tmp_path / "a.npz", content))


def test_a_missing_file_and_a_zip_of_other_things_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        npz_names(tmp_path / "nothing.npz")
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(ModelError, match=r"'archive/data\.pkl' in .* is not an array"):
        read_npz(tmp_path / "a.npz", ["archive/data.pkl"])
