"""`vitesse release`: which artifact of a run answers, and the way back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.errors import UsageError

if TYPE_CHECKING:
    from vitesse.serve.releases.state import ReleaseState

EVENTS_SHOWN = 10


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("action", choices=("status", "promote", "rollback"), help="what to do")
    parser.add_argument("folder", type=Path, help="a run folder, served at this moment or not")
    parser.add_argument(
        "--release", default="", metavar="NAME", help="which one (default: the one that waits)"
    )
    parser.add_argument(
        "--share", type=float, metavar="PART", help="promote: as a canary, for this part of the traffic, 0..1"
    )
    parser.add_argument(
        "--shadow", action="store_true", help="promote: give it copies only, and compare its answers"
    )
    parser.add_argument("--why", default="by hand", help="the reason that the events name")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    import time

    from vitesse.run import open_run
    from vitesse.serve.releases.control import next_of, promotion
    from vitesse.serve.releases.of_run import initial_state, with_choice
    from vitesse.serve.releases.state import StateFile

    if options.action != "promote" and (options.share is not None or options.shadow):
        raise UsageError(
            f"--share and --shadow with {options.action}", expected="promote", fix="leave them out"
        )
    found, file, now = open_run(options.folder), StateFile(options.folder), time.time()

    def begin() -> ReleaseState:
        return initial_state(found, now)

    def change(state: ReleaseState) -> ReleaseState:
        state = with_choice(state, found, now)
        if options.action == "rollback":
            return state.withdrawn(now, options.why, options.release)
        name = options.release or next_of(state)
        return promotion(state, name, options.share, options.shadow, now, options.why)

    if options.action == "status":
        print(show(with_choice(file.read() or begin(), found, now)))
        return 0
    print(show(file.update(change, begin)))
    print("a running server takes it over within a second; requests in flight end where they are")
    return 0


def show(state: ReleaseState) -> str:
    """Return the state as lines for a terminal: releases, open breakers, the latest events."""
    import datetime

    from vitesse.serve.releases.state import Phase

    def clock(at: float) -> str:
        return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")

    lines = []
    for one in reversed(state.releases):
        more = f"  {one.share:.0%}{' in shadow' if one.shadow else ''}" if one.phase is Phase.CANARY else ""
        lines.append(f"{one.phase.value:<10} {one.name}{more}")
        opening = state.breakers.get(one.name)
        if opening is not None:
            lines.append(f"{'':<10} rolled back to the reference: {opening.why}")
            lines.append(f"{'':<10} probed again from {clock(opening.until)}")
    if state.live is None:
        lines.insert(0, f"{'live':<10} reference: no release is live, the original model answers")
    lines += [
        f"{clock(event.at)}  {event.release}  {event.what}: {event.why}"
        for event in state.events[-EVENTS_SHOWN:]
    ]
    return "\n".join(lines)
