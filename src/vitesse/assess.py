"""After every step: is it still right, is it faster? Verifies and measures one artifact and writes its row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from vitesse.artifact import Artifact
from vitesse.backends.protocol import Array, Built, LoadOptions, Tensors
from vitesse.benchmark.latency import Interleaved
from vitesse.data.dataset import Dataset
from vitesse.data.preprocess import feeds
from vitesse.data.results import Result
from vitesse.data.split import Sample
from vitesse.errors import BackendError, DataError, ModelError, NotVerified, SpecError
from vitesse.ledger import Accuracy, Parity, Row, Verdict
from vitesse.measure import Candidate, Timing, opened, race, time_candidate
from vitesse.precision.emulation import computes_in_half
from vitesse.profile.costs import costs_of, total
from vitesse.progress import Progress
from vitesse.recipe import Recipe
from vitesse.run import RunFolder
from vitesse.spec import ModelSpec
from vitesse.verify.accuracy import Evaluation, against, evaluate
from vitesse.verify.chance import chance_of
from vitesse.verify.diverge import first_diverging
from vitesse.verify.gate import Evidence, Limits, Speed, StepKind, judge, notes
from vitesse.verify.health import HealthMeter
from vitesse.verify.parity import ParityMeter

# Latency is taken on a few real images in turn; more would only cost preparation.
TIMED_IMAGES = 8
# Steps whose tensors keep their names and values, so that the first one that differs can be found.
SAME_NUMBERS = (StepKind.CLEANING, StepKind.STRUCTURAL)
# A smaller network gives other outputs by design.
_OTHER_NUMBERS = "another network, which is judged by its accuracy"
SPEED_FIELDS = ("latency_ms", "gain", "throughput_per_s", "memory_mb", "load_ms", "cold_start_ms")


@dataclass(frozen=True)
class Step:
    """What is to be judged.

    before: what its speed is compared with; None for the source.
    reference: the artifact whose outputs it has to reproduce, where that is not the source; a lever reproduces none.
    max_drop: its accuracy budget in points, where that is not the run's.
    """

    stage: str
    kind: StepKind
    built: Built
    options: LoadOptions
    before: Candidate | None = None
    reference: Artifact | None = None
    max_drop: float | None = None

    @property
    def candidate(self) -> Candidate:
        """The artifact with the options it is measured with."""
        return Candidate(self.built.artifact, self.options)

    @property
    def judged(self) -> Candidate:
        """The artifact with the options its numbers are judged with.

        ONNX Runtime's CPU kernels compute FP16 and BF16 in float32: such a graph is emulated, as a GPU would round it.
        """
        artifact = self.built.artifact
        half = artifact.backend == "onnxruntime" and computes_in_half(onnx.load(artifact.path))
        return Candidate(artifact, replace(self.options, emulate=True) if half else self.options)


class Assessor:
    """Knows the source and the images; every artifact is held against the same baseline and the same outputs."""

    def __init__(
        self, source: Artifact, dataset: Dataset, recipe: Recipe, folder: RunFolder, progress: Progress
    ) -> None:
        self.source, self.dataset, self.recipe = source, dataset, recipe
        self.baseline = Candidate(source, LoadOptions(plain=True))
        self.limits = Limits(max_drop=recipe.max_drop)
        self._folder, self._progress = folder, progress
        self._parity_split = dataset.val.spread(recipe.measure.parity_images)
        self._outputs: dict[tuple[str, str, LoadOptions], list[dict[str, Array]]] = {}
        self._original: Evaluation | None = None

    def assess(self, step: Step) -> Row:
        """Verify and measure one artifact; a runtime that refuses it makes a FAIL that says so."""
        began = time.perf_counter()
        spec, own = step.built.artifact.spec, self.source.spec.preprocessing
        rules, size = spec.preprocessing, spec.preprocessing.size
        row = Row(
            step.stage,
            Verdict.UNKNOWN,
            "",
            changes=step.built.changes,
            artifact=step.built.artifact.ref(self._folder.folder),
            run_options={"threads": step.options.threads, "plain": int(step.options.plain)},
            input_size=None if size == own.size else size,
            preprocessing=None if rules == own else json.loads(spec.to_json())["preprocessing"],
            training_log=step.built.artifact.provenance.options.get("training log"),
            notes=step.built.notes,
        )
        try:
            row = self._judged(step, row)
        except (BackendError, DataError) as error:
            # The source has read every image before: a smaller network does not take the size that its spec names.
            if isinstance(error, DataError) and step.kind is not StepKind.LEVER:
                raise
            missing = dict.fromkeys(("accuracy", "parity", *SPEED_FIELDS), "the runtime refused the artifact")
            row = replace(row, verdict=Verdict.FAIL, reason=str(error), unmeasured=missing)
        return replace(row, seconds=round(time.perf_counter() - began, 2))

    def timed_feeds(self, spec: ModelSpec | None = None) -> list[Tensors]:
        """Return a few validation images, batch 1, prepared as `spec` says (default: the source's)."""
        return self._prepared(self.dataset.val.spread(TIMED_IMAGES).samples, spec or self.source.spec)

    def race(self, entrants: Mapping[str, Candidate]) -> Interleaved:
        """Measure several candidates against one another and keep the samples as those of the final."""
        self._progress.stage("final", "the finalists in one run", 100)
        run = race(entrants, self.timed_feeds, self.recipe.measure, self._share())
        self._folder.keep_samples("final", run.to_json())
        return run

    def _judged(self, step: Step, row: Row) -> Row:
        judged = step.judged
        meter = self._compare(step, judged)
        parity = meter.parity() if isinstance(meter, ParityMeter) else None
        accuracy, why = self._accuracy(step, judged)
        evidence = Evidence(
            step.kind,
            metric="" if accuracy is None else accuracy.metric,
            images=len(self.dataset.val),
            value=None if accuracy is None else accuracy.value,
            drop=None if accuracy is None else accuracy.drop,
            accuracy_reason=why,
            chance=0.0 if accuracy is None else chance_of(accuracy.metric, self.dataset.val),
            parity=parity,
            findings=meter.findings(),
        )
        timing, refusal = self._timed(step, judged, broken=any(one.fatal for one in evidence.findings))
        evidence = replace(evidence, speed_reason=refusal)
        if timing.over_before is not None:
            ratio = timing.over_before
            quiet = timing.samples is None or timing.samples.quiet is not False
            evidence = replace(evidence, speed=Speed(ratio.value, *ratio.interval, quiet))
        limits = self.limits if step.max_drop is None else replace(self.limits, max_drop=step.max_drop)
        verdict, reason = judge(evidence, limits)
        if (
            verdict is Verdict.FAIL
            and step.kind in SAME_NUMBERS
            and isinstance(meter, ParityMeter)
            and parity
        ):
            parity = self._with_first_diverging(parity, meter, step)
            verdict, reason = judge(replace(evidence, parity=parity), limits)
        by_design = {"parity": _OTHER_NUMBERS} if step.kind is StepKind.LEVER else {}
        unmeasured = {**by_design, **timing.unmeasured, **({"accuracy": why} if accuracy is None else {})}
        row = _with_timing(replace(row, accuracy=accuracy, parity=parity, unmeasured=unmeasured), timing)
        row = self._counted(row, step.built.artifact)
        said = (*row.notes, *notes(evidence, limits), *_emulated(judged), *_disturbed(timing))
        return replace(row, verdict=verdict, reason=reason, notes=said)

    def _counted(self, row: Row, artifact: Artifact) -> Row:
        """Add operations and parameters; a graph with an operator of a runtime's own is not counted."""
        if artifact.path.suffix != ".onnx":
            return row
        inputs = self._prepared(self._parity_split.samples[:1], artifact.spec)[0]
        shapes = {name: array.shape for name, array in inputs.items()}
        try:
            cost = total(costs_of(onnx.load(artifact.path), shapes))
        except ModelError:
            return row
        return row if cost.unknown else replace(row, flops=cost.flops, parameters=cost.parameters)

    def _compare(self, step: Step, judged: Candidate) -> ParityMeter | HealthMeter:
        # Rounding factors to TF32 is a runtime's freedom and would hide what a step changed.
        exact = replace(judged, options=replace(judged.options, tf32=False))
        found = self._outputs_of(step.stage, exact)
        if step.kind is StepKind.LEVER:
            health = HealthMeter()
            for sample, one in zip(self._parity_split.samples, found, strict=True):
                health.add(one, image=sample.path.name)
            return health
        reference = step.reference or self.source
        meter = ParityMeter(reference.spec)
        wanted = self._outputs_of(step.stage, Candidate(reference, LoadOptions(reference=True)))
        for sample, one, other in zip(self._parity_split.samples, wanted, found, strict=True):
            meter.add(one, other, image=sample.path.name)
        return meter

    def _outputs_of(self, stage: str, candidate: Candidate) -> list[dict[str, Array]]:
        """Run the parity images once per candidate; outputs are small beside the activations, and kept."""
        if candidate.key not in self._outputs:
            self._progress.stage(stage, "comparing outputs", len(self._parity_split))
            kept = []
            with opened(candidate) as session:
                for inputs in self._prepared(self._parity_split.samples, candidate.artifact.spec):
                    outcome = session.run(inputs)
                    kept.append({name: np.array(array) for name, array in outcome.outputs.items()})
                    self._progress.advance()
            self._outputs[candidate.key] = kept
        return self._outputs[candidate.key]

    def _accuracy(self, step: Step, judged: Candidate) -> tuple[Accuracy | None, str]:
        """Return the accuracy with its drop, or None and the reason."""
        try:
            original = self._of_original(step.stage)
        except NotVerified as error:
            return None, error.what
        if step.kind is StepKind.SOURCE:
            return replace(original.accuracy, drop=0.0), ""
        try:
            done = self._evaluate(step.stage, judged, original.results)
            return against(done.accuracy, original.accuracy), ""
        except (NotVerified, SpecError) as error:
            # SpecError: outputs that cannot be read, such as a label beyond the last class.
            return None, error.what

    def _of_original(self, stage: str) -> Evaluation:
        """The original's accuracy and results: measured once, also when its row was resumed."""
        if self._original is None:
            self._original = self._evaluate(stage, self.baseline, None)
        return self._original

    def _evaluate(self, stage: str, candidate: Candidate, original: Sequence[Result] | None) -> Evaluation:
        split = self.dataset.val
        self._progress.stage(stage, "measuring accuracy", len(split))
        with opened(candidate) as session:
            return evaluate(
                lambda inputs: session.run(inputs).outputs,
                split,
                candidate.artifact.spec,
                reference=original,
                on_image=lambda done, total: self._progress.advance(),
            )

    def _timed(self, step: Step, judged: Candidate, *, broken: bool) -> tuple[Timing, str]:
        """Return the timing and why there is none.

        A runtime may lack the kernels for numbers that emulation could judge: then only its speed is unknown.
        """
        if broken:
            return Timing(unmeasured=dict.fromkeys(SPEED_FIELDS, "the outputs are broken")), ""
        try:
            return self._timing(step), ""
        except BackendError as error:
            if not judged.options.emulate:
                raise
            return Timing(unmeasured=dict.fromkeys(SPEED_FIELDS, error.what)), error.what

    def _timing(self, step: Step) -> Timing:
        self._progress.stage(step.stage, "measuring speed", 100)
        timing = time_candidate(
            step.candidate, step.before, self.baseline, self.timed_feeds, self.recipe.measure, self._share()
        )
        if timing.samples is not None:
            self._folder.keep_samples(step.stage, timing.samples.to_json())
        return timing

    def _share(self) -> Callable[[float], None]:
        """Return a listener that turns the share done, 0..1, into steps of a bar of 100."""
        shown = 0.0

        def hear(done: float) -> None:
            nonlocal shown
            self._progress.advance(100 * (done - shown))
            shown = done

        return hear

    def _with_first_diverging(self, parity: Parity, meter: ParityMeter, step: Step) -> Parity:
        """Look for the tensor where it begins, on the image where it shows most."""
        worst = {line.worst_image for line in meter.table() if line.output == parity.worst_output}
        samples = self._parity_split.samples
        chosen = next((sample for sample in samples if sample.path.name in worst), samples[0])
        reference = step.reference or self.source
        inputs = self._prepared([chosen], reference.spec)[0]
        found = first_diverging(reference.path, step.built.artifact.path, inputs)
        return replace(parity, first_diverging="" if found is None else found.describe())

    def _prepared(self, samples: Sequence[Sample], spec: ModelSpec) -> list[Tensors]:
        return [feeds([sample.read()], spec, [str(sample.path)]) for sample in samples]


def _emulated(judged: Candidate) -> tuple[str, ...]:
    if not judged.options.emulate:
        return ()
    return (
        "numbers by emulation: every 16-bit result is rounded and sums are kept in float32, as GPUs do; the CPU "
        "kernels of this runtime would compute in float32",
    )


def _disturbed(timing: Timing) -> tuple[str, ...]:
    run = timing.samples
    if run is None or run.quiet is not False:
        return ()
    return (f"other processes kept {run.foreign_cores:.1f} cores busy meanwhile: figures in ms are too high",)


def _with_timing(row: Row, timing: Timing) -> Row:
    return replace(
        row,
        latency_ms=timing.latency,
        throughput_per_s=timing.throughput_per_s,
        memory_mb=timing.memory_mb,
        load_ms=timing.load_ms,
        cold_start_ms=timing.cold_start_ms,
        gain=None if timing.gain is None else timing.gain.value,
        gain_spread=None if timing.gain is None else timing.gain.spread,
    )
