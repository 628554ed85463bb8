"""The whole of `vitesse prune`: importance, cut, fine-tune on the original's answers, save, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitesse.compress.distillation.job import distil_from
from vitesse.compress.distillation.options import DistilOptions
from vitesse.compress.distillation.tasks import task_loss
from vitesse.compress.importance.images import labelled_batches
from vitesse.compress.importance.record import scores_for
from vitesse.compress.importance.scores import Scores, scores
from vitesse.compress.pruning.prune import Pruned, prune
from vitesse.compress.pruning.statistics import remeasured
from vitesse.compress.scoring import check_knows, points, scorer
from vitesse.data.dataset import open_dataset
from vitesse.errors import UsageError
from vitesse.progress import Progress
from vitesse.sources.source import Given
from vitesse.sources.trainable import Trainable, open_trainable, save_trainable
from vitesse.storage import write_atomically
from vitesse.training.batch import Batch
from vitesse.training.data.reading import read_training
from vitesse.training.devices import device_before
from vitesse.training.loop import Trained

RECORD = "pruning.json"
# Enough for the statistics of a feature map of a few cells, and few enough for large images.
_IMAGES_AT_ONCE = 16
# Of fewer images, means and variances are too uncertain to train by.
_IMAGES_OF_A_NORM = 16


@dataclass(frozen=True)
class Job:
    """What is pruned, and how.

    Args:
        model: a path, as `open_trainable` takes it.
        share: of the operations that stay, above 0 and at most 1.
        data: training images, for Taylor scores and for fine-tuning.
        val: images to score on.
        importance: a file of `vitesse importance`; None: scored here by `method` on `images` images.
        learning: how the pruned network is fine-tuned; None: not at all.
        labels: whether the labels of `data` are used, by the scores.
    """

    model: str
    share: float
    data: Path | None = None
    val: Path | None = None
    given: Given | None = None
    importance: Path | None = None
    method: str = "taylor"
    images: int = 256
    multiple: int = 8
    decoder_layers: int | None = None
    labels: bool = True
    learning: DistilOptions | None = None


@dataclass(frozen=True)
class PruneRun:
    """What came of it.

    Args:
        scores: "original", "pruned" and "fine-tuned" → points of `metric`; empty without images to score on.
        metric: "coco_ap", "top1", "agreement" (with the original), or "" where nothing was scored.
        trained: of the fine-tuning; None where there was none.
        notes: on the data.
    """

    pruned: Pruned
    scores: Mapping[str, float]
    metric: str
    trained: Trained | None = None
    notes: tuple[str, ...] = field(default=())


def prune_to(out: Path, job: Job, *, progress: Progress | None = None) -> PruneRun:
    """Prune into a folder: model.safetensors, config.json, pruning.json, and the training's log and checkpoints.

    The fine-tuning of an interrupted run is gone on from.

    Raises:
        UsageError: see `prune`; or no images where some are needed.
        ModelError, SpecError, DataError: see `open_trainable`, `scores_for`, `open_training`, `distil`.
        StorageError: the folder cannot be written.
    """
    original = open_trainable(job.model, job.given)
    score = (
        None
        if job.val is None
        else scorer(original, open_dataset(job.val, spec=original.spec, holdout=0).val)
    )
    device = device_before(job.learning.train if job.learning else None)
    found: dict[str, float] = {}
    if score is not None:
        found["original"] = points(score, original, device)
        check_knows(found["original"], score, "the original")
    pruned = cut(job, original)
    if score is not None:
        found["pruned"] = points(score, pruned.trainable, device)
    trained: Trained | None = None
    notes: tuple[str, ...] = ()
    if job.learning is not None:
        trained, notes = distil_from(
            _data(job),
            original,
            pruned.trainable,
            _learning(job.learning),
            out,
            score=score,
            progress=progress,
        )
        if trained.score is not None:
            found["fine-tuned"] = trained.score
    else:
        save_trainable(pruned.trainable, out)
    run = PruneRun(pruned, found, score.metric if score else "", trained, notes)
    write_atomically(out / RECORD, (json.dumps(_record(job, run), indent=2) + "\n").encode())
    return run


def cut(job: Job, original: Trainable) -> Pruned:
    """Score the units of `original` as the job says, and cut; no weight is trained.

    With images, what the normalisation of a ResNet expects is measured on the cut network.

    Raises:
        UsageError: see `prune`; or no images for scores that need some.
        DataError: see `scores_for` and `read_training`.
    """
    batches = _batches(job, original)
    pruned = prune(
        original,
        job.share,
        _importance(job, original, batches),
        multiple=job.multiple,
        decoder_layers=job.decoder_layers,
    )
    return replace(pruned, trainable=remeasured(pruned.trainable, batches))


def _importance(job: Job, original: Trainable, batches: Sequence[Batch]) -> Scores:
    if job.importance is not None:
        return scores_for(job.importance, original)
    if job.method != "taylor":
        return scores(original, job.method)
    return scores(original, "taylor", batches, task_loss(original))


def _batches(job: Job, original: Trainable) -> list[Batch]:
    """Read the images that scores and normalisation are measured on; none where none are needed or given."""
    scored = job.importance is None and job.method == "taylor"
    if job.data is None and not scored:
        return []
    if job.images < 1:
        raise UsageError(f"--images {job.images}", expected="1 or more")
    split, _ = read_training(_data(job), original.spec, job.labels)
    return labelled_batches(original, split.spread(job.images), _IMAGES_AT_ONCE)


def _data(job: Job) -> Path:
    if job.data is None:
        raise UsageError(
            "no training images",
            expected="--data FOLDER: Taylor scores and fine-tuning need images",
            fix="or --method l1 without --finetune, which needs none",
        )
    return job.data


def _learning(options: DistilOptions) -> DistilOptions:
    """Norms that were measured on the whole network learn again, if batches are large enough to say what they see."""
    return replace(options, live_norms=options.train.batch // options.train.devices >= _IMAGES_OF_A_NORM)


def _record(job: Job, run: PruneRun) -> dict[str, object]:
    return {
        "asked": {"flops": job.share, "multiple": job.multiple, "decoder_layers": job.decoder_layers},
        "importance": "file" if job.importance else job.method,
        "flops": list(run.pruned.flops),
        "parameters": list(run.pruned.parameters),
        "metric": run.metric,
        "scores": dict(run.scores),
        "steps": run.trained.steps if run.trained else 0,
        "kept": {name: list(units) for name, units in run.pruned.kept.items()},
    }
