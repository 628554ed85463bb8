from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_graphs
from vitesse.errors import ModelError, SpecError
from vitesse.metadata import read_spec, write_spec
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.signature import graph_signature
from vitesse.spec import METADATA_KEY


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(tiny_graphs.detector(), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in weights.bin beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(
        tiny_graphs.detector(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def _refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _move_weights(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_a_good_file_loads(saved: Path) -> None:
    assert load_onnx(saved).graph.node[0].op_type == "Conv"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"no model at {tmp_path / 'absent.onnx'}" in _refusal(tmp_path / "absent.onnx")


def test_a_folder_is_answered_with_the_model_inside_it(saved: Path) -> None:
    text = _refusal(saved.parent)
    assert f"{saved.parent} is a folder" in text
    assert f"give {saved}" in text


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    text = _refusal(tmp_path / "model.onnx")
    assert "is empty" in text
    assert "stopped at once" in text


@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_a_truncated_file_is_called_truncated(saved: Path, part: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(part * len(content))])
    text = _refusal(saved)
    assert "ends too early" in text
    assert "cut off" in text


def test_no_truncation_at_all_loads_as_a_model(saved: Path) -> None:
    content = saved.read_bytes()
    for size in range(1, len(content), max(1, len(content) // 200)):
        saved.write_bytes(content[:size])
        with pytest.raises(ModelError):
            load_onnx(saved)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git-LFS pointer"),
        (b"PK\x03\x04archive/data.pkl", "a PyTorch checkpoint or an .npz"),
        (b"\x80\x02}q\x00(X\x05\x00", "a Python pickle"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"model_type": "detr"}', "a JSON text"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"weights of my model, v2", "is not an ONNX model"),
    ],
)
def test_another_format_is_recognised(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert said in _refusal(tmp_path / "model.onnx")


def test_a_graph_without_nodes_is_refused(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    del model.graph.node[:]
    assert "has no nodes" in _refusal(_save(model, tmp_path))


def test_a_file_without_a_graph_is_refused(tmp_path: Path) -> None:
    text = _refusal(_save(onnx.ModelProto(ir_version=8, producer_name="x"), tmp_path))
    assert "has no nodes and no inputs and no outputs" in text


def test_a_newer_opset_names_both_versions(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    model.opset_import[0].version = 999
    text = _refusal(_save(model, tmp_path))
    assert "opset 999" in text
    assert f"at most opset {onnx.defs.onnx_opset_version()}" in text
    assert "pip install -U onnx" in text


def test_a_newer_ir_version_is_named(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    model.ir_version = 99
    assert "IR version 99" in _refusal(_save(model, tmp_path))


def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    tiny_graphs.node(model, "relu").op_type = "Relux"
    assert "node 'relu' is ai.onnx::Relux, which opset 17 does not have" in _refusal(_save(model, tmp_path))


def test_an_operator_newer_than_the_opset_is_named(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    tiny_graphs.node(model, "relu").op_type = "Gelu"
    assert "node 'relu' is ai.onnx::Gelu, which opset 17 does not have" in _refusal(_save(model, tmp_path))


def test_an_unknown_domain_is_named_with_its_node(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    tiny_graphs.node(model, "relu").domain = "mmdeploy"
    model.opset_import.append(helper.make_opsetid("mmdeploy", 1))
    text = _refusal(_save(model, tmp_path))
    assert "node 'relu' is mmdeploy::Relu" in text
    assert "domain 'mmdeploy'" in text


def test_an_unknown_operator_in_a_subgraph_is_found(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    inner = helper.make_graph(
        [helper.make_node("Nonsense", ["boxes"], ["inner"], "deep")],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    flag = numpy_helper.from_array(np.array(True), "flag")
    model.graph.initializer.append(flag)
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["unused"], then_branch=inner, else_branch=inner)
    )
    assert "node 'deep' is ai.onnx::Nonsense" in _refusal(_save(model, tmp_path))


def test_contrib_operators_and_local_functions_are_left_to_the_runtime(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    tiny_graphs.node(model, "relu").op_type = "FastGelu"
    tiny_graphs.node(model, "relu").domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    body = [helper.make_node("Tanh", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("mine", "Squash", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    tiny_graphs.node(model, "tanh").op_type = "Squash"
    tiny_graphs.node(model, "tanh").domain = "mine"
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert len(load_onnx(_save(model, tmp_path)).graph.node) == 9


def test_a_checker_failure_is_shortened_to_its_reason(tmp_path: Path) -> None:
    model = tiny_graphs.detector()
    tiny_graphs.node(model, "relu").input[0] = "nowhere"
    text = _refusal(_save(model, tmp_path))
    assert "is not a valid ONNX graph" in text
    assert "nowhere" in text
    assert "==>" not in text
    assert len(text) < 700


def test_external_data_is_loaded(external: Path) -> None:
    loaded = load_onnx(external)
    assert np.array_equal(
        tiny_graphs.weight(loaded, "stem"), tiny_graphs.weight(tiny_graphs.detector(), "stem")
    )
    assert not any(tensor.external_data for tensor in loaded.graph.initializer)


def test_missing_external_data_is_named(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    text = _refusal(external)
    assert "its external data 'weights.bin' is missing" in text
    assert "put weights.bin beside model.onnx" in text


def test_truncated_external_data_is_named_with_the_weight(external: Path) -> None:
    weights = external.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-8])
    text = _refusal(external)
    assert "takes" in text
    assert "cut off" in text


def test_external_data_with_a_false_length_is_refused(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = str(int(entry.value) - 4)
    external.write_bytes(model.SerializeToString())
    assert "belongs to another model" in _refusal(external)


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "..\\weights.bin", ""])
def test_external_data_above_the_folder_is_refused(external: Path, location: str) -> None:
    (external.parent.parent / "weights.bin").write_bytes((external.parent / "weights.bin").read_bytes())
    _move_weights(external, location)
    assert "points outside the model's folder" in _refusal(external)


def test_external_data_with_an_absolute_path_is_refused_even_inside_the_folder(external: Path) -> None:
    _move_weights(external, str(external.parent / "weights.bin"))
    assert "points outside the model's folder" in _refusal(external)


def test_external_data_through_a_link_that_leaves_the_folder_is_refused(external: Path) -> None:
    secret = external.parent.parent / "secret.bin"
    (external.parent / "weights.bin").replace(secret)
    (external.parent / "weights.bin").symlink_to(secret)
    assert "points outside the model's folder" in _refusal(external)


def test_a_download_cache_of_links_into_one_folder_loads(external: Path) -> None:
    snapshot = external.parent / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.onnx").symlink_to(external)
    (snapshot / "weights.bin").symlink_to(external.parent / "weights.bin")
    assert len(load_onnx(snapshot / "model.onnx").graph.initializer) == 5


def test_external_data_inside_a_constant_node_is_loaded_and_confined(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.full((3,), 2.5, np.float32), "inner")
    (tmp_path / "c.bin").write_bytes(value.raw_data)
    onnx.external_data_helper.set_external_data(value, "c.bin")
    value.ClearField("raw_data")
    nodes = [
        helper.make_node("Constant", [], ["c"], "constant", value=value),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)]
    )
    loaded = load_onnx(_save(model, tmp_path))
    assert numpy_helper.to_array(loaded.graph.node[0].attribute[0].t).tolist() == [2.5, 2.5, 2.5]
    (tmp_path / "c.bin").unlink()
    assert "missing" in _refusal(tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_model_above_two_gigabytes_loads(tmp_path: Path) -> None:
    if os.environ.get("VITESSE_LARGE_TESTS") != "1":
        pytest.skip("writes a sparse 2.2 GB file and needs 5 GB of memory (set VITESSE_LARGE_TESTS=1)")
    side = 23_500
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[side, side])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(side * side * 4)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert len(load_onnx(_save(model, tmp_path)).graph.initializer[0].raw_data) > 2**31


def test_a_spec_survives_the_metadata() -> None:
    model, spec = tiny_graphs.detector(), tiny_graphs.detector_spec(published={"coco_ap": 0.4})
    model.metadata_props.add(key="author", value="someone")
    twice = write_spec(write_spec(model, tiny_graphs.detector_spec()), spec)
    assert read_spec(twice) == spec
    assert [entry.key for entry in twice.metadata_props] == ["author", METADATA_KEY]
    assert read_spec(model) is None, "the model given stays as it is"


def test_a_damaged_spec_in_the_metadata_is_named() -> None:
    model = tiny_graphs.detector()
    model.metadata_props.add(key=METADATA_KEY, value="{half")
    with pytest.raises(SpecError, match=r"metadata 'vitesse.spec' is not JSON"):
        read_spec(model)


def test_the_signature_lists_inputs_and_outputs_without_weights() -> None:
    model = tiny_graphs.detector()
    model.graph.input.append(helper.make_tensor_value_info("stem", TensorProto.FLOAT, [16, 3, 4, 4]))
    assert graph_signature(model) == (
        "inputs:\n  images  float32 [N, 3, 32, 32]\n"
        "outputs:\n  logits  float32 [N, 64, 5]\n  boxes   float32 [N, 64, 4]"
    )


def test_a_model_beyond_one_protobuf_message_is_refused_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitesse import metadata
    from vitesse.spec import Decode, ModelSpec, Preprocessing, Task

    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, Preprocessing((8, 8)))
    model = onnx.ModelProto(doc_string="x" * 100)
    assert metadata.read_spec(onnx.load_from_string(metadata.serialise(model, spec))) == spec
    monkeypatch.setattr(metadata, "_LARGEST_FILE", 50)
    with pytest.raises(ModelError, match=r"expected: at most 2\.1 GB(.|\n)*FP16 weights"):
        metadata.serialise(model, spec)
