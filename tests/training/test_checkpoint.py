"""Checkpoints are whole or not there, and belong to one training."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")

from vitesse.errors import RunFolderError, StorageError, UsageError  # noqa: E402
from vitesse.training.checkpoint import Best, Checkpoints, described, identity_of  # noqa: E402
from vitesse.training.options import TrainOptions  # noqa: E402

OPTIONS = TrainOptions(steps=5)


def test_what_was_saved_is_read_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"rate": 0.1})
    assert checkpoints.latest() is None and checkpoints.best() is None
    for step in (1, 2, 10):
        checkpoints.save(step, {"weights": torch.full((2,), float(step))})
    state = checkpoints.latest()
    assert state is not None and state["step"] == 10 and state["weights"].tolist() == [10.0, 10.0]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_best_weights_are_kept_with_their_step_and_score(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save_best(Best(3, 81.5), {"w": torch.ones(2)})
    checkpoints.save(4, {})
    checkpoints.save(5, {})
    checkpoints.save(6, {})
    found = checkpoints.best()
    assert found is not None and found[0] == Best(3, 81.5) and torch.equal(found[1]["w"], torch.ones(2))


def test_a_failed_write_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        checkpoints.save(2, {})
    state = checkpoints.latest()
    assert state is not None and state["step"] == 1


def test_checkpoints_that_are_all_damaged_are_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    for step in (1, 2):
        checkpoints.save(step, {"weights": torch.ones(100)})
    for number, path in enumerate((tmp_path / "checkpoints").iterdir()):
        path.write_bytes(b"" if number else path.read_bytes()[:300])
    with pytest.raises(RunFolderError, match="none of the 2 checkpoints") as refused:
        checkpoints.latest()
    assert "to begin again" in str(refused.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harmed",)  # type: ignore[return-value]

    (tmp_path / "checkpoints").mkdir()
    torch.save({"identity": {}, "harm": Harm()}, tmp_path / "checkpoints" / "step-000000001.pt")
    with pytest.raises(RunFolderError):
        Checkpoints(tmp_path, {}).latest()
    assert not (tmp_path / "harmed").exists()


def test_what_differs_is_named_on_both_sides(tmp_path: Path) -> None:
    Checkpoints(tmp_path, {"rate": 0.1, "steps": 5, "gone": 1}).save(1, {})
    with pytest.raises(UsageError) as refused:
        Checkpoints(tmp_path, {"rate": 0.2, "steps": 5, "new": "x"}).latest()
    text = str(refused.value)
    assert "rate: 0.1 there, 0.2 here; new: nothing there, x here; gone: 1 there, nothing here" in text
    assert "steps" not in text.partition("\n")[0]


def test_a_weight_a_name_and_a_shape_make_another_model() -> None:
    def layer(value: float = 0.5, columns: int = 4) -> torch.nn.Module:
        return (
            torch.nn.utils.skip_init(torch.nn.Linear, columns, 8 // columns, bias=False)
            .requires_grad_(False)
            .apply(lambda one: one.weight.fill_(value))
        )

    first = described(layer())
    assert first == described(layer()) and first.startswith("8 weights, sha256 ")
    others = (layer(0.25), layer(columns=2), torch.nn.Sequential(layer()))
    assert len({first, *map(described, others)}) == 4


def test_how_and_where_it_is_computed_does_not_make_another_training() -> None:
    student = torch.nn.Linear(1, 1)
    first = identity_of(OPTIONS, student, [], 8, {})
    elsewhere = TrainOptions(steps=5, devices=2, accelerator="cpu", checkpoint_seconds=1)
    assert identity_of(elsewhere, student, [], 8, {}) == first
    assert identity_of(TrainOptions(steps=6), student, [], 8, {}) != first
