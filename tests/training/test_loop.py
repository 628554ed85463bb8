"""A training ends with the right weights, and however it was cut, with the same ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[compress]'")
pytest.importorskip("lightning_fabric", reason="needs lightning-fabric: pip install 'vitesse[compress]'")

from training.toys import (  # noqa: E402
    EVERY_STEP,
    OPTIONS,
    Classify,
    Clock,
    Cut,
    Noise,
    at_call,
    cut,
    network,
    quiet_score,
    same,
    state,
    trained,
    weights,
)
from vitesse.errors import DataError, UsageError, VitesseError  # noqa: E402
from vitesse.training.batch import Batch  # noqa: E402
from vitesse.training.loop import train  # noqa: E402

# Resuming


@pytest.mark.parametrize("saving", [EVERY_STEP, OPTIONS], ids=["every step", "only when scored"])
@pytest.mark.parametrize("step", [1, 2, 4, 5, 9, 12])
def test_a_run_cut_at_a_step_and_gone_on_with_equals_one_that_was_not(
    step: int, saving: Any, tmp_path: Path
) -> None:
    whole, expected = trained(tmp_path / "whole", score=quiet_score)
    with pytest.raises(Cut):
        trained(tmp_path / "cut", saving, data=Noise(on_batch=at_call(step, cut)), score=quiet_score)
    gone_on, found = trained(tmp_path / "cut", saving, score=quiet_score)
    assert same(expected, found)
    assert (gone_on.steps, gone_on.score) == (whole.steps, whole.score)
    assert timeless(gone_on.history) == timeless(whole.history)
    last = [state(tmp_path / name) for name in ("whole", "cut")]
    assert same(last[0]["student"], last[1]["student"]) and same(last[0]["average"], last[1]["average"])
    moments = [saved["optimiser"]["state"] for saved in last]
    assert all(same(moments[0][index], moments[1][index]) for index in moments[0])


def timeless(history: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_a_run_cut_while_it_scores_goes_on_to_the_same_end(tmp_path: Path) -> None:
    _, expected = trained(tmp_path / "whole", score=quiet_score)
    dies = at_call(3, cut)

    def score(module: Any) -> float:
        dies()
        return quiet_score(module)

    with pytest.raises(Cut):
        trained(tmp_path / "cut", score=score)
    assert same(expected, trained(tmp_path / "cut", score=quiet_score)[1])


def test_the_check_of_resumed_runs_sees_a_wrong_position_in_the_data(tmp_path: Path) -> None:
    _, expected = trained(tmp_path / "whole")
    with pytest.raises(Cut):
        trained(tmp_path / "cut", EVERY_STEP, data=Noise(on_batch=at_call(7, cut)))
    path = max((tmp_path / "cut" / "checkpoints").glob("step-*.pt"))
    moved = torch.load(path, weights_only=True)
    moved["used"] -= 1
    torch.save(moved, path)
    assert not same(expected, trained(tmp_path / "cut", EVERY_STEP)[1])


def test_a_finished_run_is_read_and_not_trained_again(tmp_path: Path) -> None:
    first, expected = trained(tmp_path, score=quiet_score)
    data = Noise()
    again, found = trained(tmp_path, data=data, score=quiet_score)
    assert same(expected, found) and not data.epochs
    assert again.history == first.history and again.seconds == pytest.approx(first.seconds, abs=1.0)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    _, expected = trained(tmp_path / "whole")
    with pytest.raises(Cut):
        trained(tmp_path / "cut", EVERY_STEP, data=Noise(on_batch=at_call(7, cut)))
    newest = max((tmp_path / "cut" / "checkpoints").glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert same(expected, trained(tmp_path / "cut", EVERY_STEP)[1])


def test_other_options_models_and_data_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, identity={"temperature": 2.0})
    for given, differs in (
        ({"options": replace(OPTIONS, rate=1e-3)}, r"rate: 0\.01 there, 0\.001 here"),
        ({"task": Classify(network(seed=1))}, r"student: \d+ weights, sha256 \w+ there, \d+ weights, sha256"),
        ({"task": Classify(network(), [network(2)])}, r"teacher 1: nothing there, \d+ weights"),
        ({"data": Noise(images=20)}, "images: 18 there, 20 here"),
        ({"identity": {"temperature": 3.0}}, r"temperature: 2\.0 there, 3\.0 here"),
        ({"score": quiet_score}, "scored: no there, yes here"),
    ):
        with pytest.raises(UsageError, match=differs) as refused:
            trained(tmp_path, **{"identity": {"temperature": 2.0}, **given})
        assert "choose another folder" in str(refused.value)


def test_how_often_checkpoints_are_written_may_change(tmp_path: Path) -> None:
    trained(tmp_path)
    assert trained(tmp_path, EVERY_STEP)[0].steps == 12


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    trained(tmp_path, EVERY_STEP)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000011.pt", "step-000000012.pt"]


def test_the_seed_decides(tmp_path: Path) -> None:
    _, first = trained(tmp_path / "a")
    _, again = trained(tmp_path / "b")
    _, other = trained(tmp_path / "c", replace(OPTIONS, seed=1))
    assert same(first, again) and not same(first, other)


def test_training_leaves_the_random_state_of_the_process_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    trained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


# Weights


def test_the_best_scored_weights_are_restored(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def score(module: Any) -> float:
        seen.append(weights(module))
        return [1.0, 2.0, 7.0, 7.0, math.nan][len(seen) - 1]

    result, found = trained(tmp_path, score=score)
    assert result.score == 7.0
    assert [row["step"] for row in result.history if "score" in row] == [0, 3, 6, 9, 12]
    assert same(found, seen[3]), "of two equal scores the later one"
    assert not same(found, seen[4])


def test_without_a_score_the_averaged_weights_stay(tmp_path: Path) -> None:
    result, found = trained(tmp_path)
    last = state(tmp_path)
    assert result.score is None
    assert same(found, last["average"]) and not same(found, last["student"])


def test_the_average_is_what_is_scored(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    trained(
        tmp_path, replace(OPTIONS, score_every=1), score=lambda module: seen.append(weights(module)) or 0.0
    )
    assert same(seen[-1], state(tmp_path)["average"])


def test_teachers_are_unchanged_without_gradients_and_in_eval_mode(tmp_path: Path) -> None:
    teacher = network(5).train()
    before, modes = weights(teacher), []
    task = Classify(network(), [teacher], before=lambda batch: modes.append(teacher.training))
    result, _ = trained(tmp_path, task=task)
    assert same(before, weights(teacher)) and not any(modes)
    assert all(one.grad is None and not one.requires_grad for one in teacher.parameters())
    assert "loss.teacher" in result.history[-1] and "loss.class" in result.history[-1]


def test_the_loss_falls(tmp_path: Path) -> None:
    result, _ = trained(tmp_path, replace(OPTIONS, steps=100), task=Classify(network(dropout=0)))
    losses = [row["loss"] for row in result.history]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_the_student_is_left_in_the_mode_it_had_and_without_gradients(tmp_path: Path) -> None:
    task = Classify(network().eval())
    trained(tmp_path, task=task)
    assert not task.student.training
    assert all(one.grad is None and one.requires_grad for one in task.student.parameters())


# Time


def test_progress_hears_every_step_and_every_score(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener:
        def stage(self, name: str, activity: str, total: int) -> None:
            heard.append(f"{name}: {activity}, {total}")

        def advance(self, steps: float = 1) -> None:
            heard.append(f"+{steps}")

        def row(self, stage: str, verdict: str, reason: str) -> None:
            heard.append(f"{verdict} {reason}")

    given: dict[str, Any] = {"score": lambda module: 81.25, "progress": Listener()}
    with pytest.raises(Cut):
        trained(tmp_path, EVERY_STEP, data=Noise(on_batch=at_call(5, cut)), **given)
    assert heard[:3] == ["SCORED 81.25 after step 0", "training: 12 steps of 4 images on 1 × cpu, 12", "+0"]
    assert heard[3:] == ["+1", "+1", "SCORED 81.25 after step 3", "+1", "+1"]
    heard.clear()
    trained(tmp_path, EVERY_STEP, **given)
    assert heard[1] == "+4" and heard.count("+1") == 8


def ticking(clock: Clock, seconds: float) -> Noise:
    def tick() -> None:
        clock.now += seconds

    return Noise(on_batch=tick)


def test_a_time_budget_becomes_the_steps_that_fit_in_it(tmp_path: Path) -> None:
    clock = Clock()
    options = replace(OPTIONS, steps=None, seconds=100.0)
    result, _ = trained(tmp_path, options, data=ticking(clock, 1.0), clock=clock)
    assert result.steps == 95, "five steps, a twentieth of the time, were measured"
    assert clock.now - 100 == pytest.approx(100)
    assert result.seconds == pytest.approx(100)


def test_the_time_of_scoring_is_part_of_the_budget(tmp_path: Path) -> None:
    clock = Clock()

    def score(module: Any) -> float:
        clock.now += 5.0
        return 0.0

    options = replace(OPTIONS, steps=None, seconds=100.0, score_every=0.25)
    result, _ = trained(tmp_path, options, data=ticking(clock, 1.0), clock=clock, score=score)
    assert result.steps == 100 - 5 - 5 - 4 * 5
    assert clock.now - 100 == pytest.approx(100)


def test_measuring_leaves_no_trace(tmp_path: Path) -> None:
    clock = Clock()
    budget = replace(OPTIONS, steps=None, seconds=20.0)
    timed, found = trained(tmp_path / "timed", budget, data=ticking(clock, 1.0), clock=clock)
    _, expected = trained(tmp_path / "counted", replace(OPTIONS, steps=timed.steps))
    assert same(expected, found)


def test_a_resumed_run_keeps_the_plan_of_the_first_start(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=None, seconds=20.0)
    clock = Clock()
    whole, expected = trained(tmp_path / "whole", options, data=ticking(clock, 1.0), clock=clock)
    clock, dies = Clock(), at_call(9, cut)

    def tick_and_die() -> None:
        clock.now += 1.0
        dies()

    with pytest.raises(Cut):
        trained(tmp_path / "cut", options, data=Noise(on_batch=tick_and_die), clock=clock)
    slower = Clock()
    gone_on, found = trained(tmp_path / "cut", options, data=ticking(slower, 3.0), clock=slower)
    assert gone_on.steps == whole.steps and same(expected, found)


# Refusals


def test_a_source_without_a_batch_is_refused(tmp_path: Path) -> None:
    class Empty(Noise):
        def epoch(self, *_: object) -> Any:
            return iter(())

    with pytest.raises(DataError, match="epoch 0 of the training data has no batch"):
        trained(tmp_path, data=Empty())


def test_a_student_without_weights_that_may_change_is_refused(tmp_path: Path) -> None:
    task = Classify(network().requires_grad_(False))
    with pytest.raises(UsageError, match="no weight of the Sequential requires gradients"):
        train(task, Noise(), OPTIONS, tmp_path)


def test_a_loss_that_names_its_parts_differently_is_refused(tmp_path: Path) -> None:
    class Fickle(Classify):
        calls = 0

        def loss(self, batch: Batch) -> Any:
            self.calls += 1
            return {f"part{self.calls}": loss for loss in super().loss(batch).values()}

    with pytest.raises(VitesseError, match=r"the loss has a part loss\.part2 at step 2"):
        trained(tmp_path, task=Fickle(network()))
