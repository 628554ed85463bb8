"""The router under real threads: every request gets its own answer, once, whatever fails meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np

from serve.releases.router_bench import Pick
from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.breaker import Breaker, State, Thresholds
from vitesse.serve.releases.router import Router
from vitesse.serve.releases.state import StateFile
from vitesse.serve.work import Executed, Work

REQUESTS = 600


class Pool:
    """Two workers that double their feeds; a part of the runs fails or gives NaN."""

    def __init__(self, failing: float) -> None:
        self._failing, self._random = failing, Random(5)
        self.workers = ThreadPoolExecutor(2)

    def submit(self, work: Work) -> None:
        self.workers.submit(self._run, work, self._random.random(), self._random.random())

    def _run(self, work: Work, draw: float, kind: float) -> None:
        if not work.done.set_running_or_notify_cancel():
            return
        value = 2 * work.feeds["x"]
        if draw < self._failing and kind < 0.5:
            work.done.set_exception(Refusal(500, "backend", "CUDA error"))
            return
        outputs = {"y": np.full_like(value, np.nan) if draw < self._failing else value}
        work.done.set_result(Executed(outputs, 0.0, 0.001, 1, 0))


class Fifth(Pick):
    """Compares a fifth of the answers."""

    def __init__(self) -> None:
        super().__init__()
        self._random = Random(6)

    def compared(self) -> bool:
        return self._random.random() < 0.2


def test_no_request_is_lost_or_mixed_up_while_a_release_fails_is_probed_and_moved_by_hand(
    tmp_path: Path,
) -> None:
    pools = {"reference": Pool(0.0), "fast": Pool(0.3), "new": Pool(0.0)}
    # A cool-down of nothing: opening, probing and closing happen all the time.
    breaker = Breaker(lambda: 0.0, Thresholds(cool_down_s=0.0, cool_down_most_s=0.0, probes=1))
    file = StateFile(tmp_path)
    router = Router(pools, "reference", "fast", breaker, Fifth(), lambda: 0.0, Random(7).random, state=file)

    def send(number: int) -> tuple[int, float]:
        if number == 200:
            router.control._change(lambda state: state.with_candidate("new", "b", 0.0, ""))
            router.promote("new", share=0.5)
        if number == 400:
            router.rollback()
        feeds = {"x": np.full((1, 1), number, np.float32)}
        routed = router.submit(Work(feeds, 0.0, 100.0)).result(timeout=20)
        return number, float(routed.executed.outputs["y"][0, 0])

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(send, range(1, REQUESTS + 1)))
    for pool in pools.values():
        pool.workers.shutdown()
    assert answers == [(number, 2.0 * number) for number in range(1, REQUESTS + 1)]
    kept = file.read()
    assert kept is not None and kept == router.control.state
    # the breaker and what was written of it tell the same story, whichever thread came last
    assert ("fast" in kept.breakers) == (router.control.breaker("fast").state is not State.CLOSED)
    assert any(event.what == "rolled back" and event.release == "fast" for event in kept.events)
