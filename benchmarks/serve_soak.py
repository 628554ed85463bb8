"""A server at twice its capacity for minutes: is every accepted request answered right, and does memory stand still?

    python benchmarks/serve_soak.py RUN [--minutes 10] [--out benchmarks/results/serve_soak.json] [--table]

Writes its JSON at the end and exits 0, or 1 with what was not kept: an answer wrong or lost, p99, memory.

RUN is copied and served as `vitesse serve` does. Its capacity is measured first, by as many clients as fill the queue;
then requests come at twice that rate whatever becomes of them (an open loop): JPEG, binary tensors and JSON, of images
whose outputs are known from a bare session on the same file. Every answer of status 200 is compared; one that fits
another image is a wrong pairing. Latencies count from the first byte sent; how late the clients were stands beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serve_process import Started, free_port, ours, started
from serve_soak_cases import TOLERANCE, Case, Client, Verdict, cases_of
from serve_tables import RESULTS, write_page

from vitesse.environment import describe
from vitesse.run import open_run

OVERLOAD = 2.0
CLIENTS, CLOSED = 48, 8
# A request that no client was free for for so long is not sent: the client is the bottleneck, and the count says so.
LATE_S = 1.0
# What a soak must keep: no answer later than a request may wait for a worker, and memory that stands still.
P99_MS, SLOPE_MB = 1000.0, 1.0


@dataclass
class Seen:
    """What all clients saw; guarded by `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    by_status: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    by_kind: dict[str, list[float]] = field(default_factory=dict)
    late_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    swapped: int = 0
    broken: int = 0
    not_sent: int = 0
    worst: float = 0.0
    served_by: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict, ms: float = 0.0, late_ms: float = 0.0, kind: str = "") -> None:
        with self.lock:
            self.by_status[verdict.status] += 1
            self.late_ms.append(late_ms)
            if verdict.status == 200:
                self.accepted_ms.append(ms)
                self.by_kind.setdefault(kind, []).append(ms)
                self.served_by[verdict.served_by] += 1
                self.worst = max(self.worst, verdict.distance)
                self.wrong += verdict.wrong
                self.swapped += verdict.swapped

    def count(self, what: str) -> None:
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)

    def requests(self) -> int:
        return sum(self.by_status.values())


def soak(run: Path, folder: Path, seconds: float, capacity_s: float = 5.0) -> dict[str, Any]:
    """Serve a copy of a run, load it and return what came of it; raises RuntimeError where it does not start."""
    copy = Path(shutil.copytree(run, folder / "run"))
    cases = cases_of(open_run(copy))
    port = free_port()
    with started("Vitesse", ours(copy, port), port, "/readyz", folder / "log") as server:
        closed_loop(server, cases, capacity_s / 2)  # warms it up
        capacity = closed_loop(server, cases, capacity_s)
        rate = OVERLOAD * capacity
        seen, memory = open_loop(server, cases, rate, seconds)
    warm = [row for row in memory if row["s"] >= 0.2 * seconds]
    answered = len(seen.accepted_ms)
    return {
        "command": f"python benchmarks/serve_soak.py RUN --minutes {seconds / 60:g}",
        "environment": describe(),
        "model": open_run(copy).ledger.source,
        "seconds": seconds,
        "overload": OVERLOAD,
        "capacity_per_s": capacity,
        "offered_per_s": rate,
        "tolerance": TOLERANCE,
        "answers": {
            "by_status": {str(status): count for status, count in seen.by_status.items()},
            "served_by": dict(seen.served_by),
            "accepted_per_s": answered / seconds,
            "compared": answered,
            "wrong": seen.wrong,
            "swapped": seen.swapped,
            "worst": seen.worst,
            "broken": seen.broken,
            "not_sent": seen.not_sent,
            "p50_ms": quantile(seen.accepted_ms, 0.5),
            "p99_ms": quantile(seen.accepted_ms, 0.99),
            "p99_ms_by_kind": {kind: quantile(found, 0.99) for kind, found in sorted(seen.by_kind.items())},
            "most_ms": quantile(seen.accepted_ms, 1.0),
            "client_late_p99_ms": quantile(seen.late_ms, 0.99),
        },
        "memory": {
            "after_warm_up_mb": warm[0]["rss_mb"] if warm else float("nan"),
            "end_mb": memory[-1]["rss_mb"],
            "slope_mb_per_1000": slope(warm),
            "samples": memory,
        },
        "load_average": os.getloadavg()[0],
    }


def faults(found: dict[str, Any]) -> list[str]:
    """Return in words what a soak did not keep; [] where it kept all."""
    answers, slope_mb = found["answers"], found["memory"]["slope_mb_per_1000"]
    others = sorted(set(answers["by_status"]) - {"200", "503", "504"})
    checks = {
        f"{answers['wrong']} wrong answers, {answers['swapped']} of them another request's": answers["wrong"],
        f"{answers['broken']} broken connections": answers["broken"],
        f"answers of status {', '.join(others)}": others,
        "no request was accepted": not answers["compared"],
        f"p99 of accepted requests {answers['p99_ms']} ms, expected at most {P99_MS:g}": (
            answers["p99_ms"] or 0
        )
        > P99_MS,
        f"memory grew by {slope_mb} MB per 1,000 requests, expected less than {SLOPE_MB:g}": (slope_mb or 0)
        >= SLOPE_MB,
    }
    return [text for text, failed in checks.items() if failed]


def quantile(values: list[float], share: float) -> float | None:
    """Return the nearest-rank quantile; None for no values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def slope(rows: list[dict[str, float]]) -> float | None:
    """Return MB per 1,000 answered requests by least squares; None for fewer than 20 seconds."""
    if len(rows) < 20:
        return None
    requests, rss = (np.array([row[name] for row in rows]) for name in ("requests", "rss_mb"))
    return float(1000 * np.polyfit(requests, rss, 1)[0])


def closed_loop(server: Started, cases: list[Case], seconds: float) -> float:
    """Return answers a second of clients that each wait for an answer before they ask again."""
    seen, end = Seen(), time.monotonic() + seconds

    def work(index: int) -> None:
        draw = random.Random(index)
        with Client(server.port) as client:
            while time.monotonic() < end:
                one = draw.choices(cases, [case.weight for case in cases])[0]
                seen.add(client.ask(one, cases))

    _together(CLOSED, work)
    return len(seen.accepted_ms) / seconds


def open_loop(
    server: Started, cases: list[Case], rate: float, seconds: float
) -> tuple[Seen, list[dict[str, float]]]:
    """Ask at a rate, whatever becomes of the requests; return what was seen and the memory of every second."""
    seen, memory = Seen(), []
    count = int(rate * seconds)
    start = time.monotonic()
    chosen = random.Random(0).choices(cases, [case.weight for case in cases], k=count)
    due = iter([(start + number / rate, one) for number, one in enumerate(chosen)])
    turn = threading.Lock()

    def work(_: int) -> None:
        with Client(server.port) as client:
            while True:
                with turn:
                    at, one = next(due, (None, None))
                if at is None or one is None:
                    return
                ask_at(at, one, client)

    def ask_at(at: float, one: Case, client: Client) -> None:
        late = time.monotonic() - at
        if late > LATE_S:
            seen.count("not_sent")
            return
        time.sleep(max(0.0, -late))
        sent = time.monotonic()
        try:
            verdict = client.ask(one, cases)
        except OSError:
            seen.count("broken")
            return
        seen.add(verdict, 1e3 * (verdict.ended - sent), 1e3 * (sent - at), one.kind)

    def watch() -> None:
        while (passed := time.monotonic() - start) < seconds:
            memory.append({"s": round(passed, 2), "requests": seen.requests(), "rss_mb": server.rss_mb()})
            time.sleep(1.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _together(CLIENTS, work)
    watcher.join()
    return seen, memory


def _together(count: int, work: Any) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_soak.json")
    parser.add_argument("--table", action="store_true", help="write the table of docs/serving.md as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(given.run, Path(folder), 60 * given.minutes)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    if given.table:
        write_page()
    if wrong := faults(found):
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
