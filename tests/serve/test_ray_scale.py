"""How a deployment on Ray is sized, and what the command line refuses; needs no Ray."""

import sys

import pytest

from vitesse.cli import main
from vitesse.errors import UsageError
from vitesse.serve.ray.scale import Load, Scale, load_of, parse_scale
from vitesse.serve.settings import PoolSettings


def test_the_scale_is_a_number_or_a_range() -> None:
    assert (parse_scale("4"), parse_scale("2-8")) == (Scale(4, 4), Scale(2, 8))
    with pytest.raises(UsageError, match="expected: a number, or a range such as 2-8"):
        parse_scale("many")
    for wrong in ("0", "8-2"):
        with pytest.raises(UsageError, match="at least 1, and not more at least than at most"):
            parse_scale(wrong)


def test_a_replica_on_a_gpu_has_all_of_it_and_on_a_cpu_a_core_for_each_thread() -> None:
    on_cpu = load_of(PoolSettings(2, 1, 0.0, 1), Scale(1, 4), "cpu")
    assert on_cpu == Load(target=2, ongoing=4, queued=64, cpus=2, gpus=0)
    on_gpu = load_of(PoolSettings(2, 8, 0.002, 0), Scale(2, 2), "cuda")
    assert on_gpu == Load(target=16, ongoing=32, queued=256, cpus=1, gpus=1)


def test_replicas_without_ray_and_ray_that_is_not_installed_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", "run", "--replicas", "2"]) == 2
    assert "--replicas counts processes on Ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    for module in [name for name in sys.modules if name.startswith("vitesse.serve.ray.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "vitesse.ray_cluster", raising=False)
    assert main(["serve", "run", "--ray"]) == 3
    assert "pip install 'vitesse[ray]'" in capsys.readouterr().err
