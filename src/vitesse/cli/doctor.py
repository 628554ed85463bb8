"""`vitesse doctor`: which runtimes work here."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.backends import available

    usable = 0
    for name, found in available().items():
        if found.available:
            usable += 1
            print(f"yes  {name} {found.version}  devices: {', '.join(found.devices)}")
        else:
            print(f"no   {name}: {found.reason}\n     {found.fix}")
    return 0 if usable else 3
