"""An engine file is read whole or refused: damaged, foreign, newer, or with names that lead elsewhere."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_onnx import SPEC
from vitesse.backends.torch_cuda.archive import Archive, newest_engine, pack, unpack
from vitesse.backends.torch_cuda.manifest import ArchiveError, EngineManifest, manifest_of
from vitesse.errors import BackendError

MANIFEST = EngineManifest(
    made_on={"torch": "2.11.0", "gpu": "NVIDIA H100 80GB HBM3"},
    onnx_sha256="ab" * 32,
    precision="fp16",
    shapes=({"x": (1, 6)}, {"x": (8, 6)}),
    spec=SPEC,
    command="vitesse build model.onnx --target torch-cuda",
    seconds=12.5,
    created="2026-11-22T15:00:00+00:00",
)
WHOLE = Archive(
    MANIFEST, b"graph " * 50, '{"schema": 1}', {"ABCDEFGH/kernel.cubin": b"\x7fELF", "ABCDEFGH/k.json": b"{}"}
)


def written(tmp_path: Path, parts: Mapping[str, bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    path = tmp_path / "engine.torchcuda"
    path.write_bytes(out.getvalue())
    return path


def parts_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_what_was_packed_comes_out_again_and_packing_is_repeatable(tmp_path: Path) -> None:
    path = tmp_path / "engine.torchcuda"
    path.write_bytes(pack(WHOLE))
    found = unpack(path)
    assert (found.model, found.tactics, found.kernels) == (WHOLE.model, WHOLE.tactics, WHOLE.kernels)
    assert replace(found.manifest, files={}) == MANIFEST
    assert set(found.manifest.files) == {
        "model.onnx",
        "tactics.json",
        "triton/ABCDEFGH/kernel.cubin",
        "triton/ABCDEFGH/k.json",
    }
    assert pack(found) == pack(WHOLE)


@pytest.mark.parametrize("part", ["model.onnx", "tactics.json", "triton/ABCDEFGH/kernel.cubin"])
def test_a_file_that_was_changed_inside_is_named(tmp_path: Path, part: str) -> None:
    parts = parts_of(pack(WHOLE))
    parts[part] = parts[part][:-1] + b"?"
    with pytest.raises(ArchiveError) as caught:
        unpack(written(tmp_path, parts))
    assert f"{part} has another sha256 than its manifest says" in caught.value.what
    assert "vitesse build" in caught.value.fix


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    content = pack(WHOLE)
    path = tmp_path / "engine.torchcuda"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BackendError) as caught:
        unpack(path)
    assert "truncated or damaged" in caught.value.cause
    assert str(path) in caught.value.what


def test_every_single_damaged_byte_is_found_or_does_not_matter(tmp_path: Path) -> None:
    content = pack(WHOLE)
    path = tmp_path / "engine.torchcuda"
    refused = 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        try:
            found = unpack(path)
            assert (found.model, found.tactics, found.kernels) == (WHOLE.model, WHOLE.tactics, WHOLE.kernels)
        except BackendError:
            refused += 1
    assert refused > len(content) // 7 // 2


@pytest.mark.parametrize(
    "name",
    [
        "../evil.so",
        "/etc/passwd",
        "triton/../../evil.so",
        "triton/ABCDEFGH/../x",
        "triton/ABCDEFGH/.x",
        "notes.txt",
    ],
)
def test_names_that_lead_elsewhere_or_belong_to_no_engine_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="which no engine has"):
        unpack(written(tmp_path, {**parts_of(pack(WHOLE)), name: b"x"}))


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    parts = {**parts_of(pack(WHOLE)), "triton/ABCDEFGH/more.cubin": b"x"}
    with pytest.raises(
        ArchiveError, match=r"its manifest and its content differ in triton/ABCDEFGH/more.cubin"
    ):
        unpack(written(tmp_path, parts))


def test_a_compressed_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    parts = parts_of(pack(replace(WHOLE, model=b"\0" * 10**6)))
    with pytest.raises(ArchiveError, match=r"is compressed or larger than the whole"):
        unpack(written(tmp_path, parts, zipfile.ZIP_DEFLATED))


def test_another_zip_says_what_it_lacks_and_no_file_says_that_it_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"it holds no manifest.json, model.onnx, tactics.json"):
        unpack(written(tmp_path, {"weights.bin": b"x"}))
    with pytest.raises(ArchiveError) as caught:
        unpack(tmp_path / "nothing.torchcuda")
    assert caught.value.cause == "the file is gone"


def test_a_manifest_of_a_newer_schema_names_the_version_that_wrote_it() -> None:
    raw = {**json.loads(MANIFEST.to_json()), "schema": 7, "vitesse": "9.0"}
    with pytest.raises(ArchiveError) as caught:
        manifest_of(json.dumps(raw), "engine.torchcuda")
    assert caught.value.what == "engine.torchcuda has a manifest of schema 7, written by Vitesse 9.0"
    assert caught.value.fix == "build it again: vitesse build model.onnx --target torch-cuda"


@pytest.mark.parametrize(
    "change",
    [{"made_on": None}, {"shapes": [[1]]}, {"spec": {}}, {"precision": 8}, {"extra": 1}, {"files": "x"}],
)
def test_a_manifest_that_was_edited_is_refused(change: dict[str, object]) -> None:
    raw = {**json.loads(MANIFEST.to_json()), **change}
    with pytest.raises(ArchiveError, match=r"cannot read the manifest in engine.torchcuda"):
        manifest_of(json.dumps(raw), "engine.torchcuda")


def test_the_newest_engine_of_a_graph_is_found_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    assert newest_engine(tmp_path) is None
    for number, (graph, created) in enumerate((("aa", "2026-01"), ("bb", "2026-03"), ("aa", "2026-02"))):
        manifest = replace(MANIFEST, onnx_sha256=graph, created=created)
        (tmp_path / f"{number}.torchcuda").write_bytes(pack(replace(WHOLE, manifest=manifest)))
    (tmp_path / "9.torchcuda").write_bytes(b"no engine")
    newest, of_aa = newest_engine(tmp_path), newest_engine(tmp_path, "aa")
    assert newest is not None
    assert of_aa is not None
    assert (newest.path.name, of_aa.path.name) == ("1.torchcuda", "2.torchcuda")
    assert newest.backend == "torch-cuda"
    newest.check()
