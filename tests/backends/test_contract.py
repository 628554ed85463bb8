"""One contract for every runtime that is installed, and for the fake."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tiny_onnx import CLASSES, FEATURES, as_artifact, linear, linear_in_numpy, save, unknown_operator
from vitesse.artifact import Store
from vitesse.backends import TABLE, backend
from vitesse.backends.fake import FakeBackend
from vitesse.backends.protocol import Backend, LoadOptions
from vitesse.errors import BackendError, DataError, MissingExtra

# A GPU may round float32 products to TF32 unless it is told not to; here numbers are compared.
ONE_THREAD = LoadOptions(threads=1, tf32=False)


@pytest.fixture(params=[*TABLE, "fake"])
def runtime(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return FakeBackend(backend("onnxruntime"))
    try:
        found = backend(request.param)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    here = found.probe()
    if not here.available:
        pytest.skip(f"{request.param} cannot run here: {here.reason}")
    return found


def batch(size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((size, FEATURES)).astype(np.float32)


def test_probe_says_available_with_version_and_device(runtime: Backend) -> None:
    found = runtime.probe()
    assert found.available
    assert found.version[0].isdigit()
    assert found.devices[0].startswith(("CPU", "GPU"))


def test_inputs_and_outputs_are_described(runtime: Backend, tmp_path: Path) -> None:
    with runtime.load(linear(tmp_path), ONE_THREAD) as engine:
        (image,) = engine.inputs
        assert (image.name, image.dtype, image.shape[1:]) == ("x", "float32", (FEATURES,))
        assert isinstance(image.shape[0], str)
        assert [(info.name, info.dtype) for info in engine.outputs] == [
            ("logits", "float32"),
            ("total", "float32"),
        ]


@pytest.mark.parametrize("options", [ONE_THREAD, LoadOptions(tf32=False)])
def test_outputs_equal_numpy_for_changing_batch_sizes(
    runtime: Backend, tmp_path: Path, options: LoadOptions
) -> None:
    with runtime.load(linear(tmp_path), options) as engine, engine.session() as session:
        for size in (1, 4, 4, 1, 7, 4, 1, 1):
            x = batch(size, seed=size)
            outcome = session.run({"x": x})
            assert outcome.host_ms > 0
            assert outcome.device_ms is None or 0 < outcome.device_ms < outcome.host_ms
            for name, expected in linear_in_numpy(x).items():
                assert outcome.outputs[name].shape == expected.shape
                np.testing.assert_allclose(outcome.outputs[name], expected, rtol=1e-5, atol=1e-6)


def test_the_runtimes_own_defaults_may_round_to_bfloat16_but_not_worse(
    runtime: Backend, tmp_path: Path
) -> None:
    with runtime.load(linear(tmp_path), LoadOptions(plain=True)) as engine, engine.session() as session:
        for size in (1, 3):
            x = batch(size)
            logits = session.run({"x": x}).outputs["logits"]
            np.testing.assert_allclose(logits, linear_in_numpy(x)["logits"], rtol=2e-2, atol=2e-2)


def test_a_session_sees_new_values_in_the_same_array(runtime: Backend, tmp_path: Path) -> None:
    x = batch(1)
    with runtime.load(linear(tmp_path), ONE_THREAD) as engine, engine.session() as session:
        for value in (0.5, -2.0, 3.0):
            x[:] = value
            logits = session.run({"x": x}).outputs["logits"]
            np.testing.assert_allclose(logits, linear_in_numpy(x)["logits"], rtol=1e-5, atol=1e-6)


def test_strided_and_read_only_feeds_are_right_and_stay_untouched(runtime: Backend, tmp_path: Path) -> None:
    strided = np.asfortranarray(batch(4))[:, ::-1]
    frozen = batch(4)
    frozen.flags.writeable = False
    with runtime.load(linear(tmp_path), ONE_THREAD) as engine, engine.session() as session:
        for x in (strided, frozen):
            before = x.copy()
            logits = session.run({"x": x}).outputs["logits"]
            np.testing.assert_allclose(logits, linear_in_numpy(before)["logits"], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(x, before)


def test_a_run_of_one_session_leaves_the_outputs_of_another_alone(runtime: Backend, tmp_path: Path) -> None:
    engine = runtime.load(linear(tmp_path), ONE_THREAD)
    with engine, engine.session() as first, engine.session() as second:
        for _ in range(3):
            mine = first.run({"x": batch(1, seed=2)}).outputs["logits"]
            second.run({"x": batch(1, seed=3)})
            expected = linear_in_numpy(batch(1, seed=2))["logits"]
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)


def test_two_sessions_on_two_threads_give_right_answers(runtime: Backend, tmp_path: Path) -> None:
    wrong: list[str] = []

    def work(session, seed: int) -> None:
        for turn in range(200):
            x = batch(1 + turn % 3, seed=seed + turn)
            logits = session.run({"x": x}).outputs["logits"]
            if not np.allclose(logits, linear_in_numpy(x)["logits"], rtol=1e-4, atol=1e-5):
                wrong.append(f"session {seed}, turn {turn}")

    with runtime.load(linear(tmp_path), LoadOptions(threads=1, sessions=2, tf32=False)) as engine:
        sessions = [engine.session() for _ in range(2)]
        threads = [
            threading.Thread(target=work, args=(session, 1000 * index))
            for index, session in enumerate(sessions)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_an_output_whose_shape_depends_on_values_is_right_every_time(
    runtime: Backend, tmp_path: Path
) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["where"], name="/where")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])]
    outputs = [helper.make_tensor_value_info("where", TensorProto.INT64, [2, "found"])]
    artifact = save(tmp_path / "nonzero.onnx", nodes, inputs, outputs, {})
    with runtime.load(artifact, ONE_THREAD) as engine, engine.session() as session:
        for count in (2, 2, 5, 0, 3):
            x = np.zeros((1, FEATURES), np.float32)
            x[0, :count] = 1
            np.testing.assert_array_equal(session.run({"x": x}).outputs["where"], np.array(np.nonzero(x)))


def test_a_missing_feed_is_named_with_what_the_graph_takes(runtime: Backend, tmp_path: Path) -> None:
    engine = runtime.load(linear(tmp_path), ONE_THREAD)
    with engine, engine.session() as session, pytest.raises(DataError) as caught:
        session.run({"pixels": batch(1)})
    assert "['pixels']" in caught.value.what
    assert "x float32" in caught.value.expected
    assert caught.value.cause == "missing: x; not an input: pixels"


@pytest.mark.parametrize(
    ("feed", "came"),
    [
        (np.zeros((1, FEATURES), np.float64), "dtype float64"),
        (np.zeros((1, FEATURES + 1), np.float32), f"shape (1, {FEATURES + 1})"),
        (np.zeros(FEATURES, np.float32), f"shape ({FEATURES},)"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused_and_the_session_goes_on(
    runtime: Backend, tmp_path: Path, feed: np.ndarray, came: str
) -> None:
    with runtime.load(linear(tmp_path), ONE_THREAD) as engine, engine.session() as session:
        with pytest.raises(DataError) as caught:
            session.run({"x": feed})
        assert caught.value.what == f"the feed 'x' has {came}"
        assert "x float32 [" in caught.value.expected
        assert session.run({"x": batch(1)}).outputs["logits"].shape == (1, CLASSES)


def test_closed_sessions_and_engines_refuse_to_run(runtime: Backend, tmp_path: Path) -> None:
    engine = runtime.load(linear(tmp_path), ONE_THREAD)
    session = engine.session()
    with session:
        session.run({"x": batch(1)})
    with pytest.raises(BackendError, match="this session is closed"):
        session.run({"x": batch(1)})
    other = engine.session()
    with engine:
        pass
    with pytest.raises(BackendError, match="this engine is closed"):
        other.run({"x": batch(1)})
    with pytest.raises(BackendError, match="this engine is closed"):
        engine.session().run({"x": batch(1)})


def test_closing_releases_the_session_and_keeps_the_outputs_readable(
    runtime: Backend, tmp_path: Path
) -> None:
    with runtime.load(linear(tmp_path), ONE_THREAD) as engine:
        session = engine.session()
        with session:
            for _ in range(3):
                logits = session.run({"x": batch(1)}).outputs["logits"]
        watched = weakref.ref(session)
        del session
        gc.collect()
        assert watched() is None
    np.testing.assert_allclose(logits, linear_in_numpy(batch(1))["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("content", ["empty", "cut off", "text"])
def test_a_damaged_file_is_an_error_that_says_so(runtime: Backend, tmp_path: Path, content: str) -> None:
    whole = linear(tmp_path).path.read_bytes()
    path = tmp_path / "damaged.onnx"
    path.write_bytes({"empty": b"", "cut off": whole[: len(whole) // 2], "text": b"no model\n" * 9}[content])
    with pytest.raises(BackendError) as caught:
        runtime.load(as_artifact(path), ONE_THREAD)
    assert str(path) in caught.value.what
    assert "truncated or damaged" in caught.value.cause


def test_a_file_that_is_gone_is_an_error_that_says_so(runtime: Backend, tmp_path: Path) -> None:
    artifact = linear(tmp_path)
    artifact.path.unlink()
    with pytest.raises(BackendError) as caught:
        runtime.load(artifact, ONE_THREAD)
    assert caught.value.cause == "the file is gone"


def test_an_unknown_operator_is_named(runtime: Backend, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        runtime.load(unknown_operator(tmp_path), ONE_THREAD)
    for part in ("Frobnicate", "com.example", "/body/odd_one"):
        assert part in str(caught.value)


def test_building_gives_an_artifact_that_computes_the_same(runtime: Backend, tmp_path: Path) -> None:
    built = runtime.build(linear(tmp_path), Store(tmp_path / "artifacts"))
    built.artifact.check()
    assert built.artifact.backend == runtime.name
    with runtime.load(built.artifact, ONE_THREAD) as engine, engine.session() as session:
        logits = session.run({"x": batch(2)}).outputs["logits"]
    np.testing.assert_allclose(logits, linear_in_numpy(batch(2))["logits"], rtol=1e-5, atol=1e-6)
