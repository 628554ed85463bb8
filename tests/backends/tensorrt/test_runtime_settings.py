"""What TensorRT for RTX is told at run time: CUDA graphs, kernels, and a cache of them (fake module and driver)."""

from __future__ import annotations

from pathlib import Path

from backends.tensorrt.fake_api import CudaGraphStrategy, Specialization, Strategy, World
from backends.tensorrt.loading import doubles, images, loaded


def test_rtx_captures_graphs_itself_and_compiles_kernels_before_it_answers(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path, kind="rtx") as engine, engine.session() as session:
        for _ in range(3):
            session.run({"images": images(1)})
        (context,) = world.contexts
        assert context.config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert context.config.dynamic_shapes_kernel_specialization_strategy is Specialization.EAGER
        assert context.config.strategy is Strategy.USER_MANAGED
        assert session.graphs.captures == 0
        assert engine.settings.applied["runtime cache"] == "begun"


def test_rtx_without_cuda_graphs_captures_none_at_all(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, kind="rtx", cuda_graph=False) as engine, engine.session() as session:
        for _ in range(3):
            session.run({"images": images(1)})
        (context,) = world.contexts
        assert context.config.cuda_graph_strategy is CudaGraphStrategy.DISABLED
        assert session.graphs.captures == 0


def test_the_runtime_cache_lies_beside_the_plan_and_is_taken_over_by_the_next_process(
    world: World, tmp_path: Path
) -> None:
    with loaded(world, tmp_path, kind="rtx") as engine:
        plan = engine.plan
    kept = plan.with_name(plan.name + ".sm89.cache")
    assert kept.read_bytes().endswith(b"kernels;")
    with loaded(world, tmp_path, kind="rtx") as engine:
        assert world.caches[-1].loaded == b"kernels;"
        assert engine.settings.applied["runtime cache"] == "taken over from an earlier process"
    assert kept.read_bytes().endswith(b"kernels;kernels;")


def test_a_damaged_or_foreign_runtime_cache_is_noted_and_begun_anew(world: World, tmp_path: Path) -> None:
    with loaded(world, tmp_path, kind="rtx") as engine:
        kept = engine.plan.with_name(engine.plan.name + ".sm89.cache")
    kept.write_bytes(kept.read_bytes()[:-1])
    with loaded(world, tmp_path, kind="rtx") as engine:
        assert world.caches[-1].loaded == b""
        assert "is damaged and was not used" in engine.settings.notes[0]
    world.cache_accepted = False
    with loaded(world, tmp_path, kind="rtx") as engine:
        assert "for another GPU, driver or version" in engine.settings.notes[0]
        assert engine.settings.applied["runtime cache"] == "begun anew"


def test_a_folder_that_cannot_be_written_costs_the_cache_and_nothing_else(
    world: World, tmp_path: Path
) -> None:
    engine = loaded(world, tmp_path, kind="rtx")
    engine.plan.with_name(engine.plan.name + ".sm89.cache").mkdir()
    engine.close()
    assert "the runtime cache was not kept" in engine.settings.notes[0]


def test_a_context_that_says_it_cannot_be_captured_is_not(world: World, tmp_path: Path) -> None:
    world.capturable = False
    with loaded(world, tmp_path, kind="rtx") as engine:
        engine.captures_graphs = True  # as on a module that has the question but no graphs of its own
        with engine.session() as session:
            for _ in range(3):
                fed = images(1)
                assert doubles(session.run({"images": fed}), fed)
            assert session.graphs.captures == 0
