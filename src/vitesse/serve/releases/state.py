"""Which release is where on its way: candidate → canary → live → previous, or rejected; RUN/serving.json.

Values in, values out: a change makes a new state. `StateFile` is the only one that writes, under a lock, because the
server rolls back in the moment in which somebody promotes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from vitesse.errors import RunFolderError, UsageError
from vitesse.storage import storage_error, write_atomically

FILE = "serving.json"
SCHEMA = 1
REFERENCE = "reference"
EVENTS_KEPT = 200


class Phase(StrEnum):
    """Where a release is on its way."""

    CANDIDATE = "candidate"  # known, gets no traffic
    CANARY = "canary"  # gets a share of the traffic, or copies of it
    LIVE = "live"  # gets the rest; at most one
    PREVIOUS = "previous"  # was live before; what a rollback goes back to
    REJECTED = "rejected"  # was rolled back; a promotion by hand can bring it back


@dataclass(frozen=True)
class Release:
    """One artifact of the run.

    Args:
        name: STAGE-HASH; "reference" is the original model's and never stands here.
        sha256: of the artifact's file.
        share: of the traffic that a canary gets, or copies of it when `shadow`, in 0..1.
    """

    name: str
    sha256: str
    phase: Phase
    share: float = 0.0
    shadow: bool = False


@dataclass(frozen=True)
class Event:
    """What happened to a release, when (seconds since 1970) and why."""

    at: float
    release: str
    what: str
    why: str


@dataclass(frozen=True)
class Opening:
    """A breaker that was open when it was written; it is closed where there is none.

    Args:
        until: end of the cool-down in seconds since 1970; cool_down_s: how long that was.
        kind, why: what opened it.
    """

    until: float
    cool_down_s: float
    kind: str
    why: str


@dataclass(frozen=True)
class ReleaseState:
    """All releases of a run; without any, the reference answers everything."""

    releases: tuple[Release, ...] = ()
    events: tuple[Event, ...] = ()
    breakers: Mapping[str, Opening] = field(default_factory=dict)

    def named(self, name: str) -> Release | None:
        """Return the release of that name, None where there is none."""
        return next((release for release in self.releases if release.name == name), None)

    def in_phase(self, phase: Phase) -> Release | None:
        """Return the latest release in a phase, None where there is none."""
        return next((release for release in reversed(self.releases) if release.phase is phase), None)

    # Asked for each request, and a state never changes.
    @cached_property
    def live(self) -> Release | None:
        """The release that answers; None: the reference does."""
        return self.in_phase(Phase.LIVE)

    @cached_property
    def canary(self) -> Release | None:
        """The release that is being tried."""
        return self.in_phase(Phase.CANARY)

    def with_event(self, at: float, release: str, what: str, why: str) -> ReleaseState:
        """Append an event; the oldest are forgotten."""
        return replace(self, events=(*self.events, Event(at, release, what, why))[-EVENTS_KEPT:])

    def with_candidate(self, name: str, sha256: str, at: float, why: str) -> ReleaseState:
        """Add a release that gets no traffic yet; a known name stays as it is."""
        if self.named(name) is not None:
            return self
        added = replace(self, releases=(*self.releases, Release(name, sha256, Phase.CANDIDATE)))
        return added.with_event(at, name, "candidate", why)

    def with_canary(self, name: str, share: float, shadow: bool, at: float, why: str) -> ReleaseState:
        """Give a release a share of the traffic; another canary becomes a candidate again.

        Raises:
            UsageError: unknown or live already, or a share outside of 0..1.
        """
        if not 0 < share <= 1:
            raise UsageError(
                f"a share of {share:g} for {name}", expected="above 0, at most 1", fix="--share 0.1"
            )
        if self._known(name).phase is Phase.LIVE:
            raise UsageError(
                f"{name} is live already", expected="a release that is not live", fix="see `release status`"
            )
        changed = self._moved({Phase.CANARY: Phase.CANDIDATE}, name, Phase.CANARY, share, shadow)
        how = f"copies of {share:.0%} of the requests" if shadow else f"{share:.0%} of the requests"
        return changed.with_event(at, name, "canary", f"{how}; {why}")

    def promoted(self, name: str, at: float, why: str) -> ReleaseState:
        """Make a release live; the live one becomes the previous one, whose place it takes.

        Raises:
            UsageError: no release of that name.
        """
        if self._known(name).phase is Phase.LIVE:  # after its breaker opened, this is how a person closes it
            closed = {key: value for key, value in self.breakers.items() if key != name}
            return replace(self, breakers=closed).with_event(at, name, "breaker closed", why)
        down = {Phase.PREVIOUS: Phase.CANDIDATE, Phase.LIVE: Phase.PREVIOUS}
        return self._moved(down, name, Phase.LIVE).with_event(at, name, "promoted", why)

    def withdrawn(self, at: float, why: str, name: str = "") -> ReleaseState:
        """Roll back `name`; without one the canary where there is one, else the live release. The previous one follows.

        Raises:
            UsageError: neither; the reference answers already.
        """
        going = self._known(name) if name else self.canary or self.live
        if going is None:
            raise UsageError(
                "there is nothing to roll back: the reference answers already", expected="a live release"
            )
        previous = self.in_phase(Phase.PREVIOUS) if going.phase is Phase.LIVE else None
        changed = self._moved({}, going.name, Phase.REJECTED).with_event(at, going.name, "rolled back", why)
        if previous is None:
            return changed
        back = changed._moved({}, previous.name, Phase.LIVE)
        return back.with_event(at, previous.name, "live again", f"{going.name} was rolled back")

    def with_breaker(self, name: str, opening: Opening | None) -> ReleaseState:
        """Keep that a breaker is open, or with None that it is closed."""
        others = {key: value for key, value in self.breakers.items() if key != name}
        return replace(self, breakers=others if opening is None else {**others, name: opening})

    def _known(self, name: str) -> Release:
        found = self.named(name)
        if found is None:
            known = (
                ", ".join(release.name for release in self.releases) or "none: the run has chosen no artifact"
            )
            raise UsageError(f"the run has no release {name!r}", expected=f"one of: {known}")
        return found

    def _moved(
        self, others: Mapping[Phase, Phase], name: str, phase: Phase, share: float = 0.0, shadow: bool = False
    ) -> ReleaseState:
        """Put one release into a phase, last in the order, and the others where `others` says; its breaker closes."""
        moved = replace(self._known(name), phase=phase, share=share, shadow=shadow)
        rest = tuple(
            replace(one, phase=others[one.phase], share=0.0, shadow=False) if one.phase in others else one
            for one in self.releases
            if one.name != name
        )
        breakers = {key: value for key, value in self.breakers.items() if key != name}
        return replace(self, releases=(*rest, moved), breakers=breakers)


class StateFile:
    """RUN/serving.json: read by the server when it changes, changed by the server and by `vitesse release`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> ReleaseState | None:
        """Return the state, None where the run has none yet.

        Raises:
            RunFolderError: it is damaged; the server then lets the reference answer.
        """
        self._seen = self._stamp()
        try:
            return _state_from(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFolderError(
                f"cannot read {self.path}: {error}",
                expected=f"JSON of schema {SCHEMA}, as the server writes it",
                cause="the file was edited, cut off, or written by another version",
                fix=f"vitesse release promote {self.path.parent}: begins anew, with the chosen artifact live; "
                "until then the reference answers",
            ) from error

    def changed(self) -> bool:
        """Say whether the file is another one than at the last `read` or `update`; costs one stat."""
        return self._stamp() != self._seen

    def update(
        self, change: Callable[[ReleaseState], ReleaseState], begin: Callable[[], ReleaseState] = ReleaseState
    ) -> ReleaseState:
        """Read, change and write under a lock, so that no change of another process is lost.

        Args:
            change: makes the new state; what it raises leaves the file as it was.
            begin: the state where there is no file, or a damaged one, which is kept as serving.json.damaged.

        Raises:
            StorageError: it cannot be written; the old file stays.
        """
        with self._locked():
            try:
                state = self.read()
            except RunFolderError:
                state = None
                new = change(begin())
                with suppress(OSError):
                    self.path.replace(self.path.with_name(f"{FILE}.damaged"))
            else:
                new = change(begin() if state is None else state)
            if new != state:
                content = json.dumps({"schema": SCHEMA, **asdict(new)}, indent=1, allow_nan=False) + "\n"
                write_atomically(self.path, content.encode())
            self._seen = self._stamp()
        return new

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own: the state's is replaced at each write, and a lock would stay on the one that is gone.
        path = self.path.with_name(f".{FILE}.lock")
        try:
            stream = path.open("wb")
        except OSError as error:
            raise storage_error(path, error) from error
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116, which would make a new Path at each request
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _state_from(raw: Mapping[str, Any]) -> ReleaseState:
    if raw["schema"] != SCHEMA:
        raise ValueError(f"schema {raw['schema']!r}, this version reads {SCHEMA}")
    releases = tuple(Release(**{**one, "phase": Phase(one["phase"])}) for one in raw["releases"])
    if sum(one.phase is Phase.LIVE for one in releases) > 1 or any(
        not 0 <= one.share <= 1 for one in releases
    ):
        raise ValueError("two live releases, or a share outside of 0..1")
    return ReleaseState(
        releases,
        tuple(Event(**one) for one in raw["events"]),
        {name: Opening(**one) for name, one in raw["breakers"].items()},
    )
