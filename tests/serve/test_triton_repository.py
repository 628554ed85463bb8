import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from fashion import DETR, VIT, artifact_of
from tiny_onnx import as_artifact
from vitesse.artifact import Artifact
from vitesse.cli.export_triton import add
from vitesse.environment import usable_cores
from vitesse.errors import ModelError, UsageError
from vitesse.ledger import Ledger, Row, Verdict
from vitesse.run import Run, RunFolder, open_run
from vitesse.serve.triton_config import Plan, TensorInfo, Warmup, config_text
from vitesse.serve.triton_repository import Choices, export_triton
from vitesse.spec import Decode, ModelSpec, Preprocessing, Task
from vitesse.tuning import Setting, Settings, Tuned, device_name, save_tuning


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own schema, as its client ships it; read from its file, because the package wants gRPC beside it."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs Triton's schema: pip install 'tritonclient[http]'")
    path = Path(next(iter(found.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    loader = importlib.util.spec_from_file_location("triton_model_config", path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def parsed(text: str, schema: ModuleType) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def a_run(folder: Path, artifact: Artifact) -> Run:
    """A finished run of one step."""
    made = RunFolder(folder)
    made.claim(artifact.sha256, "data", artifact.spec)
    ref = dataclasses.replace(artifact.ref(folder), backend=artifact.backend)
    row = Row("source", Verdict.PASS, "the starting point", artifact=ref)
    Ledger("model.onnx", "cpu", (row,), chosen=0).save(folder / "ledger.json")
    return open_run(folder)


def test_a_classifier_becomes_a_model_that_tritons_schema_takes(tmp_path: Path, schema: ModuleType) -> None:
    run = a_run(tmp_path / "run", artifact_of(VIT))
    written = export_triton(run, tmp_path / "repo", Choices("vit", batch=8, instances=3, delay_us=500))
    config = parsed((written.folder / "config.pbtxt").read_text(), schema)
    assert (config.name, config.backend, config.max_batch_size) == ("vit", "onnxruntime", 8)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("images", schema.TYPE_FP32, [3, 56, 56])
    ]
    assert [(one.name, list(one.dims), one.label_filename) for one in config.output] == [
        ("logits", [10], "labels.txt")
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, schema.ModelInstanceGroup.KIND_CPU)
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert [warmup.batch_size for warmup in config.model_warmup] == [8, 1]
    assert list(config.model_warmup[0].inputs["images"].dims) == [3, 56, 56]
    assert (written.folder / "1" / "model.onnx").read_bytes() == VIT.read_bytes()
    assert (written.folder / "labels.txt").read_text().splitlines() == list(run.artifact.spec.labels)
    assert "--model-repository" in (written.folder / "README.md").read_text()


def test_the_schema_refuses_what_it_does_not_know(schema: ModuleType) -> None:
    from google.protobuf import text_format

    with pytest.raises(text_format.ParseError, match="max_batch"):
        parsed("max_batch: 1", schema)


def test_every_tensor_of_the_configuration_is_one_of_the_graph(tmp_path: Path, schema: ModuleType) -> None:
    written = export_triton(a_run(tmp_path / "run", artifact_of(DETR)), tmp_path / "repo")
    config = parsed((written.folder / "config.pbtxt").read_text(), schema)
    graph = onnx.load(written.folder / "1" / "model.onnx").graph
    assert [one.name for one in config.input] == [one.name for one in graph.input]
    assert [one.name for one in config.output] == [one.name for one in graph.output]
    assert not any(one.label_filename for one in config.output), "labels are for classes, not for boxes"


def test_on_a_cpu_there_is_no_batching_and_an_instance_a_core_unless_asked_for(
    tmp_path: Path, schema: ModuleType
) -> None:
    written = export_triton(a_run(tmp_path / "run", artifact_of(VIT)), tmp_path / "repo")
    config = parsed((written.folder / "config.pbtxt").read_text(), schema)
    assert config.max_batch_size == 1 and not config.HasField("dynamic_batching")
    assert config.instance_group[0].count == usable_cores()
    assert config.name == "run"
    assert any("not tuned" in note for note in written.notes)


def test_what_was_tuned_is_taken(tmp_path: Path, schema: ModuleType) -> None:
    run = a_run(tmp_path / "run", artifact_of(VIT))
    setting = Setting(batch=4, streams=2, threads=3, p99_ms=1.5)
    tuned = Tuned("cpu", device_name(None), run.artifact.sha256, Settings(None, setting))
    save_tuning(run.folder, tuned)
    written = export_triton(run, tmp_path / "repo")
    config = parsed((written.folder / "config.pbtxt").read_text(), schema)
    assert config.max_batch_size == 4
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500, "longer than a call takes"
    assert written.notes == ()


def fixed_batch(path: Path) -> Artifact:
    value = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value[0]], [value[1]]
    )
    onnx.save(onnx.helper.make_model(graph), path)
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((8, 8)))
    return dataclasses.replace(as_artifact(path), spec=spec)


