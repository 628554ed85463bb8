"""`vitesse report`: the ledger of a run."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.ledger import load_ledger
    from vitesse.report.extras import load_extras
    from vitesse.report.html import write_report
    from vitesse.report.table import print_ledger

    ledger = load_ledger(options.folder / "ledger.json")
    print_ledger(ledger)
    print(f"\nreport: {write_report(options.folder, ledger, load_extras(options.folder))}")
    return 0
