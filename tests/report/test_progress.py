from io import StringIO

from rich.console import Console

from vitesse.report.progress import progress_bar


def shown(*, terminal: bool) -> str:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None)
    with progress_bar(console) as progress:
        progress.stage("fuse", "measuring accuracy", 10)
        progress.advance(3)
        progress.row("fuse", "FAIL", "shape [1, 3] became [/bold]")
        progress.stage("int8", "calibrating", 5)
    return stream.getvalue()


def test_a_row_is_printed_with_its_reason_to_the_letter() -> None:
    assert "FAIL      fuse  shape [1, 3] became [/bold]" in shown(terminal=False)


def test_the_bar_shows_stage_activity_and_how_many_are_done() -> None:
    text = shown(terminal=True)
    assert "fuse" in text
    assert "measuring accuracy" in text
    assert "int8 calibrating" in text


def test_nothing_is_printed_when_no_stage_begins() -> None:
    stream = StringIO()
    with progress_bar(Console(file=stream, force_terminal=True)):
        pass
    assert stream.getvalue() == ""
