"""Tensors that a release does not take: it is passed over, once in the log, and somebody else answers."""

from typing import Any

import numpy as np
import pytest

from serve.releases.router_bench import Bench, crash
from vitesse.backends.protocol import TensorInfo
from vitesse.serve.refusals import Refusal
from vitesse.serve.releases.fitting import misfit
from vitesse.serve.releases.observer import Unobserved
from vitesse.serve.releases.state import Phase
from vitesse.serve.work import Work

IMAGES = TensorInfo("images", ("batch", 3, 56, "width"), "float32")


def images(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"images": np.zeros(shape, dtype)}


def test_free_dimensions_take_any_size_and_fixed_ones_their_own() -> None:
    assert misfit([IMAGES], images(2, 3, 56, 99)) == ""
    assert misfit([IMAGES], images(2, 3, 28, 99)) == (
        "it takes batch×3×56×width as 'images' and not 2×3×28×99"
    )
    assert "and not 3×56×99" in misfit([IMAGES], images(3, 56, 99))
    assert misfit([IMAGES], images(1, 3, 56, 9, dtype="float16")) == (
        "it takes float32 as 'images' and not float16"
    )
    assert misfit([IMAGES], {"x": np.zeros(1)}) == "it takes the inputs 'images' and not 'x'"


class Told(Unobserved):
    """Keeps what is noted of releases."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str, str]] = []

    def release_noted(self, release: str, what: str, why: str) -> None:
        self.noted.append((release, what, why))


def bench_of(**takes: int) -> Bench:
    """A bench on which some releases take rows of another length than the two that `send` sends."""

    def fits(release: str, feeds: Any) -> str:
        wanted = takes.get(release, 2)
        return misfit([TensorInfo("x", ("batch", wanted), "float32")], feeds)

    return Bench(misfit=fits)


def test_a_canary_of_another_size_gets_no_tensors_and_the_live_release_answers() -> None:
    bench = bench_of(new=3)
    told = bench.router.control._observer = Told()
    bench.router.promote("new", share=1.0)
    answers = [bench.send(value).result(0) for value in (1.0, 2.0)]
    assert [(one.served_by, one.why) for one in answers] == [("fast", "live")] * 2
    assert not bench.fakes["new"].taken
    passed = [one for one in told.noted if one[1] == "passed over"]
    assert passed == [
        ("new", "passed over", "it takes batch×3 as 'x' and not 1×2; such requests are answered by another")
    ]


def test_a_canary_that_takes_the_tensors_gets_them() -> None:
    bench = bench_of(reference=3)
    bench.router.promote("new", share=1.0)
    assert bench.served_by() == "new"


def test_what_is_made_for_each_release_goes_to_each() -> None:
    bench = bench_of(new=3)
    bench.router.promote("new", share=1.0)
    work = Work({"x": np.zeros((1, 2), np.float32)}, bench.clock.now, bench.clock.now + 5)
    answer = bench.router.submit(
        work, lambda name: {"x": np.zeros((1, 3 if name == "new" else 2), np.float32)}
    )
    assert answer.result(0).served_by == "new"


def test_a_shadow_and_a_reference_of_another_size_get_no_copies() -> None:
    bench = bench_of(new=3, reference=3)
    bench.pick.compare = True
    bench.router.promote("new", share=1.0, shadow=True)
    assert bench.served_by() == "fast"
    assert not bench.fakes["new"].taken and not bench.fakes["reference"].taken
    assert bench.heard.dropped == 0, "nothing was dropped for want of room"


def test_after_a_promotion_to_another_size_the_previous_release_answers_tensors() -> None:
    bench = bench_of(new=3, reference=3)
    bench.router.promote("new")
    assert bench.router.control.state.in_phase(Phase.PREVIOUS).name == "fast"
    answer = bench.send().result(0)
    assert (answer.served_by, answer.why) == (
        "fast",
        "new does not take these tensors: it takes batch×3 as 'x' and not 1×2",
    )


def test_a_failure_that_no_other_release_can_stand_in_for_is_counted_and_refused_with_the_reason() -> None:
    bench = bench_of(reference=3)
    bench.fakes["fast"].act = crash
    for _ in range(5):
        with pytest.raises(
            Refusal, match="CUDA error; the reference could not answer instead: it takes"
        ) as found:
            bench.send().result(0)
        assert (found.value.status, found.value.code) == (503, "backend")
    assert bench.heard.rollbacks == [("fast", "error")]
    assert not bench.fakes["reference"].taken
    with pytest.raises(
        Refusal, match=r"nothing else may answer now \(fast was rolled back.*Send the image"
    ) as found:
        bench.send()
    assert (found.value.status, found.value.code) == (503, "not_ready")


def test_a_probe_that_the_reference_cannot_take_part_in_makes_room_for_the_next() -> None:
    bench = bench_of(reference=3)
    bench.fakes["fast"].act = crash
    for _ in range(5):
        with pytest.raises(Refusal):
            bench.send().result(0)
    bench.clock.now += 31
    for _ in range(2):
        with pytest.raises(Refusal, match="is being probed"):
            bench.send()
