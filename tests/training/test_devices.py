"""Two processes train what one does; devices that are not there are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning-fabric: pip install 'vitesse[compress]'")

from training.toys import OPTIONS, Classify, Noise, quiet_score, trained  # noqa: E402
from vitesse.errors import DataError, MissingExtra, UsageError, VitesseError  # noqa: E402
from vitesse.training import devices  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402
from vitesse.training.devices import open_fabric  # noqa: E402

TWO = replace(OPTIONS, devices=2)


def plain() -> Any:
    """A network that treats every image alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )


def test_two_processes_train_what_one_does_with_the_same_batch(tmp_path: Path) -> None:
    one, expected = trained(tmp_path / "one", task=Classify(plain()), score=quiet_score)
    two, found = trained(tmp_path / "two", TWO, task=Classify(plain()), score=quiet_score)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    assert (two.steps, one.batch, two.batch) == (12, 4, 2)
    for ours, theirs in zip(two.history, one.history, strict=True):
        for name in theirs.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_one_process_that_does_not_see_the_others_images_would_be_found_out(tmp_path: Path) -> None:
    _, expected = trained(tmp_path / "one", task=Classify(plain()))
    half = Classify(plain(), before=lambda batch: 0.0 if torch.distributed.get_rank() else None)
    _, found = trained(tmp_path / "two", TWO, task=half)
    assert not all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def test_a_process_out_of_memory_splits_its_share_while_the_other_does_not(tmp_path: Path) -> None:
    def before(batch: Batch) -> None:
        if torch.distributed.get_rank() == 1 and len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    _, expected = trained(tmp_path / "one", task=Classify(plain()))
    _, found = trained(tmp_path / "two", TWO, task=Classify(plain(), before=before))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_of_two_processes_goes_on_with_one(tmp_path: Path) -> None:
    trained(tmp_path, TWO, task=Classify(plain()))
    finished, _ = trained(tmp_path, task=Classify(plain()))
    assert finished.steps == 12


def test_the_error_of_a_process_is_quoted(tmp_path: Path) -> None:
    def before(batch: Batch) -> None:
        raise DataError("a label is missing", fix="add it")

    with pytest.raises(VitesseError, match=r"process \d of 2 failed: .*DataError: a label is missing"):
        trained(tmp_path, TWO, task=Classify(plain(), before=before))


def test_fewer_images_than_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 images to train with on 2 devices"):
        trained(tmp_path, TWO, data=Noise(images=1))


def test_cuda_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cuda_devices", lambda: 0)
    with pytest.raises(MissingExtra, match="no CUDA device is here"):
        open_fabric(replace(OPTIONS, accelerator="cuda"))


def test_more_devices_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cuda_devices", lambda: 1)
    with pytest.raises(UsageError, match="2 devices are asked for, 1 are here"):
        open_fabric(replace(OPTIONS, accelerator="cuda", devices=2))


def test_several_gpus_need_a_process_that_has_not_used_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cuda_devices", lambda: 2)
    monkeypatch.setattr(devices, "_cuda_was_used", lambda: True)
    with pytest.raises(UsageError, match="CUDA was used in this process before the training"):
        open_fabric(replace(OPTIONS, accelerator="cuda", devices=2))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_number_format_is_the_one_that_was_asked_for(precision: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    student = plain()
    student[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trained(tmp_path, replace(OPTIONS, precision=precision, steps=1), task=Classify(student))
    assert seen == [torch.float32 if precision == "32-true" else torch.bfloat16]
    assert all(one.dtype == torch.float32 for one in student.parameters())


def test_auto_computes_in_float32_on_a_processor() -> None:
    assert open_fabric(OPTIONS).strategy.precision.precision == "32-true"


def test_a_checkpoint_of_another_number_format_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, task=Classify(plain()))
    with pytest.raises(UsageError, match="precision: 32-true there, bf16-mixed here"):
        trained(tmp_path, replace(OPTIONS, precision="bf16-mixed"), task=Classify(plain()))
