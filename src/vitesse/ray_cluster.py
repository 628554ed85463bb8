"""Joins a Ray cluster, or starts one on this machine for as long as it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from vitesse.environment import usable_cores
from vitesse.errors import MissingExtra

MIB = 2**20


@dataclass(frozen=True)
class Cluster:
    """The cluster that this process is connected to; `own`: it was started for this process and ends with it."""

    address: str
    own: bool


@contextmanager
def joined(cpus: int, store_bytes: int) -> Iterator[Cluster]:
    """Connect to the cluster that $RAY_ADDRESS names, else to one that runs on this machine, else start one.

    A connection that this process has already is used and left open.

    Args:
        cpus: what an own cluster lets Ray plan with, at least the usable cores. They are promises, not cores: Ray
            starts what fits into them and binds nothing.
        store_bytes: shared memory of an own cluster's object store.

    Raises:
        MissingExtra: $RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield Cluster(ray.get_runtime_context().gcs_address, own=False)
        return
    own = not _connected()
    if own:
        # What a user starts with one command reports to nobody, unless they say so.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=max(cpus, usable_cores()),
            include_dashboard=False,
            object_store_memory=store_bytes,
        )
    try:
        yield Cluster(ray.get_runtime_context().gcs_address, own)
    finally:
        ray.shutdown()


def _connected() -> bool:
    """Connect to a cluster that is there; False where there is none and none was named."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return False
    try:
        ray.init(address="auto")
    except ConnectionError as error:
        if not named:
            return False
        raise MissingExtra(
            f"no Ray cluster answers at {named}: {error}",
            expected="a running cluster, as $RAY_ADDRESS names one",
            cause="it has ended, or its port cannot be reached from here",
            fix="ray start --head there, or unset RAY_ADDRESS to start a cluster on this machine",
        ) from error
    return True
