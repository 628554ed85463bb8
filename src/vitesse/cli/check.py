"""`vitesse check`: would this engine run here, and if not, why?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.cli.values import whole
from vitesse.errors import UsageError

if TYPE_CHECKING:
    from vitesse.backends.cuda.driver import Device


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Judge a TensorRT engine by its manifest, the installed library and the GPU, without loading it. "
        "Exit code 0: it runs; 1: it does not, or that cannot be told here; 2: no engine there."
    )
    parser.add_argument(
        "engine", type=Path, metavar="ENGINE", help="a .plan file, or a run folder: all its engines"
    )
    parser.add_argument(
        "--against", type=Path, metavar="MODEL", help="an .onnx file: was the engine built from it?"
    )
    parser.add_argument(
        "--device", type=whole(0), default=0, metavar="N", help="number of the GPU (default: 0)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from vitesse.backends.tensorrt.fitness import current_device

    plans = _plans(options.engine)
    device, why = current_device(options.device)
    if device is None:
        print(f"no GPU here: {why}")
    else:
        major, minor = device.compute_capability
        print(f"on {device.name}, compute capability {major}.{minor}")
    fits = [_judge(plan, device, options.against) for plan in plans]
    return 0 if all(fits) else 1


def _plans(path: Path) -> list[Path]:
    from vitesse.backends.tensorrt.manifest import PLAN_SUFFIX
    from vitesse.engines import ENGINES

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path} is not there", expected=f"a {PLAN_SUFFIX} file or a run folder")
    found = sorted((path / ENGINES).glob(f"*{PLAN_SUFFIX}")) or sorted(path.glob(f"*{PLAN_SUFFIX}"))
    if not found:
        raise UsageError(
            f"{path} holds no engine",
            expected=f"{PLAN_SUFFIX} files in {path / ENGINES}",
            fix=f"vitesse build {path} --target tensorrt",
        )
    return found


def _built_for(plan: Path) -> str:
    """What an engine's manifest says it is, in brackets; nothing where there is none that can be read."""
    from vitesse.backends.tensorrt.manifest import ManifestError, read_manifest

    try:
        manifest = read_manifest(plan)
    except ManifestError:
        return ""
    gpus = ", ".join(manifest.compute_capabilities)
    return f"  ({manifest.precision} for {gpus}, {manifest.module} {manifest.version})"


def _judge(plan: Path, device: Device | None, against: Path | None) -> bool:
    """Print one verdict; return whether the engine runs here and, where asked, was built from that model."""
    from vitesse.backends.tensorrt.fitness import fitness
    from vitesse.backends.tensorrt.origin import built_from

    judged = fitness(plan, device=device)
    print(f"{judged.verdict:<10} {plan}{_built_for(plan)}")
    for reason in judged.reasons:
        print(f"  {reason}")
    if judged.fix:
        print(f"  next step: {judged.fix}")
    if against is None:
        return judged.usable
    origin = built_from(plan, against)
    print(f"  {'built from' if origin.same else 'not built from'} {against}: {origin.reason}")
    if origin.fix:
        print(f"  next step: {origin.fix}")
    return judged.usable and origin.same
