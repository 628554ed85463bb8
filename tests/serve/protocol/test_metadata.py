import json
from dataclasses import replace

import pytest

from v2_bodies import SIGNATURE
from vitesse.backends.protocol import TensorInfo
from vitesse.serve.protocol import (
    Counters,
    Spent,
    model_config,
    model_metadata,
    repository_index,
    safe_name,
    server_metadata,
    statistics,
)


def test_the_server_names_the_extensions_it_has() -> None:
    assert server_metadata("1.2")["version"] == "1.2"
    assert "binary_tensor_data" in server_metadata("1.2")["extensions"]


def test_a_free_dimension_is_minus_one() -> None:
    document = model_metadata(SIGNATURE)
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2, -1]}]
    assert document["outputs"][1] == {"name": "labels", "datatype": "INT64", "shape": [-1, 3]}
    assert document["versions"] == ["1"] and document["platform"] == "onnxruntime_onnx"


def test_the_configuration_leaves_a_free_batch_out_of_dims() -> None:
    config = model_config(SIGNATURE, max_wait_s=0.002, workers=3, gpu=True)
    assert config["max_batch_size"] == 4
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [2, -1]}]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert config["instance_group"][0]["kind"] == "KIND_GPU" and config["instance_group"][0]["count"] == 3


def test_a_fixed_batch_is_a_dimension_like_others() -> None:
    fixed = replace(SIGNATURE, inputs=(TensorInfo("x", (1, 2, 2), "float32"),), max_batch=1)
    config = model_config(fixed)
    assert config["max_batch_size"] == 0 and config["input"][0]["dims"] == [1, 2, 2]
    assert config["output"][0]["dims"] == [-1, 3] and "dynamic_batching" not in config


def test_statistics_are_whole_nanoseconds_and_tell_the_release() -> None:
    counters = Counters(
        inferences=6,
        executions=2,
        last_inference=1.5,
        success=Spent(3, 0.25),
        batches={4: Spent(1, 0.5), 2: Spent(1, 1e-9)},
    )
    entry = statistics(SIGNATURE, counters, {"served_by": "reference", "why": "NaN"})["model_stats"][0]
    assert (entry["inference_count"], entry["execution_count"], entry["last_inference"]) == (6, 2, 1500)
    assert entry["inference_stats"]["success"] == {"count": 3, "ns": 250_000_000}
    assert entry["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert [row["batch_size"] for row in entry["batch_stats"]] == [2, 4]
    assert entry["batch_stats"][0]["compute_infer"] == {"count": 1, "ns": 1}
    assert entry["release"]["why"] == "NaN"
    assert "release" not in statistics(SIGNATURE, counters)["model_stats"][0]
    json.dumps(entry)


def test_the_index_says_why_a_model_is_not_ready() -> None:
    assert repository_index(SIGNATURE, ready=True)[0]["state"] == "READY"
    (entry,) = repository_index(SIGNATURE, ready=False, reason="warming up")
    assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "warming up")
    assert repository_index(SIGNATURE, ready=False, only_ready=True) == []


@pytest.mark.parametrize("name", ["m", "vit_fashion-1.2", "A" * 128, "1", "rt+fp16"])
def test_a_plain_name_is_safe(name: str) -> None:
    assert safe_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "..",
        "../m",
        "a/b",
        "a\\b",
        "a..b",
        ".hidden",
        "%2e%2e%2f",
        "m\0",
        "m\n",
        "a b",
        "é",
        "m" * 300,
    ],
)
def test_20_a_name_that_could_leave_its_place_is_not_safe(name: str) -> None:
    assert not safe_name(name)
