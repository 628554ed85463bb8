"""Only one process at a time has a GPU's turn."""

import fcntl
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch-cuda]'")

from vitesse.backends.torch_cuda import turns  # noqa: E402

GPU = torch.device("cuda")


def is_free(path: Path) -> bool:
    """Whether another opened file could take the lock, as another process would."""
    with path.open("w") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_turn_is_held_until_its_block_ends_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "gpu.lock"
    monkeypatch.setattr(turns, "_file_of", lambda device: lock)
    with pytest.raises(RuntimeError, match="out of memory"), turns.turn(GPU):
        assert not is_free(lock)
        with turns.turn(GPU):  # asked for again by what is called inside
            assert not is_free(lock)
        assert not is_free(lock)
        raise RuntimeError("out of memory")
    assert is_free(lock)
    with turns.turn(GPU):
        assert not is_free(lock)


def test_nobody_waits_on_the_cpu_or_where_no_file_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_file_of", lambda device: tmp_path / "no folder" / "gpu.lock")
    with turns.turn(GPU), turns.turn(torch.device("cpu")):
        pass
    assert list(tmp_path.iterdir()) == []
