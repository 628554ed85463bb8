from pathlib import Path

import pytest

from vitesse.errors import UsageError
from vitesse.scoring.lines import Lines

MADE_BY = {"artifact_sha256": "0" * 64, "threshold": "0.5"}


def test_an_unfinished_file_is_gone_on_with_and_any_other_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Lines(out, MADE_BY) as lines:
        assert not lines.known
        lines.add(['{"image": "a"}', '{"image": "b"}'])
    with out.open("a") as stream:
        stream.write('{"image": "cut of')  # the machine went away in the middle of a line
    with pytest.raises(UsageError, match="the beginning of other work"):
        Lines(out, {**MADE_BY, "threshold": "0.3"})
    with Lines(out, MADE_BY) as lines:
        assert lines.known == {"a", "b"}
        lines.add(['{"image": "c"}'])
        lines.finish()
    assert out.read_text() == '{"image": "a"}\n{"image": "b"}\n{"image": "c"}\n'
    with pytest.raises(UsageError, match="exists and is finished"):
        Lines(out, MADE_BY)
