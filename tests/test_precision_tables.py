"""docs/precision.md holds what was measured: every figure, every "not run", every target that is met or not."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from benchmark_scripts import FOLDER, benchmark
from vitesse.ledger import Accuracy, Latency, Ledger, Row, Verdict
from vitesse.recipe import PRECISIONS, load_recipe

PAGE = FOLDER.parent / "docs" / "precision.md"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return benchmark("precision_tables")


@pytest.fixture(scope="module")
def targets(tables: ModuleType) -> ModuleType:
    return benchmark("precision_targets")


def row(
    stage: str = "int8",
    drop: float | None = 0.0,
    *,
    verdict: Verdict = Verdict.PASS,
    share: int | None = None,
    metric: str = "coco_ap",
) -> Row:
    accuracy = None if drop is None else Accuracy(metric, 0.8 - drop / 100, drop, 300)
    changes = {} if share is None else {"percent of Conv and Linear operations in INT8": share}
    return Row(stage, verdict, "because", accuracy=accuracy, changes=changes)


def ledger(*rows: Row) -> Ledger:
    environment = {
        "cpu": {"model": "A CPU", "usable_cores": 2, "flags": ["avx2"]},
        "packages": {"onnxruntime": "1.31.1"},
        "date": "2026-11-22T08:00:00",
    }
    return Ledger("model.onnx", "cpu", rows, environment=environment, command="python this")


# --- the page and its sources


def test_the_page_is_made_from_the_committed_results(tables: ModuleType) -> None:
    page = PAGE.read_text()
    assert tables.page_with_tables(page) == page


def contradictions(page: str) -> list[str]:
    """Lines of the table of targets whose last cell does not follow from the figures in the others."""
    wrong = []
    for line in re.findall(r"^\| (?:FP16|INT8|FP8) \|.*\|$", page.partition("### Targets")[2], re.MULTILINE):
        _, _, allowed, lost, lowered, _, verdict, met = [cell.strip() for cell in line.strip("|").split("|")]
        if lost == "not run":
            right = met == "not run"
        else:
            share, _, least = lowered.rstrip(")").partition(" (")
            enough = not least or (share.isdigit() and int(share) >= int(least))
            follows = float(lost) <= float(allowed) and enough and verdict != "FAIL"
            right = met == ("yes" if follows else "no")
        if not right:
            wrong.append(line)
    return wrong


def targets_section(page: str) -> str:
    return page.partition("### Targets")[2].partition("###")[0]


def test_every_met_follows_from_the_figures_beside_it(tables: ModuleType, targets: ModuleType) -> None:
    page = PAGE.read_text()
    assert contradictions("### Targets" + targets_section(page)) == []
    assert len(re.findall(r"^\| (?:FP16|INT8|FP8) \|", targets_section(page), re.MULTILINE)) == 7


def test_every_met_follows_from_the_raw_results(tables: ModuleType, targets: ModuleType) -> None:
    said = [line.rsplit("|", 2)[1].strip() for line in targets_section(PAGE.read_text()).split("\n")[4:-2]]
    for target, met in zip(targets.TARGETS, said, strict=True):
        file = FOLDER / "results" / f"precision_{target.case}.json"
        rows = json.loads(file.read_text())["rows"] if file.is_file() else []
        kept = [
            one
            for one in rows
            if targets.precision_of(one["stage"]) == target.precision
            and one["verdict"] != "FAIL"
            and one["accuracy"] is not None
        ]
        enough = [one for one in kept if max(_shares(one), default=0) >= target.min_share]
        wanted = any(one["accuracy"]["drop"] <= target.max_drop + 1e-6 for one in enough)
        assert met == ("not run" if not kept else "yes" if wanted else "no"), target


def _shares(raw: dict) -> list[int]:  # type: ignore[type-arg]
    return [count for name, count in raw["changes"].items() if name.startswith("percent of")]


@pytest.mark.parametrize(
    "line",
    [
        "| FP16 | DETR | 0.1 | 0.11 | – | fp16 | PASS | yes |",
        "| FP16 | DETR | 0.1 | 0.09 | – | fp16 | PASS | no |",
        "| INT8 | DETR | 0.5 | 0.20 | 69 (70) | int8 | PASS | yes |",
        "| INT8 | DETR | 0.5 | 0.20 | unknown (70) | int8 | PASS | yes |",
        "| FP8 | ViT | 0.2 | not run | – | – | – | yes |",
        "| FP8 | ViT | 0.2 | 0.10 | – | fp8 | FAIL | yes |",
    ],
)
def test_a_met_that_does_not_follow_is_found(line: str) -> None:
    assert contradictions(f"### Targets\n\n{line}\n") == [line]


# --- targets


def detr_int8(targets: ModuleType) -> object:
    return next(one for one in targets.TARGETS if (one.case, one.precision) == ("detr_fashion", "INT8"))


def vit_fp16(targets: ModuleType) -> object:
    return next(one for one in targets.TARGETS if (one.case, one.precision) == ("vit_fashion", "FP16"))


def test_the_targets_are_those_of_the_issue(targets: ModuleType) -> None:
    asked = {(one.case, one.precision): (one.max_drop, one.min_share) for one in targets.TARGETS}
    assert asked == {
        ("detr_fashion", "FP16"): (0.1, 0),
        ("vit_fashion", "FP16"): (0.1, 0),
        ("deimv2", "FP16"): (0.1, 0),
        ("vit_fashion", "INT8"): (0.3, 0),
        ("detr_fashion", "INT8"): (0.5, 70),
        ("deimv2", "INT8"): (0.5, 0),
        ("vit_fashion", "FP8"): (0.2, 0),
    }


def test_two_images_of_2000_are_a_tenth_of_a_point_and_three_are_more(targets: ModuleType) -> None:
    two, three = 100 * (0.9345 - 0.9335), 100 * (0.9345 - 0.9330)
    target = vit_fp16(targets)
    assert targets.judged(target, ledger(row("fp16", two, metric="top1"))).met is True
    assert targets.judged(target, ledger(row("fp16", three, metric="top1"))).met is False


def test_int8_that_lowers_too_little_does_not_meet_the_target_however_accurate(targets: ModuleType) -> None:
    found = targets.judged(detr_int8(targets), ledger(row(drop=0.0, share=69)))
    assert found.met is False
    assert targets.judged(detr_int8(targets), ledger(row(drop=0.0, share=None))).met is False


def test_of_several_steps_the_one_that_loses_least_and_lowers_enough_counts(targets: ModuleType) -> None:
    rows = (
        row("int8", 0.97, share=95, verdict=Verdict.REJECTED),
        row("int8:onnxruntime", 0.31, share=74),
        row("int8:openvino", 0.02, share=40),
    )
    found = targets.judged(detr_int8(targets), ledger(*rows))
    assert found.row is not None
    assert (found.row.stage, found.met) == ("int8:onnxruntime", True)


def test_of_two_steps_that_lose_the_same_the_one_that_passed_is_shown(targets: ModuleType) -> None:
    rows = (row("int8", 0.2, share=95, verdict=Verdict.REJECTED), row("int8:onnxruntime", 0.2, share=95))
    assert targets.judged(detr_int8(targets), ledger(*rows)).row == rows[1]


def test_a_broken_step_a_step_without_accuracy_and_mere_agreement_do_not_count(targets: ModuleType) -> None:
    for one in (
        row(drop=0.0, share=90, verdict=Verdict.FAIL),
        row(drop=None, share=90),
        row(drop=0.0, share=90, metric="agreement"),
        row("fp16", 0.0, share=90),
    ):
        assert targets.judged(detr_int8(targets), ledger(one)).met is None
    assert targets.judged(detr_int8(targets), None).met is None


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("fuse", "FP32"),
        ("decoder:4", "FP32"),
        ("build:openvino", "FP32"),
        ("fp16", "FP16"),
        ("build:onnxruntime:fp16", "FP16"),
        ("bf16", "BF16"),
        ("int8:openvino:2", "INT8"),
        ("nncf:openvino", "INT8"),
        ("int8:onnxruntime", "INT8"),
        ("fp8", "FP8"),
    ],
)
def test_a_steps_name_tells_its_precision(targets: ModuleType, stage: str, precision: str) -> None:
    assert targets.precision_of(stage) == precision


# --- tables


def measured(stage: str, **changes: object) -> Row:
    whole = replace(
        row(stage, 0.21),
        latency_ms=Latency(3.16, 3.3, 3.5),
        throughput_per_s=540.0,
        memory_mb=177.0,
        gain=1.46,
        gain_spread=(1.40, 1.63),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_detectors_line_gives_stage_ms_fps_memory_ap_loss_gain_and_verdict(tables: ModuleType) -> None:
    text = tables.detector_table(ledger(measured("int8", reason="fast enough")))
    assert text.splitlines()[0].startswith("| stage | ms | FPS | memory MB | AP |")
    cells = "int8 | 3.16 | 540.0 | 177.0 | 0.7979 | 0.21 | 1.46× (1.40–1.63) | PASS: fast enough"
    assert text.splitlines()[2] == f"| {cells} |"


def test_what_was_not_measured_is_not_run_and_the_reason_stands_beside_it(tables: ModuleType) -> None:
    why = "a CPU computes FP16 in FP32"
    fp16 = replace(
        row("fp16", 0.05, verdict=Verdict.UNKNOWN),
        reason="speed was not measured",
        unmeasured=dict.fromkeys(("latency_ms", "gain", "throughput_per_s", "memory_mb"), why),
    )
    rejected = measured(
        "int8:conv", verdict=Verdict.REJECTED, reason="17 % slower | than before\n  fix: none"
    )
    lines = tables.classifier_table(ledger(fp16, rejected)).splitlines()[2:]
    assert lines[0].startswith("| FP16 | fp16 | not run | not run | not run | 0.7995 | 0.05 | not run | ")
    assert "UNKNOWN: speed was not measured; latency, throughput, memory, gain not run: " + why in lines[0]
    assert lines[1].endswith(r"REJECTED: 17 % slower \| than before |")


def test_variants_with_random_weights_show_speed_only(tables: ModuleType) -> None:
    lines = tables.variant_table({"vit_b32": ledger(measured("int8"))}).splitlines()[2:]
    assert (
        lines[0]
        == "| ViT-B/32 | INT8 | int8 | 540.0 | 3.16 | 177.0 | 1.46× (1.40–1.63) | speed only | PASS |"
    )
    assert [line.count("not run") for line in lines[1:]] == [4, 4]
    assert "0.79" not in "".join(lines)


def test_the_variants_have_the_sizes_of_their_names(tables: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    from vitesse.sources.vit import ViT, ViTConfig

    found = {}
    for name, case in tables.VARIANTS.items():
        sizes = case.make.keywords
        hidden = sizes["hidden"]
        config = ViTConfig(
            (224, 224), sizes["patch"], hidden, sizes["layers"], sizes["heads"], 4 * hidden, 1000
        )
        with torch.device("meta"):
            found[name] = sum(weight.numel() for weight in ViT(config).parameters())
    # As published for 1,000 classes, but for the class token, to which its position is added beforehand; one block
    # of H/14 has 12·1280² weights, 9·1280 biases and two LayerNorms of 2·1280 values.
    half_of_h14 = 632_045_800 - 16 * (12 * 1280**2 + 13 * 1280)
    published = {"vit_b32": 88_224_232, "vit_l16": 304_326_632, "vit_h14": half_of_h14}
    widths = {"vit_b32": 768, "vit_l16": 1024, "vit_h14": 1280}
    assert found == {name: count - widths[name] for name, count in published.items()}
    assert "16 of its 32 blocks" in tables.VARIANTS["vit_h14"].title


def test_recipes_try_every_precision_and_each_is_used(tables: ModuleType) -> None:
    recipes = {file.stem: load_recipe(file) for file in (FOLDER / "recipes").glob("*.toml")}
    used = {name: case.recipe for name, case in tables.CASES.items()}
    for name in ("detr_fashion", "vit_fashion", "deimv2"):
        assert used[name] == recipes[name]
        assert set(recipes[name].precisions) == {each for each in PRECISIONS if "+" not in each}
    assert used["detr_levers"].levers == ("size", "decoder", "queries")
    assert used["vit_levers"].levers == ("size", "tokens")
    assert all(used[name] == recipes["vit_variant"] for name in tables.VARIANTS)
    single = {
        "detr_decoder": "decoder",
        "deimv2_queries": "queries",
        "vit_size": "size",
        "vit_tokens": "tokens",
    }
    assert {name: used[name].levers for name in single} == {name: (one,) for name, one in single.items()}
    assert all(used[name].max_drop == recipes["every_setting"].max_drop == 100 for name in single)
    others = {name for name in used if name not in tables.VARIANTS and name not in single}
    assert set(recipes) == others | {"vit_variant", "every_setting"}


def test_seconds_and_limit_replace_those_of_the_recipe(tables: ModuleType) -> None:
    case = tables.with_options(tables.CASES["deimv2"], 1.5, 20)
    assert (case.recipe.measure.seconds, case.recipe.data.limit, case.recipe.preset) == (1.5, 20, "deimv2")
    assert tables.with_options(tables.CASES["deimv2"], None, None) == tables.CASES["deimv2"]


def test_a_run_that_is_missing_is_named_with_the_command_that_makes_it(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.tables()
    for name in ("detr_fashion", "vit_fashion", "deimv2", "detr_levers", "vit_levers"):
        assert f"Not run: `python benchmarks/precision_tables.py {name}`." in text
    ledger(measured("int8")).save(tmp_path / "precision_deimv2.json")
    text = tables.tables()
    assert "Not run: `python benchmarks/precision_tables.py deimv2`." not in text
    assert "`python this` on A CPU, 2 cores, avx2; onnxruntime 1.31.1; 2026-11-22." in text
