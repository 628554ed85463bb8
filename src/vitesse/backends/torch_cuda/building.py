"""From an ONNX artifact to an engine file: plan every shape, measure what is not known yet, keep what was chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import onnx
import onnx_ir as ir
import torch

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.cuda.captures import TURNS
from vitesse.backends.protocol import Built
from vitesse.backends.tensorrt.bucket_profiles import profiles_for
from vitesse.backends.tensorrt.options import Profile
from vitesse.backends.tensorrt.profiles import default_profiles
from vitesse.backends.torch_cuda.archive import SUFFIX, Archive, pack
from vitesse.backends.torch_cuda.candidates import Kernels, kernels
from vitesse.backends.torch_cuda.device import versions
from vitesse.backends.torch_cuda.manifest import EngineManifest, Shapes
from vitesse.backends.torch_cuda.plan import Making, Plan
from vitesse.backends.torch_cuda.tactics import MOST_TACTICS, TacticCache
from vitesse.backends.torch_cuda.weights import Constants
from vitesse.errors import BackendError, ModelError
from vitesse.progress import Progress, Silent
from vitesse.sources.signature import graph_inputs
from vitesse.storage import sha256_of

_NAMES = {"float8_e4m3fn": "fp8", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        profiles: the smallest, usual and largest shape of each is planned for; empty = made from `batch` (which alone
            may be free then) and from the spec's buckets.
        batch: the batches that are planned for, ascending.
        seconds: of measuring the final candidates of one step at one size; compiling comes on top.
        tactics: of each kernel that are tried for a step, its best guesses first: fewer shorten the build.
        command: what to type to build it again.
        check: hold every plan against plain torch.
    """

    profiles: tuple[Profile, ...] = ()
    batch: tuple[int, int, int] = (1, 8, 32)
    seconds: float = 0.2
    tactics: int = MOST_TACTICS
    command: str = ""
    check: bool = True


