"""The report as one HTML file that opens offline: no script, no request, style and pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitesse.ledger import Ledger
from vitesse.precision.search.found import Found
from vitesse.report import sections
from vitesse.report.extras import ReportExtras
from vitesse.report.figures import columns, row_texts
from vitesse.report.learning import Learning, learning_plot, learnings
from vitesse.report.markdown import render_markdown
from vitesse.report.pictures import embed
from vitesse.report.plot import accuracy_plot, left_out
from vitesse.report.search_section import HEADS, load_searches, plots_of, search_text
from vitesse.report.summary import conclude
from vitesse.storage import write_atomically

WIDE_PLOT = (1040, 440)  # pixels; shown from 720 px of page width
NARROW_PLOT = (360, 400)


def write_report(run: Path, ledger: Ledger, extras: ReportExtras) -> Path:
    """Write `report.html` and `report.md` into the run folder, each atomically, and return the HTML's path.

    Raises:
        StorageError: the folder cannot be written; an earlier report is kept.
        RunFolderError: a picture cannot be decoded, or the outcome of a search not be read.
    """
    searches, learnt = load_searches(run), learnings(run, ledger)
    page = render_html(ledger, extras, searches, learnt)
    write_atomically(run / "report.md", render_markdown(ledger, extras, searches, learnt).encode())
    write_atomically(run / "report.html", page.encode())
    return run / "report.html"


def render_html(
    ledger: Ledger, extras: ReportExtras, searches: Sequence[Found] = (), learnt: Sequence[Learning] = ()
) -> str:
    """Return the whole page; every text from the ledger is escaped by the template engine.

    Raises:
        RunFolderError: a picture cannot be decoded.
    """
    conclusion = conclude(ledger)
    bars = sections.operator_bars(extras.operators)
    figures = [column for column in columns(ledger) if column.key != "spread"]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            ledger=ledger,
            extras=extras,
            model=sections.model_name(ledger),
            milliseconds=sections.operator_time,
            conclusion=conclusion,
            facts=sections.facts(ledger, conclusion),
            columns=figures,
            rows=row_texts(ledger),
            chosen=None if ledger.chosen is None else ledger.rows[ledger.chosen].stage,
            # The plots escape what they are given; nothing else is marked as safe.
            plots=[Markup(accuracy_plot(ledger, width=w, height=h)) for w, h in (WIDE_PLOT, NARROW_PLOT)],
            left_out=left_out(ledger),
            searches=[
                (search_text(one), [Markup(plot) for plot in plots_of(one, (WIDE_PLOT, NARROW_PLOT))])
                for one in searches
            ],
            search_heads=HEADS,
            learnings=[(one, [Markup(plot) for plot in _learning_plots(one)]) for one in learnt],
            pictures=[(one, embed(one.before_png), embed(one.after_png)) for one in extras.pictures],
            bars=bars,
            total=sections.operator_total(extras.operators),
            modules=extras.modules,
            module_total=sections.module_total(extras.modules),
            start_up=sections.start_up(ledger),
            not_measured=sections.not_measured(ledger, extras),
            method=sections.method(ledger, extras),
            environment=sections.environment_lines(ledger.environment),
        )
    )


def _learning_plots(found: Learning) -> list[str]:
    plots = [learning_plot(found, width=width, height=height) for width, height in (WIDE_PLOT, NARROW_PLOT)]
    return plots if all(plots) else []


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
