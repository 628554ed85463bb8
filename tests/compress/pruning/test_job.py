from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
pytest.importorskip("torch_pruning", reason="needs torch_pruning: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning_fabric: pip install 'vitesse[compress]'")

from compress.pruning.pruned_networks import network  # noqa: E402
from vitesse.cli import prune as command  # noqa: E402
from vitesse.compress.distillation.options import DistilOptions  # noqa: E402
from vitesse.compress.pruning.job import _learning, prune_to  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.sources.trainable import open_trainable, save_trainable  # noqa: E402
from vitesse.training.options import TrainOptions  # noqa: E402


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add(parser)
    return parser.parse_args(given)


def test_the_command_writes_a_smaller_network_and_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_trainable(network("token"), tmp_path / "model"), tmp_path / "out"
    asked = options(str(model), "--flops", "0.7", "--method", "l1", "--multiple", "4", "--out", str(out))
    assert command.run(asked) == 0
    told = capsys.readouterr().out
    assert "not fine-tuned" in told and f"next: vitesse optimize {out}" in told
    record = json.loads((out / "pruning.json").read_text())
    assert 0.68 < record["flops"][1] / record["flops"][0] <= 0.7
    pruned = open_trainable(out)
    assert sum(weight.numel() for weight in pruned.module.parameters()) == record["parameters"][1]


def test_taylor_scores_without_images_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = save_trainable(network("token"), tmp_path / "model")
    job = command.asked(options(str(model), "--flops", "0.7", "--out", str(tmp_path / "out")))
    with pytest.raises(UsageError, match="no training images") as caught:
        prune_to(tmp_path / "out", job)
    assert "--method l1" in caught.value.fix and not (tmp_path / "out").exists()


def test_norms_learn_again_where_a_device_sees_enough_images_at_once() -> None:
    assert not _learning(DistilOptions(TrainOptions(steps=1, batch=15))).live_norms
    assert _learning(DistilOptions(TrainOptions(steps=1, batch=16))).live_norms
    assert not _learning(DistilOptions(TrainOptions(steps=1, batch=16, devices=2))).live_norms
