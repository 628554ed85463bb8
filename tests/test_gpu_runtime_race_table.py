"""The tables of the race: every figure from its samples; refused, throttled and missing points say so."""

import json
import statistics
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from benchmark_scripts import FOLDER, benchmark
from gpu_records import line_of, record

PAGE = FOLDER.parent / "docs" / "gpu.md"
RACE = FOLDER / "results" / "gpu_runtime_race.json"
LABELS = ("plain", "ours, no graph", "ours", "ours, numpy to numpy")


@pytest.fixture(scope="module")
def race() -> ModuleType:
    return benchmark("gpu_runtime_race_table")


def group(*times: float, verdict: str = "clean", why: str = "") -> dict[str, Any]:
    """A group of the race, in which every round took the same times: plain, no graph, ours, numpy to numpy."""
    known = {
        label: {"p50_ms": ms, "p99_ms": ms, "gain": times[0] / ms, "gain_interval": [times[0] / ms] * 2}
        for label, ms in zip(LABELS, times, strict=True)
    }
    return {
        "candidates": known,
        "refused": {},
        "observed": {"verdict": verdict, "why": why, "series": {"gpu_memory_mb": [1.0, 2.0, 85_357.0]}},
        "run": {
            "rounds": {label: [[ms, ms]] * 6 for label, ms in zip(LABELS, times, strict=True)},
            "warm_up": {label: {"calls": 10, "stable": True} for label in LABELS},
            "foreign_cores": 0.01,
        },
    }


def raced(one: dict[str, Any], batch: str = "1", precision: str = "fp16") -> dict[str, Any]:
    """A race of one point of ViT-B/16."""
    return record({"vit_b16": {"parity": {}, "batches": {batch: {precision: one}}}})


# --- the committed results


def committed_groups() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{name} {batch} {precision}", one)
        for name, model in json.loads(RACE.read_text())["found"].items()
        for batch, by_precision in model["batches"].items()
        for precision, one in by_precision.items()
    ]


def test_every_published_figure_of_the_race_follows_from_its_raw_samples() -> None:
    for title, one in committed_groups():
        rounds = one["run"]["rounds"]
        assert set(rounds) == set(one["candidates"]), title
        for label, figures in one["candidates"].items():
            samples = [ms for block in rounds[label] for ms in block]
            assert figures["p50_ms"] == pytest.approx(statistics.median(samples), rel=1e-5), (title, label)
            pairs = zip(rounds["plain"], rounds[label], strict=True)
            ratios = sorted(statistics.median(a) / statistics.median(b) for a, b in pairs)
            assert figures["gain"] == pytest.approx(statistics.median(ratios), rel=1e-5), (title, label)
            # Of 12 rounds the third smallest and the third largest enclose the median with 96 %.
            assert len(ratios) == 12
            assert figures["gain_interval"] == pytest.approx([ratios[2], ratios[-3]], rel=1e-5), (
                title,
                label,
            )


def test_what_the_text_says_of_the_race_is_in_its_results() -> None:
    page = PAGE.read_text()
    ms = {
        title: {label: figures["p50_ms"] for label, figures in one["candidates"].items()}
        for title, one in committed_groups()
    }
    plain = [ms[f"detr_r50 {batch} fp16"]["plain"] for batch in (1, 8)]
    assert f"takes {plain[0]:.2f} and {plain[1]:.1f} ms" in page
    # Plain is as slow for one image as for eight; copies grow with the batch and are most of a large one's loss.
    assert ms["vit_b16 8 fp16"]["plain"] == pytest.approx(ms["vit_b16 1 fp16"]["plain"], rel=0.1)
    added = [
        ms[f"detr_r50 {batch} fp16"][LABELS[3]] - ms[f"detr_r50 {batch} fp16"]["ours"] for batch in (1, 8, 32)
    ]
    assert all(2 * fewer < more for fewer, more in pairwise(added))
    assert f"{32 * 3 * 800 * 1333 * 4 / 1e6:.0f} MB" in page


