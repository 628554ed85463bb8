"""A model of transformers → a source: `hf:PekingU/rtdetr_r50vd`, `hf:./folder`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from transformers.utils import logging

from vitesse.errors import ModelError, SpecError, UsageError, VitesseError
from vitesse.export.torch_onnx import Network, TorchSource
from vitesse.sources.huggingface.backbone import native_backbone
from vitesse.sources.huggingface.classifiers import CLASSIFIERS
from vitesse.sources.huggingface.detectors import DETECTORS
from vitesse.sources.huggingface.family import Answering, Family, MaskedAnswering
from vitesse.sources.huggingface.processor import preprocessing_of
from vitesse.sources.huggingface.repository import Repository, find_repository
from vitesse.sources.source import ExportOptions, Given
from vitesse.spec import ROLES, Decode, ModelSpec, Task

FAMILIES: tuple[Family, ...] = (*DETECTORS, *CLASSIFIERS)
_IMAGE, _VALID = "images", "valid_sizes"
_QUERIES = 300  # of every family that keeps as many detections as it has queries, where its config is silent


def open_huggingface(name: str, given: Given | None = None) -> TorchSource:
    """Open a detector or classifier of transformers.

    Args:
        name: a local folder, or a name on the hub, which is fetched or taken from the cache.
        given: `spec` replaces what `config.json` and `preprocessor_config.json` say.

    Raises:
        ModelError: the model cannot be fetched or read, is of a kind not supported, or has no head.
        SpecError: nothing says how images are prepared, or the labels contradict themselves.
        UsageError: a setting was given; there are none.
    """
    given = given or Given()
    given.refuse_unknown(f"hf:{name}")
    repository = find_repository(name)
    family = family_of(repository)
    spec = _spec(repository, family, given)
    classes = f", {len(spec.labels)} classes" if spec.labels else ""
    title = f"{family.loader}{classes} (hf:{name})"
    identity = hashlib.sha256(f"{repository.identity} {spec.to_json()}".encode()).hexdigest()
    return TorchSource(title, identity, partial(_network, repository, family, given), family.axes)


def family_of(repository: Repository) -> Family:
    """Find the family by `model_type` and the class of the head; raises ModelError when there is none."""
    kind, heads = repository.config.get("model_type"), _heads(repository.config)
    of_kind = [family for family in FAMILIES if family.model_type == kind]
    if not of_kind:
        supported = sorted({family.model_type for family in FAMILIES})
        raise ModelError(
            f"{repository.name} is a model of type {kind!r}",
            expected=f"one of: {', '.join(supported)}",
            fix="export it to ONNX by its own tools, then run "
            "`vitesse optimize model.onnx --preset NAME` or `--spec spec.toml`",
        )
    fitting = [family for family in of_kind if family.loader in heads]
    if fitting or not heads:
        return (fitting or of_kind)[0]
    loaders = " or ".join(family.loader for family in of_kind)
    headless = all(
        head.endswith(("Model", "Backbone", "PreTraining", "MaskedImageModeling")) for head in heads
    )
    raise ModelError(
        f"{repository.name} holds {', '.join(heads)}" + (": a model without a head" if headless else ""),
        expected=loaders,
        cause="the pretrained body, which answers with features; its head is trained for a task"
        if headless
        else "a model for another task",
        fix="give a model that was fine-tuned to detect or to classify",
    )


def _heads(config: Mapping[str, Any]) -> Sequence[str]:
    heads = config.get("architectures") or ()
    return tuple(str(head) for head in heads)


def _spec(repository: Repository, family: Family, given: Given, *, dynamic: bool = False) -> ModelSpec:
    """Say how the model is fed and read; `dynamic`: height and width of the graph are open."""
    if given.spec is not None:
        if given.spec.decode is not family.decode:
            raise SpecError(
                f"the spec decodes by {given.spec.decode.value!r}",
                expected=f"{family.decode.value!r}, which is how {family.loader} is read",
            )
        return given.spec
    if repository.processor is None:
        raise SpecError(
            f"{repository.name} does not say how images are prepared: it has no preprocessor_config.json",
            expected="preprocessor_config.json beside config.json",
            cause="the model was saved without its image processor",
            fix="save the processor into the folder, or give --spec spec.toml (see docs/spec.md)",
        )
    return ModelSpec(
        task=Task.CLASSIFICATION if family.decode is Decode.LOGITS else Task.DETECTION,
        decode=family.decode,
        image_input=_IMAGE,
        outputs={role: role for role in ROLES[family.decode]},
        preprocessing=preprocessing_of(
            repository.processor,
            default_size=_default_size(repository.config, family),
            model_type=family.model_type,
            dynamic=dynamic,
        ),
        labels=_labels(repository),
        top_k=family.top_k or int(repository.config.get("num_queries", _QUERIES)),
    )


def _default_size(config: Mapping[str, Any], family: Family) -> tuple[int, int]:
    """Return the image (height, width) that the model was built for, where its processor does not say it."""
    sides = config.get("image_size") or config.get("anchor_image_size")
    if isinstance(sides, int):
        return (sides, sides)
    if isinstance(sides, Sequence) and len(sides) == 2:
        return (int(sides[0]), int(sides[1]))
    return (224, 224) if family.decode is Decode.LOGITS else (640, 640)


def _labels(repository: Repository) -> tuple[str, ...]:
    """Read class names by index; names that say nothing (LABEL_0, …) count as unknown."""
    named = repository.config.get("id2label") or {}
    by_index = {int(index): str(label) for index, label in named.items()}
    if sorted(by_index) != list(range(len(by_index))):
        missing = sorted(set(range(max(by_index) + 1)) - set(by_index))
        raise SpecError(
            f"id2label in {repository.folder / 'config.json'} lacks the classes {missing[:10]}",
            expected="a name for every class from 0 on",
            cause="category ids of a data set with gaps, put in as class indices",
            fix='name the unused classes too, for example "N/A"',
        )
    labels = tuple(by_index[index] for index in range(len(by_index)))
    return () if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels


def _network(repository: Repository, family: Family, given: Given, options: ExportOptions) -> Network:
    """Load the model and make it ready to be traced as the options ask; see `TorchSource.build`."""
    if options.keep_aux:
        raise UsageError(
            f"--keep-aux: the outputs of every decoder layer are not kept for hf:{repository.name}",
            expected="a facebookresearch/detr checkpoint, whose original graph has them",
        )
    model = load(repository, family)
    stride = family.stride(model.config)
    padded = options.dynamic_size and family.masked is not None
    size = options.size or _spec(repository, family, given).preprocessing.size
    _check_size(size, stride, repository.name)
    family.prepare(model, padded)
    spec = _spec(repository, family, given, dynamic=padded)
    if options.size is not None:
        spec = replace(spec, preprocessing=replace(spec.preprocessing, size=size))
    outputs = tuple(spec.outputs[role] for role in ROLES[spec.decode])
    # torch takes two dimensions of one value for one dimension
    traced = (size[0], size[1] + stride) if options.dynamic_size and size[0] == size[1] else size
    inputs = {spec.image_input: torch.randn(2, 3, *traced, generator=torch.Generator().manual_seed(0))}
    axes = {spec.image_input: {0: "batch", 2: "height", 3: "width"}}
    if family.masked is None or not padded:
        return Network(Answering(model, family), inputs, outputs, spec, axes, stride)
    spec = replace(spec, valid_size_input=_VALID)
    inputs[_VALID], axes[_VALID] = torch.tensor([traced, traced]), {0: "batch"}
    return Network(MaskedAnswering(model, family.masked), inputs, outputs, spec, axes, stride)


def _check_size(size: tuple[int, int], stride: int, name: str) -> None:
    if any(side < 1 or side % stride for side in size):
        nearest = [max(stride, round(side / stride) * stride) for side in size]
        raise UsageError(
            f"an image size of {size[0]}×{size[1]} (height×width) for hf:{name}",
            expected=f"multiples of {stride}",
            fix=f"give --size {nearest[0]}x{nearest[1]}",
        )


def load(repository: Repository, family: Family) -> Any:
    """Load the model of transformers with its weights, float32, for inference.

    Raises:
        ModelError: the weights do not fit the config, lack the head, or are a pickle that wants more than tensors.
        MissingExtra: the backbone is of timm, which is not installed.
    """
    loader = getattr(transformers, family.loader)
    try:
        with _quietly():
            config = loader.config_class.from_dict(dict(repository.config))
            renamed = native_backbone(config)
            model, report = loader.from_pretrained(
                repository.folder,
                config=config,
                key_mapping=renamed,
                local_files_only=True,
                use_safetensors=repository.safetensors,
                weights_only=True,
                dtype=torch.float32,
                attn_implementation=family.attention,
                output_loading_info=True,
            )
    except (ImportError, VitesseError):
        raise
    except Exception as error:  # transformers lets through whatever went wrong inside
        raise ModelError(
            f"transformers cannot load {repository.name}: {_first_line(error)}",
            expected=f"config.json and weights of one {family.loader}",
            cause="config.json of another model, a file that was cut off, or a pickle that wants to run code",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{repository.name} lacks {len(missing)} tensors of {family.loader}: {', '.join(missing[:5])}",
            expected="weights for all of it; transformers would fill up with random numbers",
            cause="a body without its head, or config.json of another model",
        )
    return model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence bars and reports of transformers: what they would say is checked here."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
