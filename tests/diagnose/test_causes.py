"""Every known cause has a broken model, and each is named right."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from diagnose.broken import BROKEN, Broken
from vitesse.diagnose.causes import CAUSES
from vitesse.diagnose.command import Diagnosis, diagnose
from vitesse.metadata import write_spec


def diagnosed(broken: Broken, folder: Path, pictures: Path) -> Diagnosis:
    """Write both models and diagnose."""
    model, against = folder / "candidate.onnx", folder / "original.onnx"
    onnx.save(write_spec(broken.original(), broken.spec()), against)
    onnx.save(broken.candidate(), model)
    return diagnose(model, against, pictures, images=4)


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{at}-{one.cause}" for at, one in enumerate(BROKEN)])
def test_every_broken_model_is_named_right(broken: Broken, tmp_path: Path, pictures: Path) -> None:
    found = diagnosed(broken, tmp_path, pictures)
    story = "\n".join(found.lines())
    assert found.healthy == broken.healthy, story
    if broken.healthy:
        named = {one.id: one for one in found.hazards}
        assert broken.cause in named, story
        assert not broken.where or named[broken.cause].tensor == broken.where, story
        return
    assert found.cause == broken.cause, story
    assert not broken.where or found.causes[0].tensor == broken.where, story
    if broken.tensor:
        assert found.symptom is not None
        assert (found.symptom.tensor, found.symptom.module) == (broken.tensor, broken.module), story


def test_every_cause_has_a_broken_model() -> None:
    assert {cause.id for cause in CAUSES} == {broken.cause for broken in BROKEN}
    assert len({cause.id for cause in CAUSES}) == len(CAUSES)
