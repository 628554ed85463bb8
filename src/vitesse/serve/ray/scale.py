"""How many replicas there are, and how much each of them and the proxy takes before it says no."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitesse.backends import GPUS
from vitesse.errors import UsageError
from vitesse.serve.settings import PoolSettings

# Requests at a replica for each image that its sessions run at once: one more waits, so that no session stands still.
_AT_WORK = 2
# As in one process: that many images may wait for each one that runs.
_WAITING = 8


@dataclass(frozen=True)
class Scale:
    """From `least` to `most` replicas; equal: no autoscaling."""

    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(
                f"{self.least} to {self.most} replicas",
                expected="at least 1, and not more at least than at most",
                fix="--replicas 4, or --replicas 2-8 to scale with the load",
            )


def parse_scale(text: str) -> Scale:
    """Return the scale that `4` or `2-8` means; raises UsageError for anything else."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if found is None:
        raise UsageError(f"--replicas {text!r}", expected="a number, or a range such as 2-8")
    return Scale(int(found[1]), int(found[2] or found[1]))


@dataclass(frozen=True)
class Load:
    """What Ray Serve sends to a replica and lets wait; counted in requests.

    Args:
        target: at a replica on average; autoscaling keeps it.
        ongoing: at a replica at most.
        queued: waiting in one proxy at most; what comes then is answered 503 with Retry-After at once.
        cpus, gpus: that Ray reserves for a replica.
    """

    target: int
    ongoing: int
    queued: int
    cpus: int
    gpus: int


def load_of(settings: PoolSettings, scale: Scale, target: str) -> Load:
    """Return the load that suits a replica with these sessions.

    Args:
        settings: of one replica. target: of the run, as on the command line.
    """
    at_once = settings.workers * settings.max_items
    gpu = target in GPUS
    cpus = 1 if gpu else settings.workers * max(1, settings.threads)
    return Load(at_once, _AT_WORK * at_once, _WAITING * at_once * scale.most, cpus, int(gpu))
