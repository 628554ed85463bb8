"""TensorRT and TensorRT for RTX as backends: one class, two modules.

They differ in where they run: enterprise TensorRT builds on the GPU that runs the plan; TensorRT for RTX builds for
named GPUs anywhere, and does not run on compute capability 9.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from vitesse.artifact import Artifact, Store
from vitesse.backends import TABLE
from vitesse.backends.cuda.driver import Device, Driver
from vitesse.backends.protocol import Availability, Built, LoadOptions
from vitesse.backends.tensorrt.api import Api, load_api, version_of
from vitesse.backends.tensorrt.engine import RefusedPlan, TensorRtEngine
from vitesse.backends.tensorrt.features import features_of
from vitesse.backends.tensorrt.fitness import current_device, examine
from vitesse.backends.tensorrt.manifest import PLAN_SUFFIX, capability_name, keep_plan
from vitesse.backends.tensorrt.options import BuildOptions
from vitesse.errors import BackendError, MissingExtra

# Smallest, usual and largest batch of an engine that is built without a word on shapes.
_BATCH = (1, 1, 8)
_TURING = "sm75"


class _TensorRt:
    """What both share. `module` is the name of the Python module."""

    name: str
    module: ClassVar[str]
    # It imports GridSample of opset 20 with another meaning of its modes.
    distrusts: tuple[str, ...] = ("grid_sample",)

    def probe(self) -> Availability:
        """Report version and GPU; where there is none, whether engines can still be built here."""
        try:
            api = load_api(self.module)
        except MissingExtra as error:
            return Availability(False, reason=error.what, fix=error.fix)
        device, why = current_device()
        offered = features_of(api).compute_capabilities
        version = version_of(api)
        elsewhere = f"can build for other machines ({', '.join(offered)}), cannot run" if offered else ""
        if device is None:
            return Availability(
                False,
                version,
                precisions=("fp32", "fp16", "bf16", "int8", "fp8") if offered else (),
                reason=f"{elsewhere or 'cannot build or run'}: {why}",
                fix=f"a machine with an NVIDIA GPU and its driver{elsewhere and self._from_here()}",
            )
        here = capability_name(device.compute_capability)
        if offered and here not in offered:
            return Availability(
                False,
                version,
                (device.name,),
                reason=f"{elsewhere}: compute capability {_dotted(device)} ({device.name}) is not supported by "
                f"TensorRT-RTX {version}",
                fix=f"--target tensorrt or --target cuda on this GPU; {TABLE['tensorrt'].pip}",
            )
        return Availability(True, version, (device.name,), _precisions(device.compute_capability))

    def _from_here(self) -> str:
        return (
            f"; to build from here, optimise for a CPU and then: vitesse build RUN --target {self.name}:sm86"
        )

    def build(self, artifact: Artifact, store: Store) -> Built:
        """Build for the GPU that is here; TensorRT for RTX without one builds for all from Ampere on, in one plan.

        The batch may be 1 to 8 where it is free. For other shapes, other GPUs or one plan a GPU there is
        `engines.build_engines`.

        Raises:
            BackendError: names the operator that TensorRT refuses, or says that there is no GPU.
            UsageError: more than the batch is free.
        """
        api = load_api(self.module)
        device, why = current_device()
        capabilities = self._capabilities(api, device, why)
        # Imported here because deployment loads this module without the packages that building needs.
        from vitesse.backends.tensorrt.building import build_artifact

        made = build_artifact(
            api,
            artifact,
            BuildOptions(compute_capabilities=capabilities),
            store=store,
            name=self.name,
            distrusts=self.distrusts,
            batch=_BATCH,
        )
        graph, plan = made.graph, made.plan
        kept = keep_plan(plan, graph.artifact, made.options, module=self.module, store=store, device=device)
        return Built(kept, graph.changes, (*graph.notes, *plan.log))

    def load(self, artifact: Artifact, options: LoadOptions | None = None) -> TensorRtEngine:
        """Load a plan that its manifest, and the GPU, allow; nothing of it is deserialised before.

        Raises:
            RefusedPlan: it does not run here, or that could not be told; says why and how to build it again.
            BackendError: it is no plan, TensorRT refuses it all the same, or `options.reference` is asked for.
            CudaError: there is no GPU.
            MissingExtra: the library is not installed.
        """
        options = options or LoadOptions()
        if options.reference:
            raise BackendError(
                "TensorRT cannot switch its optimisations off",
                expected="a runtime that can be the numerical reference",
                fix="load the reference on the backend 'onnxruntime'",
            )
        if artifact.path.suffix != PLAN_SUFFIX:
            raise BackendError(
                f"{artifact.path} is no engine",
                expected=f"a {PLAN_SUFFIX} file that was built for this GPU",
                cause="TensorRT runs what was built from a graph, not the graph itself",
                fix=f"vitesse build {artifact.path} --target {self.name}",
            )
        api = load_api(self.module)
        device, _ = current_device(options.device)
        # Judged also where there is no GPU: a damaged plan is a worse finding than that.
        judged, manifest, content = examine(artifact.path, api=api, device=device, sha256=artifact.sha256)
        if not judged.usable or manifest is None:
            raise RefusedPlan(artifact.path, judged)
        driver = self._driver(options.device)
        return TensorRtEngine(api, content, manifest, options, plan=artifact.path, driver=driver)

    def load_or_rebuild(
        self, artifact: Artifact, options: LoadOptions | None = None, *, build: Callable[[], Artifact]
    ) -> TensorRtEngine:
        """Load a plan; where it is refused for what it is or was built for, build another and load that.

        Args:
            build: makes the other plan, such as `vitesse build … --rebuild` does.

        Raises:
            BackendError: as `load`: for the new plan, or for the old one where a new one would not help.
        """
        try:
            return self.load(artifact, options)
        except RefusedPlan as error:
            if error.fitness.verdict != "refused":
                raise
            return self.load(build(), options)

    def _capabilities(self, api: Api, device: Device | None, why: str) -> tuple[str, ...]:
        offered = features_of(api).compute_capabilities
        here = "" if device is None else capability_name(device.compute_capability)
        if not offered:
            if device is None:
                raise BackendError(
                    f"{self.module} builds for the GPU that is here, and there is none: {why}",
                    expected="the GPU that will run the engine",
                    fix="build there, or use --target tensorrt-rtx:sm86,… for GeForce and RTX GPUs",
                )
            return ()
        if here in offered:
            return (here,)
        # Turing has to be asked for: it lacks FP32 products, and one GPU that refuses fails the plan for all.
        return tuple(name for name in offered if name != _TURING)

    def _driver(self, number: int) -> Driver:
        # Imported here because engines are built on machines that have no CUDA packages.
        from vitesse.backends.cuda.bindings import cuda_driver

        return cuda_driver(number)


class TensorRtBackend(_TensorRt):
    """Enterprise TensorRT, 8.6 or newer."""

    name = "tensorrt"
    module = "tensorrt"


class TensorRtRtxBackend(_TensorRt):
    """TensorRT for RTX."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"


def _precisions(capability: tuple[int, int]) -> tuple[str, ...]:
    """What the tensor cores of a compute capability multiply."""
    newer = [name for name, since in (("bf16", (8, 0)), ("fp8", (8, 9))) if capability >= since]
    return ("fp32", "fp16", "int8", *newer)


def _dotted(device: Device) -> str:
    return ".".join(map(str, device.compute_capability))
