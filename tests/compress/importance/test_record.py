"""What is written is read back; a page shows it; what belongs to another network is refused."""

from __future__ import annotations

import argparse
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fashion import FOLDER
from shared_data import shared

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from rich.console import Console  # noqa: E402

from compress.importance.networks import cut, tiny_vit  # noqa: E402
from vitesse.cli import importance as cli  # noqa: E402
from vitesse.compress.importance.page import render_page  # noqa: E402
from vitesse.compress.importance.record import (  # noqa: E402
    Importance,
    read_importance,
    scores_for,
    write_importance,
)
from vitesse.compress.importance.scores import scores  # noqa: E402
from vitesse.compress.importance.sensitivity import Curve, Sensitivity, Together  # noqa: E402
from vitesse.compress.importance.table import print_importance  # noqa: E402
from vitesse.compress.importance.units import Kind, groups  # noqa: E402
from vitesse.errors import DataError  # noqa: E402

HEADS = "blocks.0.attention"


def found() -> Importance:
    trainable = tiny_vit()
    measured = Sensitivity(
        93.5,
        {HEADS: Curve((0.25, 0.5), (1, 2), (0.4, 2.25)), "blocks": Curve((1 / 3,), (1,), (-0.1,))},
        {HEADS: np.array([0.0, 1.5, -0.5, 0.4])},
        (Together(Kind.HEADS, ((HEADS, 2), (HEADS, 0)), 0.75),),
        {Kind.HEADS: -0.25},
    )
    return Importance(
        "net <b>.npz", "vit", "l1", 0, groups(trainable), scores(trainable, "l1"), "top1", 200, measured
    )


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    write_importance(found(), path)
    again, wanted = read_importance(path), found()
    assert render_page(again) == render_page(wanted)
    for name, values in wanted.scores.items():
        np.testing.assert_array_equal(again.scores[name], values)
    assert again.groups == wanted.groups and scores_for(path, tiny_vit()).keys() == wanted.scores.keys()


def test_scores_of_another_network_are_refused_by_the_group_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    write_importance(found(), path)
    whole = tiny_vit()
    pruned = replace(whole, module=cut(whole, HEADS, [1]))
    with pytest.raises(DataError, match="is not about this network") as raised:
        scores_for(path, pruned)
    assert HEADS in str(raised.value) and "before the network was pruned" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}', "[1, 2]"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "importance.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cannot read the importance in"):
        read_importance(path)


def test_a_file_with_a_score_too_few_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    write_importance(found(), path)
    raw = json.loads(path.read_text())
    raw["groups"][0]["scores"].pop()
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="scores for"):
        read_importance(path)


def test_the_page_is_safe_self_contained_and_names_every_group() -> None:
    page = render_page(found())
    assert "<b>" not in page and "net &lt;b&gt;.npz" in page
    assert "<script" not in page and not re.search(r'(src|href)="(?!#)', page)
    for name in found().scores:
        assert name in page
    assert "What matters, and what can go" in page and "all of them at once −0.75" in page
    assert "heads −0.25" in page and page.count("s-gain") == 2, "one rule in the style, one head that hurts"


def test_the_page_of_scores_alone_says_that_nothing_was_masked() -> None:
    page = render_page(replace(found(), sensitivity=None))
    assert "nothing was masked" in page and "without ¼" not in page


def test_the_table_sorts_by_what_a_quarter_costs_and_signs_gains() -> None:
    stream = io.StringIO()
    print_importance(found(), Console(file=stream, width=200))
    lines = [line.split() for line in stream.getvalue().splitlines() if line.startswith("  blocks")]
    assert [line[0] for line in lines][:2] == [HEADS, "blocks"]
    assert (lines[0][-1], lines[1][-1]) == ("−0.40", "+0.10")
    assert "2 heads cost 0.1 points or less each" in stream.getvalue()


def test_the_command_scores_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shared("vit_fashion") / "vit_fashion.npz"
    parser = argparse.ArgumentParser()
    cli.add(parser)
    given = [str(model), "--data", str(FOLDER / "vit"), "--spec", str(FOLDER / "vit.toml"), "--images", "4"]
    assert cli.run(parser.parse_args([*given, "--sensitivity", "--out", str(tmp_path)])) == 0
    told = capsys.readouterr().out
    assert "scores by taylor on 4 images; top-1 of the whole network" in told and "importance.html" in told
    record = read_importance(tmp_path / "importance.json")
    assert record.metric == "top1" and record.sensitivity is not None
    assert set(record.sensitivity.curves) == set(record.scores) == {group.name for group in record.groups}
    assert (tmp_path / "importance.html").is_file()
