"""The release state: every way from candidate to live and back, on disk and in the face of damage."""

import errno
import threading
from pathlib import Path

import pytest

from vitesse.errors import RunFolderError, StorageError, UsageError
from vitesse.serve.releases.state import EVENTS_KEPT, Opening, Phase, Release, ReleaseState, StateFile

TWO = ReleaseState((Release("fuse-1", "a" * 64, Phase.LIVE), Release("int8-2", "b" * 64, Phase.CANDIDATE)))


def phases(state: ReleaseState) -> dict[str, str]:
    return {release.name: release.phase.value for release in state.releases}


def test_a_promotion_makes_the_live_release_the_previous_one() -> None:
    state = TWO.promoted("int8-2", 5.0, "faster")
    assert phases(state) == {"fuse-1": "previous", "int8-2": "live"}
    assert (state.events[-1].what, state.events[-1].why, state.events[-1].at) == ("promoted", "faster", 5.0)


def test_a_rollback_of_the_live_release_brings_the_previous_one_back() -> None:
    state = TWO.promoted("int8-2", 5.0, "faster").withdrawn(6.0, "wrong boxes")
    assert phases(state) == {"fuse-1": "live", "int8-2": "rejected"}
    assert [event.what for event in state.events[-2:]] == ["rolled back", "live again"]


def test_a_rollback_takes_the_canary_first_and_leaves_the_live_release() -> None:
    state = TWO.with_canary("int8-2", 0.1, False, 5.0, "try")
    assert state.canary is not None and state.canary.share == 0.1
    assert phases(state.withdrawn(6.0, "slow")) == {"fuse-1": "live", "int8-2": "rejected"}


def test_without_a_previous_release_the_reference_answers_and_then_there_is_nothing_to_roll_back() -> None:
    state = TWO.withdrawn(6.0, "wrong")
    assert state.live is None
    with pytest.raises(UsageError, match="the reference answers already"):
        state.withdrawn(7.0, "again")


def test_only_one_release_is_a_canary() -> None:
    state = TWO.with_candidate("fp16-3", "c" * 64, 1.0, "new").with_canary("int8-2", 0.1, False, 2.0, "")
    assert phases(state.with_canary("fp16-3", 1.0, True, 3.0, ""))["int8-2"] == "candidate"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_of_the_traffic_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="above 0, at most 1"):
        TWO.with_canary("int8-2", share, False, 1.0, "")


def test_an_unknown_release_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="one of: fuse-1, int8-2"):
        TWO.promoted("int4", 1.0, "")


def test_promoting_the_live_release_closes_its_breaker() -> None:
    opened = TWO.with_breaker("fuse-1", Opening(9.0, 30.0, "error", "5 in a row"))
    assert opened.promoted("fuse-1", 5.0, "mended").breakers == {}


def test_old_events_are_forgotten() -> None:
    state = TWO
    for number in range(EVENTS_KEPT + 5):
        state = state.with_event(float(number), "fuse-1", "noted", "")
    assert len(state.events) == EVENTS_KEPT
    assert state.events[-1].at == EVENTS_KEPT + 4


def test_the_state_survives_being_written_and_read(tmp_path: Path) -> None:
    wanted = TWO.with_canary("int8-2", 0.25, True, 5.0, "try").with_breaker(
        "fuse-1", Opening(1e9, 60.0, "slow", "p95")
    )
    StateFile(tmp_path).update(lambda _: wanted)
    assert StateFile(tmp_path).read() == wanted


def test_a_change_by_another_process_is_seen_and_not_lost(tmp_path: Path) -> None:
    mine, other = StateFile(tmp_path), StateFile(tmp_path)
    mine.update(lambda _: TWO)
    assert not mine.changed()
    other.update(lambda state: state.with_candidate("fp16-3", "c" * 64, 1.0, "new"))
    assert mine.changed()
    both = mine.update(lambda state: state.promoted("int8-2", 2.0, "faster"))
    assert phases(both) == {"fuse-1": "previous", "fp16-3": "candidate", "int8-2": "live"}
    assert not mine.changed()


def test_changes_from_many_threads_all_arrive(tmp_path: Path) -> None:
    def add(number: int) -> None:
        file = StateFile(tmp_path)
        for _ in range(5):
            file.update(lambda state: state.with_event(1.0, f"r{number}", "noted", ""))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = StateFile(tmp_path).read()
    assert found is not None and len(found.events) == 20


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "releases": [{"name": "a"}], "events": [], "breakers": {}}',
     '{"schema": 1, "releases": [{"name": "a", "sha256": "", "phase": "best"}], "events": [], "breakers": {}}'],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_way_out_and_kept_when_it_is_replaced(
    tmp_path: Path, content: str
) -> None:
    file = StateFile(tmp_path)
    file.path.write_text(content)
    with pytest.raises(RunFolderError, match=r"until then the reference answers"):
        file.read()
    assert file.update(lambda state: state, lambda: TWO) == TWO
    assert (tmp_path / "serving.json.damaged").read_text() == content
    assert file.read() == TWO


def test_a_refused_change_and_a_full_disk_leave_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(tmp_path)
    file.update(lambda _: TWO)
    with pytest.raises(UsageError):
        file.update(lambda state: state.promoted("absent", 1.0, ""))

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        file.update(lambda state: state.promoted("int8-2", 1.0, ""))
    monkeypatch.undo()
    assert file.read() == TWO
