"""On a GPU: CUDA graphs, streams, tensors that stay there, kernels that are not compiled again. Skips elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tiny_onnx import as_artifact
from vitesse.artifact import Artifact, Store
from vitesse.backends.protocol import LoadOptions
from vitesse.backends.torch_cuda.archive import unpack
from vitesse.backends.torch_cuda.backend import TorchCudaBackend
from vitesse.backends.torch_cuda.building import BuildOptions
from vitesse.backends.torch_cuda.comparing import relative_error
from vitesse.backends.torch_cuda.measure import capture, microseconds

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"
)

FASHION = Path(__file__).parents[3] / "examples" / "fashion" / "vit_fashion.onnx"
QUICK = BuildOptions(batch=(1, 4, 4), seconds=0.02, tactics=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("engine")
    return TorchCudaBackend().build_for(as_artifact(FASHION), Store(folder), QUICK).artifact


def images(batch: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 56, 56)).astype(np.float32)


def expected(x: np.ndarray) -> torch.Tensor:
    name = onnx.load(FASHION).graph.input[0].name
    options = LoadOptions(reference=True)
    with TorchCudaBackend().load(as_artifact(FASHION), options) as engine, engine.session() as session:
        return torch.from_numpy(session.run({name: x}).outputs["logits"].copy())


def test_a_shape_is_replayed_as_one_cuda_graph_and_right_every_time(built: Artifact) -> None:
    with TorchCudaBackend().load(built, LoadOptions(tf32=False)) as engine, engine.session() as session:
        name = engine.inputs[0].name
        for batch in (1, 4, 1, 4):
            for seed in (1, 2):
                outcome = session.run({name: images(batch, seed)})
                found = torch.from_numpy(outcome.outputs["logits"])
                assert relative_error(found, expected(images(batch, seed))) < 1e-4
                assert outcome.device_ms is not None
                assert 0 < outcome.device_ms < outcome.host_ms
        assert session.graphs == 2
        assert engine.notes == []


def test_without_graphs_the_numbers_are_the_same(built: Artifact) -> None:
    options = LoadOptions(cuda_graph=False, tf32=False)
    with TorchCudaBackend().load(built, options) as engine, engine.session() as session:
        found = session.run({engine.inputs[0].name: images(4)}).outputs["logits"]
        assert session.graphs == 0
        assert relative_error(torch.from_numpy(found), expected(images(4))) < 1e-4


def test_two_sessions_on_two_threads_capture_and_replay_without_disturbing_each_other(
    built: Artifact,
) -> None:
    wrong: list[float] = []
    answers = {batch: expected(images(batch)) for batch in (1, 4)}
    with TorchCudaBackend().load(built, LoadOptions(tf32=False, sessions=2)) as engine:
        name = engine.inputs[0].name

        def work() -> None:
            with engine.session() as session:
                for turn in range(50):
                    batch = (1, 4)[turn % 2]
                    found = session.run({name: images(batch)}).outputs["logits"]
                    error = relative_error(torch.from_numpy(found), answers[batch])
                    wrong.extend([error] * (error > 1e-4))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert wrong == []


def test_tensors_stay_on_the_gpu_and_wait_for_each_other(built: Artifact) -> None:
    with TorchCudaBackend().load(built, LoadOptions(tf32=False)) as engine, engine.session() as session:
        name = engine.inputs[0].name
        answer = expected(images(4))
        for _ in range(20):
            # The input is made on the caller's stream behind some work, and the output is read there: no waiting here.
            x = torch.zeros(4, 3, 56, 56, device="cuda")
            (torch.randn(2048, 2048, device="cuda") @ torch.randn(2048, 2048, device="cuda")).sum()
            x.copy_(torch.from_numpy(images(4)))
            made = session.run_on_device({name: x})["logits"]
            assert made.device.type == "cuda"
            assert relative_error(made.clone().cpu(), answer) < 1e-4
        address = made.data_ptr()
        static = session.inputs_for({name: (4, 3, 56, 56)})[name]
        static.copy_(torch.from_numpy(images(4, 2)))
        again = session.run_on_device({name: static})["logits"]
        assert again.data_ptr() == address, "outputs are not copied"
        assert relative_error(again.cpu(), expected(images(4, 2))) < 1e-4
        assert session.synchronize() > 0


def test_a_fresh_process_compiles_nothing(built: Artifact, tmp_path: Path) -> None:
    if not unpack(built.path).kernels:
        pytest.skip("no Triton kernel was chosen, or Triton is absent")
    script = (
        "import sys, numpy as np, triton\n"
        "from pathlib import Path\n"
        "compiled = []\n"
        "def listen(*, cache_hit, src, **_):\n"
        "    compiled.extend([src.name] * (not cache_hit))\n"
        "triton.knobs.compilation.listener = listen\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tiny_onnx import as_artifact\n"
        "from vitesse.backends.torch_cuda.backend import TorchCudaBackend\n"
        "with TorchCudaBackend().load(as_artifact(Path(sys.argv[1]))) as engine, engine.session() as session:\n"
        "    for batch in (1, 4):\n"
        "        session.run({engine.inputs[0].name: np.zeros((batch, 3, 56, 56), np.float32)})\n"
        "    assert engine.notes == [], engine.notes\n"
        "assert compiled == [], compiled\n"
    )
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", script, str(built.path), tests]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr


def test_a_slower_call_measures_slower_and_one_that_synchronises_is_infinite() -> None:
    device = torch.device("cuda", 0)
    small, large = (torch.randn(size, size, device=device) for size in (256, 4096))
    times = microseconds(
        [lambda: small @ small, lambda: large @ large, lambda: float(small.sum())],
        [small, large],
        device,
        0.05,
    )
    assert 0 < times[0] < times[1] < times[2] == float("inf")


def test_a_capture_that_fails_leaves_torch_as_it_was() -> None:
    stream = torch.cuda.Stream()
    with pytest.raises(RuntimeError):
        capture(lambda: torch.ones(3, device="cuda").sum().item(), stream, torch.cuda.graph_pool_handle())
    drawn = torch.randn(1000, device="cuda")
    assert drawn.std() > 0.5
    with torch.cuda.stream(stream):
        graph, made = capture(
            lambda: torch.full((2,), 7.0, device="cuda"), stream, torch.cuda.graph_pool_handle()
        )
        graph.replay()
    stream.synchronize()
    assert made.tolist() == [7.0, 7.0]
