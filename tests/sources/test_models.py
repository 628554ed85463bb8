"""Every row of the table in docs/models.md: exported, compared with the framework, fused and quantised.

`pytest tests/sources/test_models.py --write-models-table` writes the table from the rows that ran; a row whose
framework is not installed keeps what was recorded where it is.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusing import graph

pytest.importorskip("torch", reason="the sources need torch: pip install 'vitesse[torch]'")

from sources import models_table
from sources.classifier_rows import ROWS as CLASSIFIER_ROWS
from sources.detector_rows import ROWS as DETECTOR_ROWS
from sources.examining import Examined, cosine, difference_to, examine
from sources.model_rows import ModelRow
from sources.own_rows import ROWS as OWN_ROWS
from vitesse.errors import MissingExtra
from vitesse.spec import Decode

ROWS: tuple[ModelRow, ...] = (*OWN_ROWS, *DETECTOR_ROWS, *CLASSIFIER_ROWS)
INT8_COSINE = 0.95
SLOW = {row.name for row in (*OWN_ROWS, *DETECTOR_ROWS)} | {"Swin", "Swin v2"}  # tracing takes its time
ROWS_BY_NAME = {row.name: row for row in ROWS}
Table = dict[str, Examined]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """What the rows gave; written at the end where that was asked for."""
    found: Table = {}
    yield found
    if request.config.getoption("--write-models-table"):
        models_table.write(ROWS, found)


def examined(row: ModelRow, folder: Path) -> Examined:
    try:
        return examine(row, folder)
    except MissingExtra as error:
        pytest.skip(str(error).splitlines()[0])
    except ModuleNotFoundError as error:
        if str(error.name).startswith("vitesse"):
            raise
        pytest.skip(f"needs {error.name}")


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] * (row.name in SLOW), id=row.name) for row in ROWS],
)
def test_a_row_shows_what_it_promises(row: ModelRow, table: Table, tmp_path: Path) -> None:
    found = examined(row, tmp_path)
    check(row, found)
    table[row.name] = found


def check(row: ModelRow, found: Examined) -> None:
    """Compare a row with what came out; every count is exact."""
    assert row.loader in found.title
    assert found.parameters == row.parameters
    assert found.layer_norms == row.layer_norms
    assert (found.attention_fused, row.attention_blocks) == (row.attention_fused, row.attention_blocks)
    assert found.attention_fused <= row.attention_blocks
    assert row.note or found.attention_fused == row.attention_blocks, "a block that is not fused needs a note"
    assert found.dynamic == row.dynamic
    assert not found.operators.keys() & {"BatchNormalization", "Identity", "Dropout"}
    assert found.largest > 0.1, "answers so small say nothing about differences"
    assert found.difference <= row.tolerance
    assert found.fused_difference <= row.tolerance
    assert (found.int8_layers > 0) == row.int8
    if row.int8:
        assert np.isfinite(found.int8_cosine)
    if row.int8 and found.decode is Decode.LOGITS:
        # a detector may choose other queries; a classifier has but one answer
        assert found.int8_cosine > INT8_COSINE


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": 24235},
        {"layer_norms": 4},
        {"attention_fused": 1},
        {"attention_blocks": 1},
        {"attention_blocks": 3},
        {"dynamic": frozenset()},
        {"int8": False},
        {"tolerance": 1e-9},
        {"loader": "DeiTForImageClassification"},
    ],
    ids=str,
)
def test_a_wrong_promise_is_noticed(wrong: dict[str, Any], table: Table) -> None:
    row = ROWS_BY_NAME["ViT (HF), one size"]
    if row.name not in table:
        pytest.skip("its row did not run")
    check(row, table[row.name])
    with pytest.raises(AssertionError):
        check(replace(row, **wrong), table[row.name])


@pytest.mark.parametrize(
    "worse",
    [
        {"difference": 1e-3},
        {"fused_difference": float("inf")},
        {"largest": 0.01},
        {"int8_layers": 0},
        {"int8_cosine": 0.5},
        {"int8_cosine": float("nan")},
        {"operators": {"BatchNormalization": 1}},
    ],
    ids=str,
)
def test_a_worse_result_is_noticed(worse: dict[str, Any], table: Table) -> None:
    row = ROWS_BY_NAME["ViT (HF), one size"]
    if row.name not in table:
        pytest.skip("its row did not run")
    with pytest.raises(AssertionError):
        check(row, replace(table[row.name], **worse))


def test_a_graph_with_one_changed_weight_differs_from_its_framework() -> None:
    model = graph("y = Mul(x, w)", inputs="float[N,2] x", outputs="float[N,2] y", w=3.0)
    feeds = {"x": np.ones((2, 2), np.float32)}
    assert difference_to({"y": np.full((2, 2), 3, np.float32)}, model, feeds) == 0
    assert difference_to({"y": np.full((2, 2), 4, np.float32)}, model, feeds) == 1
    assert difference_to({"y": np.full((2, 2), np.nan, np.float32)}, model, feeds) == np.inf
    with pytest.raises(AssertionError, match=r"\(2, 2\) for \(1, 2\)"):
        difference_to({"y": np.full((1, 2), 3, np.float32)}, model, feeds)
    with pytest.raises(AssertionError, match="the graph gives"):
        difference_to({"z": np.full((2, 2), 3, np.float32)}, model, feeds)


def test_the_cosine_of_opposite_answers_is_minus_one_and_of_broken_ones_nan() -> None:
    one = np.array([1.0, 2.0], np.float32)
    assert cosine(one, one) == pytest.approx(1)
    assert cosine(one, -one) == pytest.approx(-1)
    assert np.isnan(cosine(one, one * np.float32(np.nan)))


def test_every_family_of_transformers_has_a_row() -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'vitesse[huggingface]'")
    from vitesse.sources.huggingface.loading import FAMILIES

    assert {family.loader for family in FAMILIES} == {row.loader for row in ROWS if row.loader}


def test_names_of_rows_are_unique() -> None:
    assert len(ROWS_BY_NAME) == len(ROWS)


def test_the_records_are_those_of_the_rows(request: pytest.FixtureRequest) -> None:
    """A row that is new or changed has to be run again with --write-models-table."""
    if request.config.getoption("--write-models-table"):
        pytest.skip("they are being written")
    records = models_table.read_records()
    assert [entry["name"] for entry in records] == [row.name for row in ROWS]
    for entry, row in zip(records, ROWS, strict=True):
        promised = models_table.expectation(row)
        assert {key: entry[key] for key in promised} == promised
        assert entry["measured"]["difference"] <= row.tolerance
        assert entry["measured"]["fused_difference"] <= row.tolerance


def test_the_page_is_made_from_the_records(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-models-table"):
        pytest.skip("it is being written")
    page, records = models_table.PAGE.read_text(encoding="utf-8"), models_table.read_records()
    assert models_table.with_table(page, records) == page
    records[0]["layer_norms"] += 1
    assert models_table.with_table(page, records) != page
