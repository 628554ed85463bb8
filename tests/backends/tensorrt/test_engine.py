"""What drives an engine, on a fake module and a fake driver: buffers, contexts, profiles and CUDA graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.cuda.fake_driver import FakeDriver
from backends.tensorrt.fake_api import Network, World
from backends.tensorrt.loading import TWO_PROFILES, doubles, images, loaded
from vitesse.backends.cuda.driver import CudaError
from vitesse.backends.protocol import TensorInfo
from vitesse.backends.tensorrt.contexts import KEPT
from vitesse.errors import BackendError, DataError

KINDS = ("old", "new", "rtx")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_batch_size_is_doubled_again_and_again(
    world: World, tmp_path: Path, kind: str, cuda_graph: bool
) -> None:
    with loaded(world, tmp_path, kind=kind, cuda_graph=cuda_graph) as engine, engine.session() as session:
        for turn in range(4):
            for batch in (1, 8, 3):
                fed = images(batch, start=turn)
                outcome = session.run({"images": fed})
                assert doubles(outcome, fed)
                assert outcome.host_ms > 0
                assert outcome.device_ms is not None and outcome.device_ms >= 1


def test_an_engine_tells_its_inputs_and_outputs(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine:
        assert engine.inputs == (TensorInfo("images", ("?", 3, 4, 4), "float32"),)
        assert engine.outputs == (TensorInfo("doubled", ("?", 3, 4, 4), "float32"),)


def test_half_precision_and_fixed_shapes_are_fed_as_they_are(world: World, tmp_path: Path) -> None:
    network = Network(shape=(2, 3, 4, 4), profiles=(), dtype="HALF")
    with loaded(world, tmp_path, network) as engine, engine.session() as session:
        fed = images(2).astype(np.float16)
        assert doubles(session.run({"images": fed}), fed)
        with pytest.raises(DataError, match=r"shape \(1, 3, 4, 4\)"):
            session.run({"images": fed[:1]})


def test_arrays_that_are_not_contiguous_are_fed_right(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine, engine.session() as session:
        fed = np.ascontiguousarray(images(2).transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)[::-1]
        assert not fed.flags.c_contiguous
        assert doubles(session.run({"images": fed}), fed)


def test_after_the_session_is_open_nothing_more_is_allocated(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, TWO_PROFILES) as engine, engine.session() as session:
        before = world.driver.allocations
        for batch, side in ((1, 4), (8, 4), (2, 16), (1, 8), (2, 16), (8, 4)):
            fed = images(batch, side)
            assert doubles(session.run({"images": fed}), fed)
        assert world.driver.allocations == before


def test_wrong_feeds_are_refused_with_what_the_engine_takes(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine, engine.session() as session:
        with pytest.raises(DataError, match=r"dtype float64") as caught:
            session.run({"images": images(1).astype(np.float64)})
        assert "images float32 [?, 3, 4, 4]" in caught.value.expected
        with pytest.raises(DataError, match="no optimisation profile of the engine holds images=9x3x4x4"):
            session.run({"images": images(9)})
        fed = images(1)
        assert doubles(session.run({"images": fed}), fed)  # the session goes on after a refusal


def test_the_profile_that_holds_the_shapes_is_chosen(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, TWO_PROFILES, cuda_graph=False) as engine, engine.session() as session:
        (context,) = world.contexts
        for batch, side, profile in ((8, 4, 0), (2, 16, 1), (1, 4, 0)):
            session.run({"images": images(batch, side)})
            assert context.active_optimization_profile == profile
        with pytest.raises(DataError, match="images=4x3x16x16"):
            session.run({"images": images(4, 16)})


def test_a_repeated_shape_sets_nothing_on_the_context_again(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, cuda_graph=False) as engine, engine.session() as session:
        session.run({"images": images(2)})
        (context,) = world.contexts
        before = list(context.calls)
        session.run({"images": images(2, start=9)})
        assert context.calls == before


def test_the_second_call_of_a_shape_is_captured_and_later_ones_replay_it(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path) as engine, engine.session() as session:
        for _ in range(5):
            for batch in (1, 2):
                session.run({"images": images(batch)})
        assert (session.graphs.captures, session.graphs.replays) == (2, 6)


def test_a_captured_shape_keeps_a_context_that_no_other_shape_changes(world: World, tmp_path: Path) -> None:
    # The fake driver calls it a misuse when a graph runs whose context was changed, and the fixture looks for misuses.
    with loaded(world, tmp_path, TWO_PROFILES) as engine, engine.session() as session:
        for turn in range(3):
            for batch, side in ((1, 4), (2, 4), (1, 8), (2, 16)):
                fed = images(batch, side, start=turn)
                assert doubles(session.run({"images": fed}), fed)
        assert session.graphs.captures == 4


def test_the_fake_would_see_one_context_used_for_two_captured_shapes(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine, engine.session() as session:
        for _ in range(2):
            session.run({"images": images(1)})
        ready = session._contexts.own((("images", (1, 3, 4, 4)),))
        ready._context.set_input_shape("images", (2, 3, 4, 4))
        session.run({"images": images(1)})
    assert world.driver.misuses == ["a graph ran whose context was changed after it was captured"]
    world.driver.misuses.clear()


def test_more_shapes_than_contexts_are_kept_still_come_out_right(world: World, tmp_path: Path) -> None:
    many = KEPT + 3
    network = Network(profiles=(((1, 3, 4, 4), (1, 3, 4, 4), (many, 3, 4, 4)),))
    with loaded(world, tmp_path, network) as engine, engine.session() as session:
        for turn in range(4):
            for batch in range(1, many + 1):
                for _ in range(turn):  # at times captured, at times given up before
                    fed = images(batch, start=turn)
                    assert doubles(session.run({"images": fed}), fed)
        assert session.graphs.evictions > 0
        assert len(session._contexts._own) <= KEPT


def test_a_graph_is_not_replayed_once_its_context_was_given_up(world: World, tmp_path: Path) -> None:
    network = Network(profiles=(((1, 3, 4, 4), (1, 3, 4, 4), (KEPT + 1, 3, 4, 4)),))
    with loaded(world, tmp_path, network) as engine, engine.session() as session:
        for batch in range(1, KEPT + 1):
            for _ in range(2):
                session.run({"images": images(batch)})
        assert session.graphs.captures == KEPT
        session.run({"images": images(KEPT + 1)})  # takes the place of batch 1, whose graph is still there
        replays = session.graphs.replays
        fed = images(1, start=3)
        assert doubles(session.run({"images": fed}), fed)
        assert session.graphs.replays == replays


def test_a_closed_session_gives_all_its_memory_back(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine:
        with engine.session() as session:
            session.run({"images": images(2)})
            assert engine.device_pool.in_use_bytes > 0
        assert engine.device_pool.in_use_bytes == 0


def test_a_graph_that_cannot_be_captured_runs_plainly(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(stream: int) -> int:
        FakeDriver.end_capture(world.driver, stream)
        raise CudaError("CUDA says no", code="cudaErrorStreamCaptureUnsupported")

    monkeypatch.setattr(world.driver, "end_capture", no)
    with loaded(world, tmp_path) as engine, engine.session() as session:
        for turn in range(4):
            fed = images(2, start=turn)
            assert doubles(session.run({"images": fed}), fed)
        assert session.graphs.captures == 0
        assert list(session.graphs.refused.values()) == ["CUDA says no"]
    world.driver._graphs.clear()  # what the fake captured and `no` threw away


def test_an_output_that_outgrows_its_buffer_moves_and_the_graphs_are_captured_anew(
    world: World, tmp_path: Path
) -> None:
    network = Network(profiles=(((1, 3, 4, 4), (6, 3, 4, 4), (6, 3, 4, 4)),), output="inverse")
    with loaded(world, tmp_path, network) as engine, engine.session() as session:
        small = images(6)
        for _ in range(3):
            assert session.run({"images": small}).outputs["doubled"].shape == (4, 3, 4, 4)
        captured = session.graphs.captures
        assert captured == 1
        assert session.run({"images": images(1)}).outputs["doubled"].shape == (9, 3, 4, 4)
        for _ in range(3):
            outcome = session.run({"images": small})
            assert np.array_equal(outcome.outputs["doubled"], 2 * small[:4])
        assert session.graphs.captures == captured + 1


def test_outputs_are_overwritten_by_the_next_run_and_outlive_the_session(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path) as engine:
        with engine.session() as session:
            first = session.run({"images": images(1)}).outputs["doubled"]
            session.run({"images": images(1, start=5)})
            assert np.array_equal(first, 2 * images(1, start=5))
        assert np.array_equal(first, 2 * images(1, start=5))


def test_two_sessions_share_weights_and_nothing_else(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path) as engine, engine.session() as one, engine.session() as other:
        first = one.run({"images": images(2)}).outputs["doubled"]
        second = other.run({"images": images(2, start=7)}).outputs["doubled"]
        assert np.array_equal(first, 2 * images(2))
        assert np.array_equal(second, 2 * images(2, start=7))
        assert len(world.deserialised) == 1


def test_contexts_of_a_session_work_in_one_block_that_counts_against_the_cap(
    world: World, tmp_path: Path
) -> None:
    network = replace(TWO_PROFILES, scratch=1 << 20)
    with loaded(world, tmp_path, network, memory_bytes=3 << 20) as engine, engine.session() as session:
        for batch in (1, 2, 3):
            session.run({"images": images(batch)})
        assert len({context.scratch for context in world.contexts}) == 1
        assert engine.device_pool.in_use_bytes >= 1 << 20
        with engine.session(), pytest.raises(CudaError, match="would pass the cap") as caught:
            engine.session()
        assert "scratch memory" in str(caught.value)
        fed = images(1)
        assert doubles(session.run({"images": fed}), fed)


def test_a_session_that_cannot_be_made_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    engine = loaded(world, tmp_path, memory_bytes=600)
    with engine:
        with pytest.raises(CudaError, match="would pass the cap"):
            engine.session()
        assert engine.device_pool.in_use_bytes == 0


def test_an_output_whose_shape_depends_on_values_is_refused(world: World, tmp_path: Path) -> None:
    network = Network(output="data")
    with (
        loaded(world, tmp_path, network) as engine,
        pytest.raises(BackendError, match=r"'doubled' is \('\?', 4\)") as caught,
    ):
        engine.session()
    assert "NonMaxSuppression" in caught.value.cause


@pytest.mark.parametrize(("dtype", "fix"), [("BF16", "inside, any type will do"), ("FP8", "float16")])
def test_types_that_numpy_lacks_are_refused(world: World, tmp_path: Path, dtype: str, fix: str) -> None:
    with pytest.raises(BackendError, match=f"'images' of the engine is a {dtype}") as caught:
        loaded(world, tmp_path, Network(dtype=dtype))
    assert fix in caught.value.fix


def test_an_input_in_host_memory_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="must lie in host memory"):
        loaded(world, tmp_path, Network(location="HOST"))


def test_what_the_library_logs_is_in_the_error_and_the_session_goes_on(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, cuda_graph=False) as engine, engine.session() as session:
        (context,) = world.contexts
        context.network.fails = "Cuda failure: out of memory"
        with pytest.raises(BackendError, match="refuses to run the engine: Cuda failure: out of memory"):
            session.run({"images": images(1)})
        context.network.fails = ""
        fed = images(1)
        assert doubles(session.run({"images": fed}), fed)


def test_a_plan_that_the_library_refuses_all_the_same_is_an_error_with_its_words(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Network, "to_bytes", lambda self: b"something else")
    with pytest.raises(BackendError, match=r"cannot deserialise .*: magicTag does not match") as caught:
        loaded(world, tmp_path)
    assert "build it again: vitesse build run/" in caught.value.fix


def test_closed_sessions_and_engines_say_so(world: World, tmp_path: Path) -> None:
    engine = loaded(world, tmp_path)
    session, other = engine.session(), engine.session()
    session.close()
    session.close()
    with pytest.raises(BackendError, match="this session is closed"):
        session.run({"images": images(1)})
    engine.close()
    engine.close()
    with pytest.raises(
        BackendError, match="this session is closed"
    ):  # the engine closes what was made from it
        other.run({"images": images(1)})
    with pytest.raises(BackendError, match="this engine is closed"):
        engine.session()


def test_a_session_per_profile_is_all_that_an_old_version_allows_and_says_so(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path, kind="old", cuda_graph=False) as engine, engine.session() as session:
        with pytest.raises(BackendError, match="refuses profile 1") as caught:
            engine.session()
        assert "one context at a time" in caught.value.cause
        fed = images(1)
        assert doubles(session.run({"images": fed}), fed)


def test_plain_options_leave_everything_at_the_librarys_defaults(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, kind="rtx", plain=True) as engine, engine.session() as session:
        for _ in range(3):
            fed = images(1)
            assert doubles(session.run({"images": fed}), fed)
        assert session.graphs.captures == 0
        assert all(context.config is None for context in world.contexts)
        assert dict(engine.settings.applied) == {}


def test_where_a_profile_has_one_context_several_shapes_share_it_without_graphs(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path, TWO_PROFILES, kind="old") as engine, engine.session() as session:
        for turn in range(3):
            for batch, side in ((1, 4), (1, 8), (2, 4), (2, 16)):
                fed = images(batch, side, start=turn)
                assert doubles(session.run({"images": fed}), fed)
