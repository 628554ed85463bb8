"""A timing cache is kept, merged and put aside, against a recorded surface; TensorRT for RTX says that it has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fashion
from tensorrt_surfaces import TimingCache, surface
from vitesse.backends.tensorrt.api import load_api
from vitesse.backends.tensorrt.builder import build_plan
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.backends.tensorrt.profiles import parse_shapes
from vitesse.backends.tensorrt.timing_cache import save_timing_cache, use_timing_cache


def config() -> Any:
    api: Any = surface("10.13")
    return api.IBuilderConfig()


def test_a_new_file_is_written_and_read_by_the_next_build(tmp_path: Path) -> None:
    first, path = config(), tmp_path / "cache"
    used = use_timing_cache(first, path)
    assert used.live and used.note == f"new: {path}"
    first.cache.content += b"ab"  # what a build measures
    save_timing_cache(first, used)
    assert path.read_bytes() == b"goodab"
    second = config()
    assert use_timing_cache(second, path).note == f"6 bytes of {path}"
    assert second.cache.content == b"goodab"


def test_what_another_build_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"gooda")
    mine = config()
    used = use_timing_cache(mine, path)
    mine.cache.content += b"b"
    path.write_bytes(b"goodac")
    save_timing_cache(mine, used)
    assert path.read_bytes() == b"goodabc"


@pytest.mark.parametrize("content", [b"torn", b"far a"], ids=["damaged", "of another GPU"])
def test_an_unusable_file_is_put_aside_and_a_new_one_begun(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    mine = config()
    used = use_timing_cache(mine, path)
    assert used.live
    assert used.note == (
        f"{path} is damaged, or of another version or GPU: put aside as {tmp_path / 'cache.unusable'}"
    )
    assert (tmp_path / "cache.unusable").read_bytes() == content
    assert isinstance(mine.cache, TimingCache) and mine.cache.content == b"good"
    save_timing_cache(mine, used)
    assert path.read_bytes() == b"good"


def test_a_library_that_throws_at_a_file_does_not_end_the_build(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"good")

    class Throwing(type(config())):  # type: ignore[misc]
        def create_timing_cache(self, content: bytes) -> TimingCache:
            if content:
                raise RuntimeError("std::exception")
            return TimingCache(content)

    assert "put aside" in use_timing_cache(Throwing(), path).note


def test_a_file_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    mine = config()
    used = use_timing_cache(mine, tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    assert f"not saved: cannot write {tmp_path / 'cache'}" in save_timing_cache(mine, used)


def test_a_build_keeps_its_cache_and_says_so(tmp_path: Path) -> None:
    path, api = tmp_path / "cache", surface("10.13")
    options = BuildOptions(parse_shapes("images=1x3x56x56..8x3x56x56"), timing_cache=path)
    made = build_plan(api, fashion.VIT, options)
    assert made.settings["timing cache"] == f"new: {path}"
    assert path.read_bytes() == b"good"


def test_a_module_without_timing_caches_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    options = BuildOptions(parse_shapes("images=1x3x56x56..8x3x56x56"), timing_cache=path)
    made = build_plan(surface("8.2"), fashion.VIT, options)
    assert made.settings["timing cache"] == "not set: this module has no such setting"
    assert not path.exists()


def test_rtx_warns_that_its_calls_do_nothing_and_no_file_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    path = tmp_path / "cache"
    profiles = parse_shapes("images=1x3x56x56..8x3x56x56")
    options = BuildOptions(profiles, compute_capabilities=("sm86",), timing_cache=path)
    made = build_plan(load_api("tensorrt_rtx"), fashion.VIT, options)
    assert made.settings["timing cache"] == "the library says that its timing cache does nothing"
    assert not path.exists()
