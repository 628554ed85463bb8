"""What `--help` lists is what the commands take."""

import pytest

from vitesse.backends import GPUS, TARGETS
from vitesse.cli import main
from vitesse.serve.limits import Limits


def _help(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    # argparse breaks lines, also at the hyphen of a target.
    return "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "targets"),
    [("optimize", TARGETS), ("bench", TARGETS), ("tune", TARGETS), ("build", GPUS)],
)
def test_help_names_every_target(
    command: str, targets: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"of{','.join(targets)}" in _help(command, capsys)


def test_help_shows_the_limits_of_a_server_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    said = _help("serve", capsys)
    assert f"as32MiB(default:{Limits().body_bytes // 2**20}MiB)" in said
    assert f"(default:{Limits().image_pixels})" in said
    assert "e+" not in said