# --- made-up ones


def test_a_model_and_a_precision_that_the_race_lacks_are_not_run(race: ModuleType) -> None:
    found = raced(group(4.0, 2.0, 1.0, 1.5))
    table = race.race_table(found)
    assert line_of(table, "DETR-R50, 800×1333", "FP32", "–") == ["not run"] * 7 + ["–"]
    assert line_of(table, "ViT-B/16, 224×224", "FP32", "–") == ["not run"] * 7 + ["–"]
    assert "* DETR-R50, 800×1333: not run" in race.target_lines(found)
    assert race.parity_table(found).count("not run") == 4


def test_a_line_has_times_gains_images_per_second_and_nothing_to_remark(race: ModuleType) -> None:
    table = race.race_table(raced(group(12.0, 6.0, 4.0, 5.0), batch="8"))
    cells = ["12.0", "6.000", "2.00× (2.00–2.00)", "4.000", "3.00× (3.00–3.00)", "2000", "5.000", "–"]
    assert line_of(table, "ViT-B/16, 224×224", "FP16", "8") == cells


def test_a_refused_candidate_has_a_number_and_its_words_below_without_folders(race: ModuleType) -> None:
    one = group(12.0, 6.0, 4.0, 5.0)
    del one["candidates"][LABELS[3]]
    one["refused"] = {LABELS[3]: "refuses /tmp/some/model.onnx at /src/core/arena.cc:360 | out of memory"}
    table = race.race_table(raced(one))
    cells = line_of(table, "ViT-B/16, 224×224", "FP16", "1")
    assert cells[5:] == ["250", "refused 1", "all candidates together held up to 85.4 GB of the GPU"]
    assert "Refused 1: refuses model.onnx at arena.cc:360 \\| out of memory" in table.splitlines()


def test_the_same_refusal_has_the_same_number_and_cut_words_end_in_dots(race: ModuleType) -> None:
    refusals = race.Refusals()
    assert [refusals.cell(words) for words in ("no", "x" * 300, "no")] == [
        "refused 1",
        "refused 2",
        "refused 1",
    ]
    assert refusals.lines() == ["\nRefused 1: no", f"\nRefused 2: {'x' * 300}…"]


def test_without_plain_there_is_no_gain(race: ModuleType) -> None:
    one = group(12.0, 6.0, 4.0, 5.0)
    del one["candidates"]["plain"]
    one["refused"] = {"plain": "no"}
    for figures in one["candidates"].values():
        del figures["gain"], figures["gain_interval"]
    found = raced(one)
    cells = ["refused 1", "6.000", "–", "4.000", "–", "250", "5.000"]
    assert line_of(race.race_table(found), "ViT-B/16, 224×224", "FP16", "1")[:7] == cells
    assert "* ViT-B/16, 224×224: not decided, refused" in race.target_lines(found)
    assert race.lost_lines(found).count("none") == 3


@pytest.mark.parametrize("verdict", ["throttled", "unobserved"])
def test_a_point_that_was_not_clean_has_the_word_and_no_figures(race: ModuleType, verdict: str) -> None:
    found = raced(group(12.0, 20.0, 11.5, 13.0, verdict=verdict, why="power cap"))
    cells = line_of(race.race_table(found), "ViT-B/16, 224×224", "FP16", "1")
    assert cells == [verdict] * 7 + [f"{verdict}: power cap"]
    assert f"* ViT-B/16, 224×224: not decided, {verdict}" in race.target_lines(found)
    assert race.lost_lines(found).count("none") == 4