def build_engine(
    artifact: Artifact,
    model: onnx.ModelProto,
    store: Store,
    options: BuildOptions,
    device: torch.device,
    found: Kernels | None = None,
    progress: Progress | None = None,
) -> Built:
    """Plan and measure every shape and keep the engine in `store`; batches that do not fit in memory are left out.

    Args:
        model: the content of the artifact's file.
        found: the kernels to choose from; None = all that load here.

    Raises:
        UsageError: more than the batch is free, and no profiles were given.
        BackendError: no shape fits in memory, a shape depends on values, or a plan is wrong.
    """
    start = perf_counter()
    found = found or kernels()
    wanted = shapes_for(artifact, model, options)
    cache = TacticCache(versions(device))
    with TURNS.capturing(), torch.no_grad():
        made = _planned(artifact, model, wanted, device, cache, found, options, progress or Silent())
        compiled = _compiled(model, made.shapes, device, cache, found)
    manifest = EngineManifest(
        made_on=cache.made_on,
        onnx_sha256=artifact.sha256 or sha256_of(artifact.path),
        precision=made.precision,
        shapes=made.shapes,
        spec=artifact.spec,
        command=options.command,
        seconds=round(perf_counter() - start, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    content = pack(Archive(manifest, artifact.path.read_bytes(), cache.to_json(), compiled))
    capability = cache.made_on["capability"].replace(".", "")
    provenance = Provenance(f"torch-cuda-sm{capability}-{made.precision}", artifact.sha256)
    kept = store.put(content, artifact.spec, provenance, backend="torch-cuda", suffix=SUFFIX)
    return Built(kept, made.changes, (*made.notes, _took(cache), *dropped(cache)))


def shapes_for(artifact: Artifact, model: onnx.ModelProto, options: BuildOptions) -> tuple[Shapes, ...]:
    """Return every set of input shapes to plan for, the largest last.

    Raises:
        UsageError: more than the batch is free, and no profiles were given; SpecError: buckets that do not fit.
    """
    inputs = graph_inputs(model)
    profiles = options.profiles
    if not profiles and artifact.spec.preprocessing.buckets:
        profiles = profiles_for(artifact.spec, inputs, options.batch)
    elif not profiles:
        profiles = default_profiles(inputs, options.batch)
    fixed = {info.name: tuple(int(size) for size in info.shape) for info in inputs if _is_fixed(info.shape)}
    made: list[Shapes] = []
    for profile in profiles or (Profile({}),):
        for size in ("min", "opt", "max"):
            shapes = {**fixed, **{name: getattr(span, size) for name, span in profile.inputs.items()}}
            if shapes not in made:
                made.append(shapes)
    return tuple(made)


def dropped(cache: TacticCache) -> tuple[str, ...]:
    """Say which kernels were dropped as wrong or failing, why, and for how many sizes: one line each."""
    said: Counter[tuple[str, str]] = Counter()
    for choice in cache.choices.values():
        errors = {(trial.tactic.kernel, trial.error) for trial in choice.trials if trial.error}
        said.update(errors)
    return tuple(
        f"{kernel} dropped for {count} sizes: {error}" for (kernel, error), count in said.most_common()
    )


@dataclass(frozen=True)
class _Made:
    shapes: tuple[Shapes, ...]
    changes: Mapping[str, int]
    notes: tuple[str, ...]
    precision: str


def _planned(
    artifact: Artifact,
    model: onnx.ModelProto,
    wanted: Sequence[Shapes],
    device: torch.device,
    cache: TacticCache,
    found: Kernels,
    options: BuildOptions,
    progress: Progress,
) -> _Made:
    """Plan one shape after the other; each fills the cache for those that come."""
    making = Making(
        measure=True, check=options.check, seconds=options.seconds, most=options.tactics, kernels=found
    )
    graph, constants = ir.from_proto(model), Constants(device)
    planned: list[Shapes] = []
    changes: dict[str, int] = {}
    notes: dict[str, None] = {}
    types: set[str] = set()
    progress.stage("build", "torch-cuda plans", len(wanted))
    for shapes in wanted:
        try:
            plan = Plan(graph, shapes, device, cache, constants, making)
        except torch.OutOfMemoryError as error:
            notes[f"{_text(shapes)} is not planned: {' '.join(str(error).split())[:200]}"] = None
            continue
        except ModelError as error:
            raise BackendError(
                f"{artifact.path}: {error.what}", expected=error.expected, cause=error.cause, fix=error.fix
            ) from error
        planned.append(shapes)
        rows = plan.describe()
        changes = changes or {**plan.changes, **_by_kernel(row.tactic for row in rows)}
        notes |= dict.fromkeys(plan.notes)
        types |= {_NAMES.get(row.dtype, row.dtype) for row in rows if row.dtype}
        progress.advance()
    if not planned:
        raise BackendError(
            f"no shape of {artifact.path} fits in the GPU's memory",
            expected="memory for at least the smallest",
            cause="; ".join(notes),
            fix="smaller --batch or --shapes, or FP16",
        )
    return _Made(tuple(planned), changes, tuple(notes), "+".join(sorted(types)) or "fp32")


def _compiled(
    model: onnx.ModelProto, shapes: Sequence[Shapes], device: torch.device, cache: TacticCache, found: Kernels
) -> dict[str, bytes]:
    """Load every plan as a fresh process would, and take along the compiled kernels that it looks up."""
    if device.type != "cuda" or not any(name.startswith("triton.") for name in found.found):
        return {}
    # Imported here because Triton may be absent: then no kernel of it was found.
    from vitesse.backends.torch_cuda.kernels.binaries import recorded

    graph, constants = ir.from_proto(model), Constants(device)

    def load_all() -> None:
        for each in shapes:
            Plan(graph, each, device, cache, constants, Making(kernels=found))

    return recorded(load_all)


def _by_kernel(tactics: Iterable[str]) -> dict[str, int]:
    counted = Counter(tactic.partition(" ")[0] for tactic in tactics)
    return {f"by {name}": count for name, count in sorted(counted.items())}


def _took(cache: TacticCache) -> str:
    spent = cache.spent
    return (
        f"{len(cache.choices)} different steps: {spent.compiling:.0f} s of compiling and checking candidates, "
        f"{spent.measuring:.0f} s of measuring"
    )


def _is_fixed(shape: Sequence[int | str]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _text(shapes: Shapes) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items())