def test_a_graph_of_one_image_keeps_its_batch_axis_and_cannot_be_batched(
    tmp_path: Path, schema: ModuleType
) -> None:
    run = a_run(tmp_path / "run", fixed_batch(tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match="--batch 4 for a graph that takes one image"):
        export_triton(run, tmp_path / "repo", Choices(batch=4))
    written = export_triton(run, tmp_path / "repo")
    config = parsed((written.folder / "config.pbtxt").read_text(), schema)
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [1, 3, 8, 8]
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 1 and list(warmup.inputs["x"].dims) == [1, 3, 8, 8]


def plan(**changed: Any) -> Plan:
    image = TensorInfo("images", ("N", 3, "H", "W"), "float16")
    sizes = TensorInfo("sizes", ("N", 2), "int64")
    boxes = TensorInfo("boxes", ("N", "Q", 4), "float32")
    warmups = tuple(
        Warmup(size, count, "NCHW", "images") for size in ((96, 64), (32, 64)) for count in (8, 1)
    )
    usual = Plan(
        "m", "tensorrt", "model.plan", (image, sizes), (boxes,), 8, (8,), 2000, 1, True, 0, (), warmups
    )
    return dataclasses.replace(usual, **changed)


def test_an_engine_runs_on_the_gpu_with_free_sides_and_a_warm_up_for_each_bucket(schema: ModuleType) -> None:
    config = parsed(config_text(plan()), schema)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert [list(one.dims) for one in config.input] == [[3, -1, -1], [2]]
    assert [one.data_type for one in config.input] == [schema.TYPE_FP16, schema.TYPE_INT64]
    assert [one.name for one in config.model_warmup] == [
        "96x64_batch8",
        "96x64_batch1",
        "32x64_batch8",
        "32x64_batch1",
    ]
    first = config.model_warmup[0]
    assert list(first.inputs["images"].dims) == [3, 96, 64] and first.inputs["images"].zero_data
    assert first.inputs["sizes"].input_data_file == "sizes_96x64"
    assert not config.parameters


def test_names_with_quotes_and_accents_survive(schema: ModuleType) -> None:
    odd = TensorInfo('a"b\\cé', ("N", 2), "float32")
    assert parsed(config_text(plan(outputs=(odd,))), schema).output[0].name == 'a"b\\cé'


def test_a_type_that_triton_lacks_is_named() -> None:
    with pytest.raises(ModelError, match="the tensor y is complex64"):
        config_text(plan(outputs=(TensorInfo("y", ("N",), "complex64"),)))


def test_the_sizes_for_the_warm_up_are_written_in_the_order_of_the_spec(tmp_path: Path) -> None:
    from vitesse.serve.triton_repository import _write

    spec = ModelSpec(
        Task.DETECTION, Decode.POSTPROCESSED, "images", {role: role for role in ("labels", "boxes", "scores")},
        Preprocessing((96, 64)), size_input="sizes", size_order="wh",
    )  # fmt: skip
    artifact = dataclasses.replace(artifact_of(VIT), spec=spec)
    _write(tmp_path / "m", artifact, plan())
    content = (tmp_path / "m" / "warmup" / "sizes_96x64").read_bytes()
    assert np.frombuffer(content, np.int64).tolist() == [64, 96]


def test_an_artifact_that_triton_cannot_run_is_replaced_and_that_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", artifact_of(VIT))
    path = tmp_path / "run" / "ledger.json"
    raw = json.loads(path.read_text())
    foreign = json.loads(json.dumps(raw["rows"][0]))
    foreign["stage"], foreign["artifact"]["backend"] = "build:openvino", "openvino"
    raw["rows"].append(foreign)
    raw["chosen"] = 1
    path.write_text(json.dumps(raw))
    written = export_triton(open_run(run.folder), tmp_path / "repo")
    assert any(
        "source in place of the chosen artifact" in note and "openvino" in note for note in written.notes
    )
    assert (written.folder / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (Choices("../up"), "is no name of a model"),
        (Choices("m", batch=0), "--batch 0"),
        (Choices("m", instances=0), "--instances 0"),
        (Choices("m", delay_us=-1), "--delay-us -1"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, choices: Choices, said: str
) -> None:
    run = a_run(tmp_path / "run", artifact_of(VIT))
    with pytest.raises(UsageError, match=said):
        export_triton(run, tmp_path / "repo", choices)
    assert not (tmp_path / "repo").exists()


def test_a_model_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", artifact_of(VIT))
    written = export_triton(run, tmp_path / "repo")
    with pytest.raises(UsageError, match="is there already"):
        export_triton(run, tmp_path / "repo")
    assert [path.name for path in (tmp_path / "repo").iterdir()] == [written.folder.name]


def test_the_command_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    run = a_run(tmp_path / "run", artifact_of(VIT))
    parser = argparse.ArgumentParser()
    add(parser)
    options = parser.parse_args([str(run.folder), str(tmp_path / "repo"), "--name", "m", "--batch", "2"])
    assert options.run(options) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'repo' / 'm'}\n" and "not tuned" in said.err
