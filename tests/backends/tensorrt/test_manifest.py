"""What is written beside an engine, and what is said when it does not fit or cannot be read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.cuda.driver import Device
from vitesse.backends.tensorrt.manifest import (
    NO_GPU,
    ManifestError,
    keep_plan,
    layers_path,
    manifest_path,
    plan_artifact,
    read_manifest,
    weights_sha256,
)
from vitesse.backends.tensorrt.options import BuildOptions, BuiltPlan, Profile, ShapeRange
from vitesse.errors import StorageError
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

SPEC = ModelSpec(
    Task.CLASSIFICATION,
    Decode.LOGITS,
    "images",
    {"logits": "logits"},
    Preprocessing((4, 4)),
    labels=("a", "b"),
)
PROFILE = Profile({"images": ShapeRange((1, 3, 4, 4), (2, 3, 4, 4), (8, 3, 4, 4))})
GPU = Device(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 * 2**30, (13, 0), (13, 1))
BUILT = BuiltPlan(
    b"vtrt-plan",
    "10.13.0",
    "fp16",
    1.25,
    (PROFILE,),
    layers='{"Layers": []}',
    settings={"workspace": "4 GiB"},
)


def graph(weight: float = 1.0, *, name: str = "w", extra: bool = False) -> onnx.ModelProto:
    """images × weight, and Identity behind it where asked for."""
    info = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Mul", ["images", name], ["product" if extra else "logits"])]
    if extra:
        nodes.append(onnx.helper.make_node("Identity", ["product"], ["logits"]))
    weights = [
        onnx.numpy_helper.from_array(np.full((2, 2), weight, np.float32), name),
        onnx.numpy_helper.from_array(np.arange(3), "unused"),
    ]
    shape = ["N", 3, 2, 2]
    made = onnx.helper.make_graph(nodes, "g", [info("images", 1, shape)], [info("logits", 1, shape)], weights)
    return onnx.helper.make_model(made)


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    path = tmp_path / "model.onnx"
    onnx.save(graph(), path)
    return Artifact(path, "5" * 64, path.stat().st_size, SPEC, Provenance("fuse"))


@pytest.fixture
def kept(source: Artifact, tmp_path: Path) -> Artifact:
    store = Store(tmp_path / "engines")
    return keep_plan(
        BUILT,
        source,
        BuildOptions(),
        module="tensorrt",
        store=store,
        command="vitesse build run/",
        device=GPU,
    )


def edited(plan: Path, **changes: object) -> None:
    path = manifest_path(plan)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_kept_plan_can_be_read_back_with_everything_that_decides_where_it_runs(kept: Artifact) -> None:
    found = read_manifest(kept.path)
    assert (found.plan_sha256, found.plan_bytes) == (kept.sha256, len(BUILT.plan))
    assert (found.module, found.version, found.precision) == ("tensorrt", "10.13.0", "fp16")
    assert found.compute_capabilities == ("sm90",)
    assert (found.built_on.gpu, found.built_on.driver, found.built_on.cuda_runtime) == (
        "NVIDIA H100 80GB HBM3",
        "13.0",
        "13.1",
    )
    assert found.onnx_sha256 == "5" * 64
    assert found.profiles == (PROFILE,)
    assert found.settings == {"workspace": "4 GiB"}
    assert found.spec == SPEC
    assert found.command == "vitesse build run/"
    assert found.created.endswith("+00:00")
    assert kept.backend == "tensorrt" and kept.path.suffix == ".plan"


def test_layer_information_lies_beside_the_plan_where_the_library_gave_any(
    kept: Artifact, source: Artifact, tmp_path: Path
) -> None:
    assert json.loads(layers_path(kept.path).read_text()) == {"Layers": []}
    silent = replace(BUILT, plan=b"another", layers="")
    other = keep_plan(silent, source, BuildOptions(), module="tensorrt", store=Store(tmp_path / "engines"))
    assert not layers_path(other.path).exists()


def test_a_build_without_a_gpu_says_so_and_names_the_gpus_it_was_for(
    source: Artifact, tmp_path: Path
) -> None:
    options = BuildOptions(compute_capabilities=("SM75", "sm86"))
    kept = keep_plan(BUILT, source, options, module="tensorrt_rtx", store=Store(tmp_path))
    found = read_manifest(kept.path)
    assert found.built_on.gpu == NO_GPU == "no GPU"
    assert found.compute_capabilities == ("sm75", "sm86")
    assert kept.backend == "tensorrt-rtx"


def test_a_kept_plan_is_an_artifact_again(kept: Artifact) -> None:
    again = plan_artifact(kept.path)
    assert (again.sha256, again.bytes, again.spec, again.backend) == (
        kept.sha256,
        kept.bytes,
        kept.spec,
        "tensorrt",
    )
    again.check()


def test_no_manifest_is_written_when_the_plan_cannot_be(source: Artifact, tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        keep_plan(BUILT, source, BuildOptions(), module="tensorrt", store=Store(tmp_path / "engines"))
    assert not list(tmp_path.glob("**/*.plan*"))


def test_an_absent_manifest_is_named(kept: Artifact) -> None:
    manifest_path(kept.path).unlink()
    with pytest.raises(ManifestError, match="has no manifest") as caught:
        read_manifest(kept.path)
    assert f"{kept.path.name}.json beside it" in caught.value.expected
    assert "copy the two files together" in caught.value.fix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[]", "list indices"),
        (b'{"schema": 1}', "no 'compute_capabilities'"),
    ],
)
def test_a_damaged_manifest_is_refused_by_what_is_wrong_with_it(
    kept: Artifact, content: bytes, said: str
) -> None:
    manifest_path(kept.path).write_bytes(content)
    with pytest.raises(ManifestError, match=said) as caught:
        read_manifest(kept.path)
    assert "cut off" in caught.value.cause


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"module": "tensorflow"}, "module 'tensorflow' is none of tensorrt, tensorrt_rtx"),
        ({"plan_sha256": None}, "plan_sha256 is None, not a text"),
        ({"profiles": [{"inputs": {"images": {"min": [1], "opt": [1]}}}]}, "no 'max'"),
        ({"spec": {}}, "the spec is incomplete"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_with_wrong_values_is_refused(
    kept: Artifact, changes: dict[str, object], said: str
) -> None:
    edited(kept.path, **changes)
    with pytest.raises(ManifestError, match=said):
        read_manifest(kept.path)


def test_a_manifest_of_another_schema_says_how_to_build_again(kept: Artifact) -> None:
    edited(kept.path, schema=7)
    with pytest.raises(ManifestError, match="has schema 7") as caught:
        read_manifest(kept.path)
    assert "schema 1" in caught.value.expected
    assert caught.value.fix == "build the engine again: vitesse build run/"


def test_a_graph_written_otherwise_with_the_same_weights_has_the_same_weights_hash() -> None:
    plain = weights_sha256(graph())
    assert weights_sha256(graph(name="renamed", extra=True)) == plain
    swapped = graph()
    swapped.graph.initializer.insert(0, swapped.graph.initializer.pop())
    assert weights_sha256(swapped) == plain


def test_another_weight_type_or_shape_is_another_weights_hash() -> None:
    plain = weights_sha256(graph())
    assert weights_sha256(graph(1.0000001)) != plain
    reshaped = graph()
    reshaped.graph.initializer[0].dims[:] = [4]
    assert weights_sha256(reshaped) != plain
    retyped = graph()
    retyped.graph.initializer[0].data_type = onnx.TensorProto.INT32
    assert weights_sha256(retyped) != plain
