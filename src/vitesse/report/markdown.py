"""The report as Markdown, for pull requests and terminals; the same figures as the HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from vitesse.ledger import Ledger
from vitesse.precision.search.found import Found
from vitesse.report import sections
from vitesse.report.extras import ReportExtras
from vitesse.report.figures import RowText, columns, row_texts
from vitesse.report.learning import HEADS as LEARNING_HEADS
from vitesse.report.learning import Learning
from vitesse.report.search_section import HEADS, SearchText, search_text
from vitesse.report.summary import conclude


def render_markdown(
    ledger: Ledger, extras: ReportExtras, searches: Sequence[Found] = (), learnt: Sequence[Learning] = ()
) -> str:
    """Return the report as GitHub-flavoured Markdown; text from the ledger is escaped."""
    conclusion = conclude(ledger)
    blocks = [
        f"# {_plain(conclusion.title)}",
        f"Vitesse on {_plain(sections.model_name(ledger))}, target {_plain(ledger.target)}.",
        _plain(conclusion.sentence()),
        "## Ledger",
        _ledger_table(ledger),
        "\n".join(_row_item(row) for row in row_texts(ledger)),
        *(block for one in learnt for block in _learning(one)),
        *(block for one in searches for block in _search(search_text(one))),
        *_section("Start-up and size", _start_up(ledger)),
        *_section("Where the time goes", "\n\n".join(filter(None, (_modules(extras), _operators(extras))))),
        *_section("What was not measured, and why", _not_measured(ledger, extras)),
        *_section("How it was measured", _plain(sections.method(ledger, extras))),
        *_section("Environment", _environment(ledger)),
        *_section("Repeat it", _code(ledger.command) if ledger.command else ""),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(title: str, body: str) -> tuple[str, ...]:
    return (f"## {title}", body) if body else ()


def _ledger_table(ledger: Ledger) -> str:
    shown = columns(ledger)
    heads = [f"{one.heading}, {one.unit}" if one.unit else one.heading for one in shown]
    rows = []
    for row in row_texts(ledger):
        stage = f"**{_plain(row.stage)}** (chosen)" if row.chosen else _plain(row.stage)
        cells = [_plain(row.cells[one.key].text) for one in shown]
        rows.append([str(row.number), stage, *cells, row.verdict.value])
    return _table(["", "step", *map(_plain, heads), "verdict"], rows, left=(1, len(heads) + 2))


def _row_item(row: RowText) -> str:
    parts = [f"{row.number}. **{_plain(row.stage)}**, {row.verdict.value}: {_plain(row.reason)}"]
    if row.changed:
        parts.append(f"   - changed: {_plain(row.changes())}")
    if row.unchanged:
        parts.append(f"   - looked for, not found: {_plain(', '.join(row.unchanged))}")
    parts.extend(f"   - {_plain(detail)}" for detail in row.details)
    parts.extend(f"   - {_plain(what)} not measured: {_plain(reason)}" for what, reason in row.missing)
    return "\n".join(parts)


def _search(text: SearchText) -> tuple[str, ...]:
    rows = [[_plain(one.block), *one.cells, _plain(one.fate)] for one in text.blocks]
    body = "\n\n".join(_plain(sentence) for sentence in text.sentences)
    table = _table(HEADS, rows, left=(0, len(HEADS) - 1))
    notes = "\n".join(f"- {_plain(note)}" for note in text.notes)
    return _section(
        f"Lowered block by block on {_plain(text.runtime)}", "\n\n".join(filter(None, (body, table, notes)))
    )


def _learning(found: Learning) -> tuple[str, ...]:
    sentence = f"{_plain(found.sentence())} Every step: [{_plain(found.log)}]({found.log})"
    table = _table(LEARNING_HEADS, found.cells(), left=()) if found.scores else ""
    return _section(f"How {_plain(found.stage)} learnt", "\n\n".join(filter(None, (sentence, table))))


def _start_up(ledger: Ledger) -> str:
    pairs = [
        [_plain(pair.label), _plain(pair.before), _plain(pair.after)] for pair in sections.start_up(ledger)
    ]
    return _table(["", "original", "chosen"], pairs, left=(0,)) if pairs else ""


def _modules(extras: ReportExtras) -> str:
    note = _plain(extras.modules_note)
    if not extras.modules:
        return note
    bars = (*extras.modules, sections.module_total(extras.modules))
    rows = [(bar.part, bar.before_ms, bar.after_ms) for bar in bars]
    return _times("step or part", rows, note)


def _operators(extras: ReportExtras) -> str:
    note = _plain(extras.operators_note)
    if not extras.operators:
        return note
    bars = (*sections.operator_bars(extras.operators), sections.operator_total(extras.operators))
    return _times("operator", [(bar.op, bar.before_ms, bar.after_ms) for bar in bars], note)


def _times(heading: str, rows: Iterable[tuple[str, float, float]], note: str) -> str:
    lines = [
        [_plain(name), sections.operator_time(before), sections.operator_time(after)]
        for name, before, after in rows
    ]
    table = _table([heading, "original, ms", "chosen, ms"], lines, left=(0,))
    return f"{table}\n\n{note}" if note else table


def _not_measured(ledger: Ledger, extras: ReportExtras) -> str:
    found = sections.not_measured(ledger, extras)
    return "\n".join(f"- {_plain(what)}: {_plain(why)}" for what, why in found)


def _environment(ledger: Ledger) -> str:
    lines = sections.environment_lines(ledger.environment)
    return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int]) -> str:
    rule = [":--" if index in left else "--:" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *rows))


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would read as markup; underscores inside words are harmless."""
    escaped = re.sub(r"([\\`*\[\]|#~])", r"\\\1", escape(" ".join(text.split()), quote=False))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def _code(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
