"""Compiled kernels leave Triton's cache with a plan and come back to it, wherever its folder lies then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

binaries = pytest.importorskip("vitesse.backends.torch_cuda.kernels.binaries", reason="needs triton")
cache = pytest.importorskip("triton.runtime.cache", reason="needs triton")

KERNEL = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(binaries.knobs.cache, "dir", str(tmp_path / "first"))
    yield tmp_path
    assert "manager_class" not in binaries.knobs.cache.__dict__


def compile_something() -> str:
    """Do what triton.compile does with its cache."""
    manager = cache.get_cache_manager(KERNEL)
    if manager.get_group("gemm.json") is None:
        paths = {
            name: manager.put(text, name)
            for name, text in (("gemm.ttir", "text"), ("gemm.cubin", b"\x7fELF"))
        }
        paths["gemm.json"] = manager.put('{"shared": 1}', "gemm.json", binary=False)
        manager.put_group("gemm.json", paths)
    return str(manager.key)


def test_what_a_run_looks_up_is_recorded_and_nothing_else(folder: Path) -> None:
    other = cache.get_cache_manager("cd" * 32)
    other.put(b"other", "other.cubin")
    key = compile_something()
    files = binaries.recorded(compile_something)
    assert files == {f"{key}/gemm.cubin": b"\x7fELF", f"{key}/gemm.json": b'{"shared": 1}'}


def test_what_was_recorded_is_found_in_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = binaries.recorded(compile_something)
    monkeypatch.setattr(binaries.knobs.cache, "dir", str(folder / "second"))
    assert cache.get_cache_manager(KERNEL).get_group("gemm.json") is None
    assert binaries.merge(files) == 1
    group = cache.get_cache_manager(KERNEL).get_group("gemm.json")
    assert group is not None
    assert {name: Path(path).read_bytes() for name, path in group.items()} == {
        "gemm.cubin": b"\x7fELF",
        "gemm.json": b'{"shared": 1}',
    }
    assert all(Path(path).is_relative_to(folder / "second") for path in group.values())


def test_what_the_cache_has_stays_as_it_is(folder: Path) -> None:
    key = compile_something()
    assert binaries.merge({f"{key}/gemm.cubin": b"another", f"{key}/gemm.json": b"{}"}) == 0
    assert (folder / "first" / key / "gemm.cubin").read_bytes() == b"\x7fELF"


@pytest.mark.parametrize(
    "name", ["../../evil.so", "ABCDEFGH/../evil", "ABCDEFGH/a/b", "short/x", "ABCDEFGH/.hidden", "x"]
)
def test_a_name_that_leads_out_of_the_cache_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no file of Triton's cache"):
        binaries.merge({name: b"x"})
    assert not (folder / "evil.so").exists()


def test_a_launcher_is_put_where_a_fresh_process_looks(folder: Path) -> None:
    assert binaries.merge({"ABCDEFGH/__triton_launcher.so": b"\x7fELF"}) == 1
    path = folder / "first" / "ABCDEFGH"
    assert [file.name for file in path.iterdir()] == ["__triton_launcher.so"]
    assert json.dumps(binaries.merge({"ABCDEFGH/__triton_launcher.so": b"other"})) == "0"
