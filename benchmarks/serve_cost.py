"""What the server itself costs: processor time a request, requests a second beside other servers, and beside no server.

    python benchmarks/serve_cost.py [--litserve PYTHON] [--pytriton PYTHON]   writes benchmarks/results/serve_cost.json
    python benchmarks/serve_cost.py --table                                   writes the tables of docs/serving.md

Needs wrk. PYTHON is an interpreter of an environment with litserve, python-multipart and pillow, or nvidia-pytriton. A
null model takes 1×3×224×224 float32 (602 KB) and gives three floats; all servers get the same tensor from the same
client at the same concurrency, and take turns, round by round; and then a tensor of 1×3×32×32 (12 KB), where little is
copied; LitServe also a JPEG of 640×480, which its worker decodes with Pillow. It takes each as a file of a form.
Processor time is that of the server's processes. Beside no server: ViT-Ti/16 behind the server, and the same file in
one bare session a core, in turns as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serve_process import Post, Started, free_port, ours, started, wrk
from serve_runs import SIZE, finished_run, null_model, photo, vit_ti
from serve_tables import OF_JPEG, OF_SMALL, write_page

from vitesse.benchmark.quiet import ForeignLoad
from vitesse.benchmark.throughput import throughput
from vitesse.environment import describe, usable_cores
from vitesse.run import Run
from vitesse.serve.allocator import bound_memory
from vitesse.serve.images import feeds_of, picture_of
from vitesse.serve.limits import Limits

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "serve_cost.json"
CONNECTIONS = 8
SMALL_SIDE = 32
# On a machine that others keep busy, requests would be given up that only wait, and an error is quickly answered.
PATIENT = ("--queue-s", "30")
Sample = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--litserve", default="", metavar="PYTHON")
    parser.add_argument("--pytriton", default="", metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the tables")
    given = parser.parse_args()
    if not given.table:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(given, Path(folder))
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    write_page()


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start every server, give each its turns, and return all samples."""
    null, vit = finished_run(folder / "null", null_model()), finished_run(folder / "vit_ti", vit_ti())
    small = finished_run(folder / "small" / "null", null_model(SMALL_SIDE))
    tensor = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    posts = bodies(folder, tensor, photo(folder / "photo.jpg"))
    failed: dict[str, str] = {}
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        turns: dict[str, Callable[[], Sample]] = {}
        server = start(
            stack, folder, "Vitesse", ours(null.folder, port := free_port(), *PATIENT), port, "/readyz"
        )
        for what in ("tensor", "JPEG"):
            turns[f"Vitesse, {what}"] = turn(server, posts[what], folder, given.seconds)
        tiny = start(
            stack, folder, "small", ours(small.folder, port := free_port(), *PATIENT), port, "/readyz"
        )
        turns[f"Vitesse{OF_SMALL}"] = turn(tiny, posts["small tensor"], folder, given.seconds)
        image = posts["JPEG"].body.read_bytes()
        turns["decode"] = lambda: decode_cpu(null, image, given.seconds)
        behind = start(
            stack, folder, "ViT-Ti", ours(vit.folder, port := free_port(), *PATIENT), port, "/readyz"
        )
        turns["ViT-Ti, Vitesse"] = turn(behind, posts["ViT-Ti"], folder, given.seconds)
        turns["ViT-Ti, bare"] = lambda: bare(vit, tensor, given.seconds)
        for name, command, port, ready, form, environment in peers(given):
            asked = {name: posts[form], f"{name}{OF_SMALL}": posts[f"small {form}"]}
            if form == "form":
                asked[f"{name}{OF_JPEG}"] = posts["JPEG form"]
            try:
                peer = start(stack, folder, name, command, port, ready, environment)
                new = {label: turn(peer, post, folder, given.seconds) for label, post in asked.items()}
                for one in new.values():
                    one()  # warms it up, and shows whether it answers
                turns.update(new)
            except Exception as error:  # other people's servers fail in many ways
                failed[name] = " ".join(str(error).split())[:400]
        samples = take_turns(turns, given.rounds)
    return {
        "command": f"python benchmarks/serve_cost.py --rounds {given.rounds} --seconds {given.seconds:g} "
        "--litserve PYTHON --pytriton PYTHON",
        "environment": describe(),
        "connections": CONNECTIONS,
        "jpeg": {"bytes": posts["JPEG"].body.stat().st_size, "size": [640, 480]},
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "failed": failed,
        "samples": samples,
    }


def bodies(folder: Path, tensor: np.ndarray[Any, Any], jpeg: Path) -> dict[str, Post]:
    """Write what is sent: the tensor as v2 has it, the same as a file of a form, a JPEG, and a part of the tensor."""
    little = np.ascontiguousarray(tensor[:, :, :SMALL_SIDE, :SMALL_SIDE])
    large, small = (_as_sent(folder, name, one) for name, one in (("large", tensor), ("small", little)))
    return {
        **large,
        "ViT-Ti": replace(large["tensor"], path="/v2/models/vit_ti/infer"),
        "JPEG": Post("/v1/classify", jpeg, {}),
        "JPEG form": _form(folder / "jpeg.form", "image", jpeg.read_bytes()),
        **{f"small {form}": post for form, post in small.items()},
    }