def test_a_busy_machine_and_an_unsteady_warm_up_are_remarked(race: ModuleType) -> None:
    one = group(12.0, 6.0, 4.0, 5.0)
    one["run"]["foreign_cores"] = 0.34
    one["run"]["warm_up"]["plain"]["stable"] = False
    (remark,) = line_of(race.race_table(raced(one)), "ViT-B/16, 224×224", "FP16", "1")[7:]
    assert remark == "other processes kept 0.3 cores busy; still changing after the warm-up: plain"


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([1.5, 1.9], "met"),
        ([1.2, 1.49], "missed"),
        ([1.4, 1.9], "open, the interval reaches to both sides of 1.5×"),
    ],
)
def test_the_target_is_met_where_the_whole_interval_meets_it(
    race: ModuleType, interval: list[float], said: str
) -> None:
    one = group(1.6, 1.2, 1.0, 1.1)
    one["candidates"]["ours"]["gain_interval"] = interval
    one["run"]["rounds"]["plain"] = [[1.6, 1.6, 1.1]] * 5 + [[1.3, 1.3, 1.2]]
    (line,) = [line for line in race.target_lines(raced(one)).splitlines() if line.startswith("* ViT")]
    parts = line.split("; ")
    assert parts[0] == f"* ViT-B/16, 224×224: 1.60× ({interval[0]:.2f}–{interval[1]:.2f}), {said}"
    assert parts[1] == "1.30× in the least favourable of 6 rounds"
    assert parts[2] == "plain's fastest single call took 1.10 ms, 1.10× our p50"
    assert parts[3] == "on another machine plain took 1.93 ms (one run, exploratory), 1.93× our p50 here"


def test_the_target_is_of_fp16_at_batch_1_only(race: ModuleType) -> None:
    for batch, precision in (("8", "fp16"), ("1", "fp32")):
        found = raced(group(4.0, 2.0, 1.0, 1.5), batch, precision)
        assert "* ViT-B/16, 224×224: not run" in race.target_lines(found)


def test_what_is_lost_is_said_and_what_is_not_lost_is_not(race: ModuleType) -> None:
    slower = race.lost_lines(raced(group(10.0, 11.0, 9.5, 20.0), batch="32")).splitlines()
    assert slower[0].endswith(": ViT-B/16 FP16 batch 32, 0.50× (0.50–0.50).")
    assert slower[1].endswith(": ViT-B/16 FP16 batch 32, 0.91× (0.91–0.91).")
    assert slower[2].endswith(": ViT-B/16 FP16 batch 32, 1.05× (1.05–1.05).")
    assert slower[3].endswith(": ViT-B/16 FP16 batch 32, 10.5 ms.")
    faster = race.lost_lines(raced(group(10.0, 8.0, 5.0, 6.0), batch="32")).splitlines()
    assert [line.endswith(": none.") for line in faster] == [True, True, True, False]


def test_a_loss_inside_the_noise_is_none(race: ModuleType) -> None:
    one = group(10.0, 10.1, 5.0, 6.0)
    one["candidates"][LABELS[1]]["gain_interval"] = [0.95, 1.02]
    assert race.lost_lines(raced(one)).splitlines()[1].endswith(": none.")


def test_parity_is_given_by_output(race: ModuleType) -> None:
    found = record({"detr_r50": {"parity": {"fp16": {"logits": 0.000266, "boxes": 0.00058}}, "batches": {}}})
    cells = line_of(race.parity_table(found), "DETR-R50, 800×1333", "FP16")
    assert cells == ["`logits` 2.7e-04, `boxes` 5.8e-04"]


def test_the_origin_names_gpu_driver_versions_and_a_second_build_of_the_runtime(race: ModuleType) -> None:
    found = record({})
    last = "`python this` on A GPU, driver 580.1 (CUDA 13.0), ONNX Runtime 1.31.1, 16 cores of A CPU; 2026-11-22."
    assert race.race_table(found).splitlines()[-1] == last
    found["environment"]["packages"] = {"onnxruntime": "1.30.0"}
    assert "ONNX Runtime 1.31.1 (a build of 1.30.0 was installed, too)," in race.race_table(found)
    found["environment"]["packages"] = {}
    del found["environment"]["gpus"]
    assert "A GPU (CUDA 13.0), ONNX Runtime 1.31.1, 16" in race.race_table(found)
