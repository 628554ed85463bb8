"""What a client may ask about the server and its model; every function returns a JSON document.

Fields and units as in the protocol and in Triton's extensions for configuration, statistics and the repository: times
there are whole nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitesse.backends.protocol import TensorInfo
from vitesse.serve.protocol.signature import Signature
from vitesse.serve.protocol.tensors import datatype_of

_EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "model_repository")


@dataclass(frozen=True)
class Spent:
    """How often something was done since the start, and the seconds it took in all."""

    count: int = 0
    seconds: float = 0.0

    def document(self) -> dict[str, int]:
        """Return it as the protocol's statistics have it."""
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass(frozen=True)
class Counters:
    """What a model did since the server's start.

    Args:
        inferences: items answered; executions: runs of the model, so that their ratio is the mean batch.
        last_inference: seconds since 1970, 0 where there was none.
        success, fail: requests, from arrival to answer.
        queue: requests, waiting for a worker; compute_input, compute_output: reading and writing tensors;
            compute_infer: running.
        batches: items that ran together → runs of that size.
    """

    inferences: int = 0
    executions: int = 0
    last_inference: float = 0.0
    success: Spent = Spent()
    fail: Spent = Spent()
    queue: Spent = Spent()
    compute_input: Spent = Spent()
    compute_infer: Spent = Spent()
    compute_output: Spent = Spent()
    batches: Mapping[int, Spent] = field(default_factory=dict)


def server_metadata(version: str) -> dict[str, Any]:
    """Answer `GET v2`; `version` is that of Vitesse."""
    return {"name": "vitesse", "version": version, "extensions": list(_EXTENSIONS)}


def model_metadata(signature: Signature, versions: Iterable[str] = ()) -> dict[str, Any]:
    """Answer `GET v2/models/{name}`: shapes with the batch, -1 for free dimensions."""
    return {
        "name": signature.name,
        "versions": list(versions) or [signature.version],
        "platform": signature.platform,
        "inputs": [_tensor(info) for info in signature.inputs],
        "outputs": [_tensor(info) for info in signature.outputs],
    }


def model_config(
    signature: Signature, *, max_wait_s: float = 0.0, workers: int = 1, gpu: bool = False
) -> dict[str, Any]:
    """Answer `GET v2/models/{name}/config`.

    `max_batch_size` counts only where the batch is free in every tensor, and `dims` then leave it out; else it is 0.
    """
    tensors = signature.inputs + signature.outputs
    free = all(info.shape and isinstance(info.shape[0], str) for info in tensors)
    config: dict[str, Any] = {
        "name": signature.name,
        "platform": signature.platform,
        "backend": signature.platform.partition("_")[0],
        "version_policy": {"specific": {"versions": [signature.version]}},
        "max_batch_size": signature.max_batch if free else 0,
        "input": [_configured(info, free) for info in signature.inputs],
        "output": [_configured(info, free) for info in signature.outputs],
        "instance_group": [
            {"name": signature.name, "kind": "KIND_GPU" if gpu else "KIND_CPU", "count": workers}
        ],
    }
    if free and signature.max_batch > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": [signature.max_batch],
            "max_queue_delay_microseconds": round(max_wait_s * 1e6),
        }
    return config


def statistics(
    signature: Signature, counters: Counters, release: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Answer `GET v2/models/{name}/stats`; `release` is Vitesse's own: which variant answers, and why."""
    spent = {
        "success": counters.success,
        "fail": counters.fail,
        "queue": counters.queue,
        "compute_input": counters.compute_input,
        "compute_infer": counters.compute_infer,
        "compute_output": counters.compute_output,
        # Nothing is cached; clients read the fields all the same.
        "cache_hit": Spent(),
        "cache_miss": Spent(),
    }
    entry: dict[str, Any] = {
        "name": signature.name,
        "version": signature.version,
        "last_inference": round(counters.last_inference * 1e3),
        "inference_count": counters.inferences,
        "execution_count": counters.executions,
        "inference_stats": {name: value.document() for name, value in spent.items()},
        "batch_stats": [
            {"batch_size": size, "compute_infer": value.document()}
            for size, value in sorted(counters.batches.items())
        ],
    }
    if release is not None:
        entry["release"] = dict(release)
    return {"model_stats": [entry]}


def repository_index(
    signature: Signature, *, ready: bool, reason: str = "", only_ready: bool = False
) -> list[dict[str, str]]:
    """Answer `POST v2/repository/index`; `reason` says why the model is not ready, `only_ready` leaves it out then."""
    if only_ready and not ready:
        return []
    state = "READY" if ready else "UNAVAILABLE"
    return [{"name": signature.name, "version": signature.version, "state": state, "reason": reason}]


def _tensor(info: TensorInfo) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in info.shape]
    return {"name": info.name, "datatype": datatype_of(info.dtype), "shape": shape}


def _configured(info: TensorInfo, without_batch: bool) -> dict[str, Any]:
    tensor = _tensor(info)
    kind = tensor["datatype"]
    return {
        "name": info.name,
        "data_type": "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}",
        "dims": tensor["shape"][1:] if without_batch else tensor["shape"],
    }
