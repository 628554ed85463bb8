"""What the benchmark of torch-cuda is made of: its rows and groups, rounds, parity, kernels in a profile."""

import statistics

import pytest

from gpu_benchmark import gpu_module

torch = pytest.importorskip("torch", reason="the benchmark's models and peers are torch modules")


# --- rows


def test_rows_are_read_and_grouped_by_model_and_batch() -> None:
    rows, race = gpu_module("rows"), gpu_module("race")
    found = rows.rows_of("vit_b16:32:fp16, vit_b16:1:fp16,vit_b16:32:fp8")
    assert [one.name for one in found] == ["vit_b16:32:fp16", "vit_b16:1:fp16", "vit_b16:32:fp8"]
    groups = race.groups_of(found)
    assert [(one.name, one.precisions) for one in groups] == [
        ("vit_b16:32", ("fp16", "fp8")),
        ("vit_b16:1", ("fp16",)),
    ]
    assert len(rows.rows_of("")) == len(gpu_module("tables").TARGETS)


@pytest.mark.parametrize(
    "text", ["vit_b16", "vit_b17:1:fp16", "vit_b16:0:fp16", "vit_b16:one:fp16", "vit_b16:1:int8"]
)
def test_an_unknown_row_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="MODEL:BATCH:PRECISION"):
        gpu_module("rows").rows_of(text)


def test_the_tables_of_the_page_name_all_peers() -> None:
    assert list(gpu_module("tables").PEERS) == list(gpu_module("peers").PEERS)
    models = gpu_module("models").MODELS
    assert {name: models[name].title for name in gpu_module("tables").TITLES} == gpu_module("tables").TITLES


# --- rounds


class Counted:
    stream = None

    def __init__(self, calls: list[str], name: str) -> None:
        self._calls, self._name = calls, name

    def call(self) -> None:
        self._calls.append(self._name)


def test_rounds_rotate_and_keep_every_sample() -> None:
    timing = gpu_module("timing")
    calls: list[str] = []
    found = timing.interleaved({name: Counted(calls, name) for name in "abc"}, seconds=0.0)
    assert {name: len(one.calls) for name, one in found.items()} == dict.fromkeys("abc", timing.LEAST_ROUNDS)
    assert all(len(block) == timing.MOST_CALLS for one in found.values() for block in one.calls)
    measured = calls[-timing.LEAST_ROUNDS * 3 * (timing.MOST_CALLS + 1 + timing.SINGLE_CALLS) :]
    order = [name for at, name in enumerate(measured) if at == 0 or measured[at - 1] != name]
    # The last of a round and the first of the next are never the same candidate.
    assert order[:9] == list("abcbcacab")
    samples = [ms for block in found["a"].calls for ms in block]
    assert found["a"].figures()["ms"] == statistics.median(samples)


def test_events_that_do_not_enclose_the_work_are_refused() -> None:
    timing = gpu_module("timing")
    timing.check_enclosed(9.0, 10.0)
    with pytest.raises(ValueError, match="another stream"):
        timing.check_enclosed(0.2, 10.0)


def test_parity_is_by_largest_value_and_by_norm_and_refuses_what_is_no_answer() -> None:
    race = gpu_module("race")
    wanted = [torch.tensor([[3.0, -4.0]])]
    (found,) = race.parity([torch.tensor([[3.0, -4.2]])], wanted)
    assert found["max_abs"] == pytest.approx(0.2, rel=1e-5)
    assert found["max_rel"] == pytest.approx(0.05, rel=1e-5)
    assert found["norm_rel"] == pytest.approx(0.04, rel=1e-5)
    with pytest.raises(ValueError, match="NaN"):
        race.parity([torch.tensor([[3.0, float("nan")]])], wanted)
    with pytest.raises(ValueError, match="shapes"):
        race.parity([torch.tensor([3.0, -4.0])], wanted)


# --- profiles


def test_launches_and_times_of_kernels_are_those_of_one_call() -> None:
    profiling = gpu_module("profiling")
    lines = profiling.summed({"a": [1.0] * profiling.CALLS, "b": [3.0] * 2 * profiling.CALLS})
    assert lines == [
        {"kernel": "b", "us": 6.0, "launches": 2.0, "share": 0.8571},
        {"kernel": "a", "us": 1.0, "launches": 1.0, "share": 0.1429},
    ]
