"""The time of an image, part by part: it adds up, nothing is lost, and each part has its share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from deimv2 import deimv2
from fashion import DETR, IMAGES, VIT, artifact_of, lowered, without_names
from tiny_onnx import as_artifact, linear
from vitesse.artifact import Artifact
from vitesse.errors import DataError, UsageError
from vitesse.profile import by_module
from vitesse.profile.attribution import Matched
from vitesse.profile.by_module import Kind, ModuleProfile, profile_modules
from vitesse.profile.calls import PREPARE, READ, RESULTS, profiled_calls, random_images
from vitesse.profile.modules import modules_of
from vitesse.profile.recording import Kernel


def profiled(artifact: Artifact, images: Sequence[object] = (), **options: int) -> ModuleProfile:
    return profile_modules(artifact, images or random_images(artifact.spec), **{"runs": 6, **options})


def test_a_detector_is_accounted_for_from_file_to_result(runtime: str) -> None:
    found = profiled(artifact_of(DETR, backend=runtime), IMAGES[DETR])
    assert [row.part for row in found.rows] == [
        *(READ, PREPARE, "backbone", "input projection", "encoder", "decoder", "heads"),
        *("not attributed", "outside operators", RESULTS),
    ]
    assert found.covered == pytest.approx(1, abs=0.1)
    assert found.unattributed < 0.05
    assert sum(row.share for row in found.rows if row.share is not None) == pytest.approx(1)
    for part in ("backbone", "encoder", "decoder"):
        row = found.part(part)
        assert row is not None
        assert row.share > 0.03
        assert row.cost.flops > 5e7
    assert 0 <= found.copies_ms < 0.8 * found.operators_ms
    assert found.operators.operators_ms == pytest.approx(found.operators_ms)


@pytest.mark.slow
def test_fused_and_lowered_the_parts_are_the_same_and_nothing_is_lost(tmp_path: Path, runtime: str) -> None:
    for source, parts in (
        (DETR, {"backbone", "input projection", "encoder", "decoder", "heads"}),
        (VIT, {"patch embedding", "blocks", "heads"}),
    ):
        path = tmp_path / source.name
        onnx.save(lowered(source), path)
        found = profiled(artifact_of(path, like=source, backend=runtime))
        assert {row.part for row in found.rows if row.cost is not None} == parts
        assert found.covered == pytest.approx(1, abs=0.1)
        assert found.unattributed < 0.05


def test_kernels_that_belong_nowhere_show_as_not_attributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must be able to fail: with kernels torn off their names and neighbours, nothing may be claimed."""

    def torn(*given: object, **options: object) -> object:
        calls = profiled_calls(*given, **options)
        kernels = tuple(
            Kernel(kernel.name, kernel.operator, kernel.ms, kernel.calls) for kernel in calls.kernels
        )
        return dataclasses.replace(calls, kernels=kernels)

    monkeypatch.setattr(by_module, "profiled_calls", torn)
    found = profiled(artifact_of(DETR), runs=2)
    assert found.unattributed == pytest.approx(1)
    lost = found.part(str(Matched.NOT))
    assert lost is not None
    assert lost.ms == pytest.approx(found.operators_ms)


def test_time_counted_thrice_breaks_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def tripled(*given: object, **options: object) -> object:
        calls = profiled_calls(*given, **options)
        return dataclasses.replace(calls, kernels=calls.kernels * 3)

    monkeypatch.setattr(by_module, "profiled_calls", tripled)
    assert profiled(artifact_of(DETR), runs=2).covered > 1.1


def test_depth_shows_the_modules_of_each_part_in_the_order_of_the_graph() -> None:
    found = profiled(artifact_of(DETR), depth=1, runs=2)
    decoder = [row.module for row in found.rows if row.part == "decoder" and "layers" in row.module]
    assert decoder == [f"transformer.decoder.layers.{at}" for at in range(6)]
    encoder = found.part("encoder")
    assert encoder is not None
    assert encoder.ms == pytest.approx(sum(row.ms for row in found.rows if row.part == "encoder"))
    deeper = profiled(artifact_of(VIT), depth=2, runs=2)
    assert "blocks.3.attention" in {row.module for row in deeper.rows}


def test_an_unnamed_graph_is_profiled_by_its_structure(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    onnx.save(without_names(onnx.load(VIT)), path)
    found = profiled(artifact_of(path, like=VIT), runs=3)
    assert found.unattributed < 0.05
    assert found.parts_found["by the structure of the graph"] == sum(found.parts_found.values())
    assert found.part("blocks").share > 0.3


def test_a_foreign_detector_has_its_postprocessing_apart(runtime: str) -> None:
    path, spec = deimv2()
    artifact = dataclasses.replace(as_artifact(path), spec=spec, backend=runtime)
    found = profiled(artifact, runs=4)
    assert {"backbone", "encoder", "decoder", "heads", "post-processing"} <= {row.part for row in found.rows}
    assert found.covered == pytest.approx(1, abs=0.1)
    assert found.unattributed < 0.05


def test_an_artifact_in_a_runtimes_own_format_is_read_by_the_onnx_file_beside_it(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    from vitesse.backends.openvino_ir import IR_SUFFIX, pack_ir

    packed = tmp_path / f"model{IR_SUFFIX}"
    packed.write_bytes(pack_ir(openvino.Core().read_model(VIT)))
    artifact = artifact_of(packed, like=VIT, backend="openvino")
    with pytest.raises(UsageError) as caught:
        profiled(artifact, runs=1)
    assert "--by op" in caught.value.fix
    (tmp_path / "a.onnx").write_bytes(DETR.read_bytes())
    (tmp_path / "b.onnx").write_bytes(VIT.read_bytes())
    found = profiled(artifact, runs=3)
    assert "b.onnx" in found.notes[0]
    assert found.unattributed < 0.05
    assert found.part("blocks").ms > 0


def test_pixels_have_no_file_to_read_and_the_profile_says_so() -> None:
    found = profiled(artifact_of(VIT), runs=2)
    assert READ not in {row.part for row in found.rows}
    assert any("reading files is not in it" in note for note in found.notes)
    assert PREPARE in {row.part for row in found.rows if row.kind is Kind.VITESSE}


def test_a_profile_is_plain_json() -> None:
    found = profiled(artifact_of(VIT), runs=2)
    raw = json.loads(json.dumps(found.to_json()))
    assert raw["covered"] == found.covered
    assert raw["rows"][1]["cost"]["flops"] > 0
    assert raw["operators"]["operators"]


def test_random_images_fit_the_model_and_no_image_is_an_error(tmp_path: Path) -> None:
    images = random_images(artifact_of(DETR).spec, 2)
    assert [image.shape for image in images] == [(256, 256, 3)] * 2
    assert images[0].dtype == np.uint8
    assert not np.array_equal(images[0], images[1])
    with pytest.raises(DataError, match="nothing to feed"):
        profile_modules(artifact_of(VIT), [])
    other = dataclasses.replace(linear(tmp_path), backend="tensorrt")
    with pytest.raises(UsageError, match="no operator profile"):
        profile_modules(other, random_images(other.spec))


def test_the_modules_of_the_bare_graph_are_told_by_name_where_there_are_names() -> None:
    assert modules_of(onnx.load(VIT)).found() != modules_of(without_names(onnx.load(VIT))).found()
