"""The command line: parse → one library call → exit code.

Exit codes: 0 pass; 1 not verified, or a stated latency budget is missed; 2 wrong usage or bad input;
3 a missing extra or device; 130 interrupted. Heavy modules are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse._version import __version__
from vitesse.errors import UsageError, VitesseError, missing_extra

if TYPE_CHECKING:
    from vitesse.recipe import Recipe

Command = Callable[[argparse.Namespace], int]


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
        print(f"vitesse: {error}", file=sys.stderr)
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


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="vitesse", description="Make a transformer vision model fast and prove that it is still right."
    )
    parser.add_argument("--version", action="version", version=f"vitesse {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_optimize(
        commands.add_parser("optimize", help="model + images → verified, measured, faster artifact")
    )
    _add_export(commands.add_parser("export", help="any model → one clean, verified ONNX file"))
    _add_profile(commands.add_parser("profile", help="where the time goes, by module or by operator"))
    _add_report(commands.add_parser("report", help="show the ledger of a run and write its report again"))
    _add_predict(commands.add_parser("predict", help="run the chosen artifact on images"))
    doctor = commands.add_parser("doctor", help="which runtimes work here; for the others why not")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_optimize(parser: argparse.ArgumentParser) -> None:
    parser.description = "Clean, fuse, quantise and build a model; verify and measure every step."
    _add_source(parser)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="COCO, class folders or images"
    )
    parser.add_argument("--calib-data", type=Path, metavar="FOLDER", help="other images to calibrate INT8 on")
    parser.add_argument("--target", help="cpu (default), onnxruntime or openvino")
    parser.add_argument(
        "--out", type=Path, default=Path("run"), metavar="FOLDER", help="the run folder (default: run)"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="accuracy budget in points (default: 0.5)"
    )
    parser.add_argument(
        "--latency-budget", type=milliseconds, metavar="TIME", help="the latency needed, as 16ms"
    )
    parser.add_argument("--precisions", type=_names, metavar="LIST", help="of fp32,int8 (default: both)")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N validation images only")
    parser.add_argument(
        "--calib-images", type=int, metavar="N", help="images for calibration, up to 512 (default: 500)"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="seconds per latency measurement (default: 4)"
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="TOML", help="all options in a file; the command line wins"
    )
    parser.set_defaults(run=_optimize)


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Add what every command that takes a model knows about it."""
    parser.add_argument(
        "model",
        help="an .onnx file, a DETR checkpoint (.pth, .safetensors), a ViT checkpoint (.npz), hf:NAME or "
        "hf:FOLDER, timm:NAME, flax:PACKAGE.MODULE:FUNCTION, or a published model such as detr_resnet50",
    )
    parser.add_argument("--spec", type=Path, metavar="TOML", help="how the model is fed and read, in a file")
    parser.add_argument(
        "--preset", help="how to feed a foreign ONNX file: deimv2, rtdetr, detr, vit, imagenet"
    )
    group = parser.add_argument_group("models that are not ONNX yet")
    group.add_argument(
        "--weights", type=Path, metavar="FILE", help="take this file instead of downloading one"
    )
    group.add_argument(
        "--size", type=height_width, metavar="HxW", help="image height × width (default: the model's own)"
    )
    group.add_argument(
        "--dynamic",
        type=axes,
        metavar="AXES",
        help="of batch,height,width, or none: what stays open (default: batch)",
    )
    group.add_argument("--opset", type=int, metavar="N", help="ONNX operator set, 18 or more (default: 18)")
    group.add_argument(
        "--set",
        type=setting,
        action="append",
        dest="settings",
        metavar="KEY=VALUE",
        help="what the weights do not show, as heads=8; may be repeated",
    )

    parser.add_argument(
        "--lower",
        type=_names,
        metavar="LIST",
        help="operators to rewrite into simpler ones for a runtime that lacks them or gets them wrong, as grid_sample",
    )
    parser.add_argument(
        "--gridsample",
        type=gridsample,
        dest="lower",
        metavar="gather",
        help="the same as --lower grid_sample",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = "Export a model to ONNX and compare the graph with the model itself."
    _add_source(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument(
        "--keep-aux", action="store_true", help="keep the heads of every decoder layer, as in training"
    )
    parser.set_defaults(run=_export)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show where the time of a model goes, or of a run before and after."
    _add_source(parser)
    parser.add_argument("--by", choices=["module", "op"], default="module", help="default: module")
    parser.add_argument(
        "--depth", type=int, default=0, metavar="N", help="levels of modules below each part (default: 0)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="images to feed (default: random ones)")
    parser.add_argument("--target", help="build the model for this runtime first: onnxruntime or openvino")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="measured calls (default: 20)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: every usable core")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=_profile)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.set_defaults(run=_report)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="write the picture with its boxes (one image only)"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score shown (default: 0.5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    parser.set_defaults(run=_predict)


def _optimize(options: argparse.Namespace) -> int:
    from vitesse.pipeline import optimize
    from vitesse.report.progress import progress_bar
    from vitesse.report.table import print_ledger

    with progress_bar() as progress:
        run = optimize(
            options.model,
            data=options.data,
            out=options.out,
            recipe=recipe_from(options),
            command=options.command_line,
            progress=progress,
        )
    print_ledger(run.ledger)
    print(f"\nreport: {run.folder / 'report.html'}")
    budget = run.ledger.latency_budget
    return 0 if run.verified and (budget is None or budget["met"]) else 1


def _export(options: argparse.Namespace) -> int:
    from vitesse.export.to_file import export_to
    from vitesse.recipe import Recipe, merge
    from vitesse.report.progress import progress_bar

    with progress_bar() as progress:
        artifact = export_to(
            options.out,
            options.model,
            merge(Recipe(), _given_about_model(options)),
            keep_aux=options.keep_aux,
            progress=progress,
        )
    print(f"{options.out}  {artifact.bytes / 1e6:.1f} MB")
    for name, value in artifact.provenance.options.items():
        print(f"  {name}: {value}")
    return 0


def _profile(options: argparse.Namespace) -> int:
    from vitesse.environment import usable_cores
    from vitesse.profile.command import profile_target
    from vitesse.profile.subject import pictures, subject
    from vitesse.recipe import Recipe, merge

    recipe = merge(Recipe(), _given_about_model(options))
    with subject(options.model, recipe, options.target) as artifacts:
        found = profile_target(
            artifacts,
            pictures(options.data),
            by=options.by,
            depth=options.depth,
            runs=options.runs,
            threads=options.threads or usable_cores(),
        )
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        found.show()
    return 0


def recipe_from(options: argparse.Namespace) -> Recipe:
    """Merge the recipe file and the options that were given; the command line wins."""
    from vitesse.recipe import Recipe, load_recipe, merge

    recipe = load_recipe(options.recipe) if options.recipe else Recipe()
    given = {
        **_given_about_model(options),
        "target": options.target,
        "max_drop": options.max_drop,
        "latency_budget_ms": options.latency_budget,
        "precisions": options.precisions,
        "data": _present(
            limit=options.limit,
            calib_images=options.calib_images,
            calib_data=None if options.calib_data is None else str(options.calib_data),
        ),
        "measure": _present(seconds=options.seconds),
    }
    return merge(recipe, _present(**given))


def _given_about_model(options: argparse.Namespace) -> dict[str, object]:
    """The options of `_add_source`, under the recipe's names."""
    return _present(
        preset=options.preset,
        spec=None if options.spec is None else str(options.spec),
        lower=options.lower,
        source=_present(
            weights=None if options.weights is None else str(options.weights),
            opset=options.opset,
            dynamic=options.dynamic,
            size=options.size,
            settings=None if options.settings is None else dict(options.settings),
        ),
    )


def _report(options: argparse.Namespace) -> int:
    from vitesse.ledger import load_ledger
    from vitesse.report.extras import load_extras
    from vitesse.report.html import write_report
    from vitesse.report.table import print_ledger

    ledger = load_ledger(options.folder / "ledger.json")
    print_ledger(ledger)
    print(f"\nreport: {write_report(options.folder, ledger, load_extras(options.folder))}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from vitesse.predict import load, save_picture, show

    if options.draw is not None and len(options.images) > 1:
        raise UsageError(
            "--draw takes one image", expected="one image file", fix="call predict once per image"
        )
    with load(options.folder) as model:
        for path in options.images:
            result = model(path)
            print(show(result, path, threshold=options.threshold, as_json=options.json))
            if options.draw is not None:
                save_picture(result.draw(path), options.draw)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from vitesse.backends import available

    usable = 0
    for name, found in available().items():
        if found.available:
            usable += 1
            print(f"yes  {name} {found.version}  devices: {', '.join(found.devices)}")
        else:
            print(f"no   {name}: {found.reason}\n     {found.fix}")
    return 0 if usable else 3


def milliseconds(text: str) -> float:
    """Parse `16ms`, `0.016s` or `16` (milliseconds)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)?\s*", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 16ms or 0.016s")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def height_width(text: str) -> list[int]:
    """Parse `800x1333`, height × width in pixels."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write HEIGHTxWIDTH, as 800x1333")
    return [int(found[1]), int(found[2])]


def axes(text: str) -> list[str]:
    """Parse `batch,height,width`; `none` leaves nothing open."""
    return [] if text.strip() == "none" else _names(text)


def gridsample(text: str) -> list[str]:
    """Turn `gather`, the one other form GridSample has, into the name of its rewrite."""
    if text != "gather":
        raise argparse.ArgumentTypeError(f"{text!r} is no form of GridSample; write gather")
    return ["grid_sample"]


def setting(text: str) -> tuple[str, str]:
    """Parse `heads=8`."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a setting; write KEY=VALUE, as heads=8")
    return key, value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _present(**values: object) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