def _as_sent(folder: Path, name: str, tensor: np.ndarray[Any, Any]) -> dict[str, Post]:
    entry = {
        "name": "images",
        "datatype": "FP32",
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    (folder / f"{name}.v2").write_bytes(header + tensor.tobytes())
    length = {"Inference-Header-Content-Length": str(len(header))}
    return {
        "tensor": Post("/v2/models/null/infer", folder / f"{name}.v2", length),
        "form": _form(folder / f"{name}.form", "tensor", tensor.tobytes()),
    }


def _form(path: Path, field: str, content: bytes) -> Post:
    """Write a form with one file."""
    edge = "vitesse-boundary"
    begin = f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="{field}"\r\n\r\n'.encode()
    path.write_bytes(begin + content + f"\r\n--{edge}--\r\n".encode())
    return Post("/predict", path, {"Content-Type": f"multipart/form-data; boundary={edge}"})


def peers(given: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return name, command, port, address of readiness, form of what is sent and environment of each other server."""
    found: list[tuple[Any, ...]] = []
    litserve, pytriton = str(HERE / "serve_peer_litserve.py"), str(HERE / "serve_peer_pytriton.py")
    for label, more in (("1 worker", ["1"]), ("2 workers", ["2"]), ("1 worker, fast queue", ["1", "fast"])):
        if given.litserve:
            port = free_port()
            command = [given.litserve, litserve, str(port), *more]
            found.append((f"LitServe, {label}", command, port, "/health", "form", None))
    if given.pytriton:
        port = free_port()
        command = [given.pytriton, pytriton, *map(str, (port, free_port(), free_port()))]
        # Its server embeds a Python whose shared library lies beside the interpreter's.
        library = Path(os.path.realpath(given.pytriton)).parents[1] / "lib"
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
        found.append(("pytriton", command, port, "/v2/models/null/ready", "tensor", environment))
    return found


def start(
    stack: ExitStack,
    folder: Path,
    name: str,
    command: list[str],
    port: int,
    ready: str,
    environment: Mapping[str, str] | None = None,
) -> Started:
    log = folder / f"{port}.log"
    return stack.enter_context(started(name, command, port, ready, log, environment=environment))


def turn(server: Started, post: Post, folder: Path, seconds: float) -> Callable[[], Sample]:
    """Return a function that loads a server for some seconds, and what it measured."""

    def load() -> Sample:
        watch, before, client = ForeignLoad(), server.cpu_s(), _children_s()
        seen = wrk(server, post, folder, seconds=seconds, connections=CONNECTIONS)
        spent, client, busy = server.cpu_s() - before, _children_s() - client, watch.cores()
        if not seen.requests or seen.not_ok or seen.broken:
            raise RuntimeError(f"{server.name} did not answer rightly: {seen}")
        others = None if busy is None else max(0.0, busy - (spent + client) / seen.seconds)
        return {
            **asdict(seen),
            "per_s": seen.requests / seen.seconds,
            "cpu_ms": 1e3 * spent / seen.requests,
            "rss_mb": server.rss_mb(),
            "other_cores": others,
        }

    return load


def decode_cpu(run: Run, image: bytes, seconds: float) -> Sample:
    """Return processor time of decoding and resizing alone, in as many threads as the server decodes in.

    From its first call on this process keeps memory as the server does.
    """
    bound_memory()  # as the server does: what is freed and taken again costs what it costs there
    limits, spec, counts = Limits(), run.artifact.spec, [0] * usable_cores()
    end = time.monotonic() + seconds

    def work(index: int) -> None:
        while time.monotonic() < end:
            feeds_of([picture_of(image, limits).image], spec)
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(counts))]
    before = _own_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    images = sum(counts)
    return {"images": images, "cpu_ms": 1e3 * (_own_s() - before) / images, "per_s": images / seconds}


def bare(run: Run, tensor: np.ndarray[Any, Any], seconds: float) -> Sample:
    """Return what one session a core, with one thread each, gets through without a server."""
    found = throughput(
        run.artifact, [{"images": tensor}], sessions=usable_cores(), threads=1, seconds=seconds
    )
    return {"per_s": found.per_s, "other_cores": found.foreign_cores}


def take_turns(turns: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Return the samples of every turn; each round begins with another one."""
    samples: dict[str, list[Sample]] = {name: [] for name in turns}
    names = list(turns)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            samples[name].append(turns[name]())
    return samples


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _children_s() -> float:
    """Processor time of the clients, which have ended; servers run on."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
