"""The command line: parse → one library call → exit code.

Exit codes: 0 pass; 1 not verified, or a stated latency budget is missed; 2 wrong usage or bad input;
3 a missing extra or device; 130 interrupted. One module per command; heavy modules are imported when a command runs, so
that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from vitesse._version import __version__
from vitesse.cli import (
    bench,
    build,
    check,
    diagnose,
    distill,
    doctor,
    export,
    export_triton,
    importance,
    optimize,
    predict,
    profile,
    prune,
    quantize,
    release,
    report,
    serve,
    tune,
)
from vitesse.errors import OutOfRange, VitesseError, missing_extra

Command = Callable[[argparse.Namespace], int]

COMMANDS = {
    "optimize": (optimize, "model + images → verified, measured, faster artifact"),
    "export": (export, "any model → one clean, verified ONNX file"),
    "quantize": (quantize, "a model and calibration images → INT8 or FP8 as Q/DQ"),
    "diagnose": (diagnose, "why the output of a model is zeros, NaN or wrong"),
    "importance": (importance, "which channels, heads, layers and queries of a network matter"),
    "prune": (prune, "a network cut to a share of its operations, and fine-tuned"),
    "distill": (distill, "a smaller network learns from a larger one"),
    "build": (build, "the graphs of a run → engines for GPUs, also for those that are not here"),
    "check": (check, "would this engine run here, and if not, why"),
    "bench": (bench, "latency, throughput and memory by batch size and number of streams"),
    "tune": (tune, "the batch size and streams for a latency bound and the memory at hand"),
    "profile": (profile, "where the time goes, by module or by operator"),
    "report": (report, "show the ledger of a run and write its report again"),
    "predict": (predict, "run the chosen artifact on images, a video, a camera or a stream"),
    "serve": (serve, "the chosen artifact behind HTTP; the original model stands by"),
    "release": (release, "what a server runs: status, promote, rollback"),
    "export-triton": (export_triton, "the chosen artifact as a Triton model repository"),
    "doctor": (doctor, "which runtimes work here; for the others why not"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to stderr as text, never as a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options = parser.parse_args(given)
    options.command_line = ["vitesse", *given]
    command: Command = options.run
    try:
        return command(options)
    except VitesseError as error:
        print(f"vitesse: {_as_typed(error, options)}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        missing = missing_extra(error)
        print(f"vitesse: {missing}", file=sys.stderr)
        return missing.exit_code
    except KeyboardInterrupt:
        print("vitesse: interrupted; repeat the command to go on from the finished steps", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _as_typed(error: VitesseError, options: argparse.Namespace) -> VitesseError:
    """Name the option that set what is out of its range; one whose value is None was not given."""
    if not isinstance(error, OutOfRange) or getattr(options, error.name, None) is None:
        return error
    return OutOfRange(f"--{error.name.replace('_', '-')}", error.value, expected=error.expected)


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="vitesse", description="Make a transformer vision model fast and prove that it is still right."
    )
    parser.add_argument("--version", action="version", version=f"vitesse {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        module.add(commands.add_parser(name, help=summary))
    return parser
