"""How many workers a server starts with, and how large its batches are, where nobody says."""

from __future__ import annotations

from dataclasses import dataclass

from vitesse.backends import GPUS, targets
from vitesse.environment import usable_cores
from vitesse.errors import VitesseError
from vitesse.run import Run
from vitesse.tuning import Setting, device_name, load_tuning

# A GPU whose run was not tuned: a batch of 8 keeps most of them busy, and 2 ms is little beside its run.
_GPU_ITEMS, _GPU_WAIT_S = 8, 0.002


@dataclass(frozen=True)
class PoolSettings:
    """How a pool and its engine are made.

    Args:
        workers: sessions. max_items: of a batch. max_wait_s: for company.
        threads: CPU threads of one session; 0 = the runtime's default.
        cuda_graph: for `LoadOptions`, as it was measured.
        why: where they come from, in words.
    """

    workers: int
    max_items: int
    max_wait_s: float
    threads: int
    cuda_graph: bool = True
    why: str = ""


def settings_for(run: Run, target: str, *, artifact_sha256: str = "", device: int = 0) -> PoolSettings:
    """Return how to serve a run on a target.

    On a CPU that is a session with one thread for each usable core, without batches: a batch multiplies the latency
    there and gains nothing (docs/serving.md). On a GPU it is what `vitesse tune` found for most images per second, if
    that was measured with this artifact on this GPU, else one session and batches of up to 8.

    Args:
        target: as on the command line.
        artifact_sha256: of the file that is served; "" = the one that the run has chosen.
        device: the number of the GPU.

    Raises:
        UsageError: unknown target.
        RunFolderError: the run has chosen nothing.
    """
    targets(target)
    if target not in GPUS:
        return PoolSettings(usable_cores(), 1, 0.0, 1, why="one session with one thread for each usable core")
    sha256 = artifact_sha256 or run.artifact.sha256
    reasons: list[str] = []
    setting = _tuned(run, target, sha256, device, reasons)
    if setting is None:
        why = f"the default of a GPU: {'; '.join(reasons)}"
        return PoolSettings(1, _GPU_ITEMS, _GPU_WAIT_S, 0, why=why)
    return PoolSettings(
        workers=setting.streams,
        max_items=setting.batch,
        max_wait_s=_GPU_WAIT_S if setting.batch > 1 else 0.0,
        threads=setting.threads,
        cuda_graph=setting.cuda_graph is not False,
        why=f"`vitesse tune` measured it for most images per second on this GPU ({setting.verdict or 'not watched'})",
    )


def _tuned(run: Run, target: str, sha256: str, device: int, reasons: list[str]) -> Setting | None:
    """Return the tuned setting that holds here, or None and add the reason."""
    try:
        name = device_name(device)
    except (VitesseError, ImportError) as error:
        reasons.append(f"the GPU's name cannot be read: {error}")
        return None
    found = load_tuning(run.folder, target, name, artifact_sha256=sha256, on_stale=reasons.append)
    if found is not None and found.throughput is None:
        reasons.append("tuned, and nothing measured kept the limits")
    return None if found is None else found.throughput
