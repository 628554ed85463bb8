"""Each stage alone: an artifact in, a new artifact and what changed out. The order of them stands in pipeline.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends import backend
from vitesse.backends.protocol import Built, Tensors
from vitesse.data.dataset import open_calibration
from vitesse.data.preprocess import feeds
from vitesse.data.split import Split
from vitesse.errors import UsageError
from vitesse.export.exporting import export_source
from vitesse.fusion import Fused, clean_model, fuse_model
from vitesse.lowering.lower import lower_model
from vitesse.metadata import serialise
from vitesse.precision.calibrated import calibrate_graph
from vitesse.precision.layers import blocks_of
from vitesse.precision.quantize import quantize as quantize_layers
from vitesse.progress import Progress
from vitesse.recipe import Int8Options, SourceOptions
from vitesse.sources.onnx_file import load_onnx
from vitesse.sources.opening import is_onnx, open_source
from vitesse.sources.signature import check_spec_against
from vitesse.sources.source import ExportOptions, Source
from vitesse.sources.spec_file import find_spec, given_from
from vitesse.spec import ModelSpec
from vitesse.storage import sha256_of


def open_model(
    model: str | Path | Source,
    *,
    preset: str | None = None,
    spec: str | Path | None = None,
    options: SourceOptions | None = None,
    store: Store | None = None,
) -> Artifact:
    """Take in an ONNX file with its spec, or export and verify any other source.

    Args:
        model: a path or name as `sources.opening` lists them, or a source, such as `from_jax` gives.
        preset: how to feed a foreign ONNX file: deimv2, rtdetr, detr, vit or imagenet.
        spec: a TOML file that says the same; without both, the spec in the file's metadata, or the source's own.
        options: how to export what is not ONNX yet; the exported file goes into `store` (the current folder).

    Raises:
        ModelError: the model is not whole and valid, or cannot be had.
        SpecError: no spec, or one that contradicts the graph.
        NotVerified: the exported graph does not answer as the model does.
        MissingExtra: the package for this kind of source is not installed.
    """
    if isinstance(model, str | Path) and is_onnx(model):
        return _open_onnx(Path(model), preset, spec)
    how = export_options(options or SourceOptions())
    if isinstance(model, str | Path):
        model = open_exportable(model, preset=preset, spec=spec, options=options)
    exported = export_source(model, how)
    return exported.put(store or Store(Path()))


def open_exportable(
    model: str | Path,
    *,
    preset: str | None = None,
    spec: str | Path | None = None,
    options: SourceOptions | None = None,
    progress: Progress | None = None,
) -> Source:
    """Open a model that is not ONNX yet, by what the user says about it; raises as `open_model`."""
    if preset is not None:
        raise UsageError(
            f"--preset {preset} beside {model}",
            expected="a preset with a foreign ONNX file only: this source knows how it is fed",
            fix="give --spec spec.toml to feed it otherwise",
        )
    options = options or SourceOptions()
    weights = None if options.weights is None else Path(options.weights)
    return open_source(model, given_from(spec, options.settings), weights=weights, progress=progress)


def export_options(options: SourceOptions) -> ExportOptions:
    """Return the part of a recipe's source options that decides the graph."""
    size = (options.size[0], options.size[1]) if options.size else None
    return ExportOptions(options.opset, frozenset(options.dynamic), size=size)


def _open_onnx(file: Path, preset: str | None, spec: str | Path | None) -> Artifact:
    model = load_onnx(file)
    found = find_spec(model, preset=preset, spec_file=None if spec is None else Path(spec))
    check_spec_against(model, found)
    return Artifact(file, sha256_of(file), file.stat().st_size, found, Provenance("source"))


def clean(artifact: Artifact, store: Store | None = None) -> Built:
    """Fold constants, remove dead code, shape arithmetic and auxiliary heads; what the spec reads stays the same."""
    return _rewrite("clean", partial(clean_model, keep=artifact.spec.outputs.values()), artifact, store)


def fuse(artifact: Artifact, store: Store | None = None) -> Built:
    """Replace decomposed LayerNorm, GELU, attention and BatchNorm by one operator each."""
    return _rewrite("fuse", fuse_model, artifact, store)


def lower(artifact: Artifact, names: Sequence[str], store: Store | None = None) -> Built:
    """Replace operators by more basic ones, by rewrites of `lowering.REWRITES`; raises UsageError for another name."""
    return _rewrite("lower", partial(lower_model, names=names), artifact, store)


def quantize(
    artifact: Artifact,
    images: str | Path | Split,
    store: Store | None = None,
    *,
    number: str = "int8",
    keep: Collection[str] = (),
    options: Int8Options | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Built:
    """Quantise every layer that may be, calibrated on `images` (a folder, or a split of a data set), read as a stream.

    Args:
        number: `int8`, or `fp8` for GPUs of compute capability 8.9 and later.
        keep: blocks that stay in float32, by the names of `precision.layers.blocks_of`.
        options: `activations` auto means int8 with zero point 0, which every runtime takes.

    Raises:
        UsageError: a block of `keep` is not in the graph, or nothing is left to quantise.
        DataError: no image, or one that cannot be read.
    """
    split = images if isinstance(images, Split) else open_calibration(Path(images))
    chosen = options or Int8Options()
    store = _beside(artifact, store)
    feeds = CalibrationFeeds(split, artifact.spec, on_image)
    symmetric = number == "fp8" or chosen.activations != "uint8"
    calibrated = calibrate_graph(artifact, store, feeds, chosen, symmetric=symmetric)
    blocks = blocks_of(calibrated.layers)
    unknown = sorted(set(keep) - set(blocks))
    names = [layer.name for layer in calibrated.layers if layer.block not in keep]
    if unknown or not names:
        raise UsageError(
            f"no block {unknown[0]!r} to keep"
            if unknown
            else f"no layer of {artifact.path.name} is left to quantise",
            expected=f"some of: {', '.join(blocks) or 'none: the graph has no layer to quantise'}",
        )
    made = quantize_layers(
        calibrated.artifact, store, names, calibrated.ranges, chosen, number=number, stage=number
    )
    return replace(made, notes=(*calibrated.notes, *made.notes))


def build(artifact: Artifact, target: str = "onnxruntime", store: Store | None = None) -> Built:
    """Build for one runtime; raises MissingExtra where it is not installed, BackendError where it refuses the graph."""
    return backend(target).build(artifact, _beside(artifact, store))


@dataclass(frozen=True)
class CalibrationFeeds:
    """The prepared images of a split, read one at a time, as often as they are asked for."""

    split: Split
    spec: ModelSpec
    on_image: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Tensors]:
        for sample, pixels in self.split:
            yield feeds([pixels], self.spec, [str(sample.path)])
            self.on_image()


def _rewrite(
    stage: str, rewrite: Callable[[onnx.ModelProto], Fused], artifact: Artifact, store: Store | None
) -> Built:
    done = rewrite(load_onnx(artifact.path))
    provenance = Provenance(stage, artifact.sha256)
    made = _beside(artifact, store).put(
        serialise(done.model, artifact.spec), artifact.spec, provenance, suffix=".onnx"
    )
    return Built(made, done.changes, done.notes())


def _beside(artifact: Artifact, store: Store | None) -> Store:
    return store or Store(artifact.path.parent)
