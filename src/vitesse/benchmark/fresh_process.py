"""What a fresh process pays: load time, first call, peak memory.

A process of its own, because memory already freed or shared, warm caches and loaded libraries of the
measuring process would flatter the figures. Run as `python -m vitesse.benchmark.fresh_process REQUEST ANSWER`
it is that process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitesse.artifact import Artifact, Provenance
from vitesse.backends import backend
from vitesse.backends.protocol import LoadOptions, Tensors
from vitesse.errors import VitesseError
from vitesse.spec import spec_from_mapping


@dataclass(frozen=True)
class FreshProcess:
    """Figures of one fresh process; all None when it failed, and `unmeasured` says why.

    import_ms: importing the runtime. load_ms: file → engine and session (file cache warm or not, as it
    comes).
    cold_start_ms: the first call. memory_mb: peak resident memory in MB (1e6 bytes) after all calls,
    libraries included. base_mb: the same before loading the model, so that memory_mb − base_mb is the model's
    share.
    """

    import_ms: float | None = None
    load_ms: float | None = None
    cold_start_ms: float | None = None
    memory_mb: float | None = None
    base_mb: float | None = None
    calls: int = 0
    unmeasured: str = ""


def fresh_process(
    artifact: Artifact,
    feeds: Sequence[Tensors],
    options: LoadOptions | None = None,
    *,
    timeout_s: float = 300.0,
) -> FreshProcess:
    """Load `artifact` in a new process and run it once on each of `feeds`; never raises for what happens
    there.

    A crash, an error or a timeout gives a FreshProcess without figures whose `unmeasured` has the reason.
    """
    with tempfile.TemporaryDirectory(prefix="vitesse-") as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        for index, one in enumerate(feeds):
            np.savez(Path(folder) / f"{index}.npz", allow_pickle=False, **dict(one))
        asked = {
            "backend": artifact.backend,
            "path": str(artifact.path.resolve()),
            "spec": json.loads(artifact.spec.to_json()),
            "options": asdict(options or LoadOptions()),
            "feeds": [str(Path(folder) / f"{index}.npz") for index in range(len(feeds))],
        }
        request.write_text(json.dumps(asked))
        command = [sys.executable, "-m", "vitesse.benchmark.fresh_process", str(request), str(answer)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return FreshProcess(unmeasured=f"the fresh process did not finish within {timeout_s:g} s")
        if done.returncode != 0:
            return FreshProcess(unmeasured=f"the fresh process {_ending(done.returncode, done.stderr)}")
        return FreshProcess(**json.loads(answer.read_text()))


def _ending(code: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (often the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}; last line: {last}"
    return f"ended with exit code {code}: {last}"


def _peak_mb() -> float | None:
    """Peak resident memory of this process in MB.

    From VmHWM, which starts afresh with the program; `ru_maxrss` would include the parent's size at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return kilobytes * 1024 / 1e6
    except (OSError, StopIteration):
        return None


def _measure(asked: dict[str, Any]) -> FreshProcess:
    began = time.perf_counter_ns()
    runtime = backend(asked["backend"])
    imported = time.perf_counter_ns()
    base = _peak_mb()
    path = Path(asked["path"])
    spec = spec_from_mapping(asked["spec"])
    artifact = Artifact(path, "", path.stat().st_size, spec, Provenance("measured"), asked["backend"])
    loading = time.perf_counter_ns()
    with runtime.load(artifact, LoadOptions(**asked["options"])) as engine, engine.session() as session:
        loaded = time.perf_counter_ns()
        first = None
        for file in asked["feeds"]:
            with np.load(file, allow_pickle=False) as stored:
                outcome = session.run({name: stored[name] for name in stored.files})
            first = outcome.host_ms if first is None else first
        return FreshProcess(
            (imported - began) / 1e6, (loaded - loading) / 1e6, first, _peak_mb(), base, len(asked["feeds"])
        )


def main(arguments: Sequence[str]) -> None:
    """Answer the request in the first file with JSON in the second; an error is an answer, too."""
    request, answer = arguments
    try:
        measured = _measure(json.loads(Path(request).read_text()))
    except Exception as error:
        said = error.what if isinstance(error, VitesseError) else f"{type(error).__name__}: {error}"
        measured = FreshProcess(unmeasured=f"the fresh process failed: {said}")
    Path(answer).write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(sys.argv[1:])
    # Some runtimes crash while unloading; the figures are written, and an exit here says that they are whole.
    os._exit(0)
