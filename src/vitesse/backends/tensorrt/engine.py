"""A deserialised engine: weights on the GPU once, shared by all sessions; made only from bytes that were judged fit."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from pathlib import Path

from vitesse.backends.closing import Closing
from vitesse.backends.cuda.driver import Driver
from vitesse.backends.cuda.memory import Pool
from vitesse.backends.protocol import LoadOptions, TensorInfo
from vitesse.backends.tensorrt.api import Api, title_of
from vitesse.backends.tensorrt.contexts import Shapes
from vitesse.backends.tensorrt.fitness import Fitness
from vitesse.backends.tensorrt.logger import Log
from vitesse.backends.tensorrt.manifest import PlanManifest
from vitesse.backends.tensorrt.options import Profile, Shape
from vitesse.backends.tensorrt.runtime_settings import RuntimeSettings
from vitesse.backends.tensorrt.session import TensorRtSession
from vitesse.backends.tensorrt.tensors import tensors_of
from vitesse.errors import BackendError


class RefusedPlan(BackendError):
    """A plan that does not run here; `fitness` says why, and building it again may help."""

    def __init__(self, plan: Path, fitness: Fitness) -> None:
        known = fitness.verdict == "refused"
        super().__init__(
            f"{plan} {'does not run here' if known else 'cannot be told to run here'}: {'; '.join(fitness.reasons)}",
            expected="a plan that was built for this GPU and this version, unchanged since",
            fix=fitness.fix,
        )
        self.fitness = fitness


class TensorRtEngine(Closing):
    """Loaded weights.

    Args:
        content: the bytes of a plan that `fitness.examine` found usable.
        plan: where they came from; a runtime cache is kept beside it.
        driver: of the GPU to run on.
    """

    def __init__(
        self,
        api: Api,
        content: bytes,
        manifest: PlanManifest,
        options: LoadOptions,
        *,
        plan: Path,
        driver: Driver,
    ) -> None:
        self.driver, self.manifest, self.plan = driver, manifest, plan
        self.profiles = manifest.profiles
        self._log = Log(api)
        free, _ = (
            driver.memory()
        )  # the driver makes its GPU the current one of this thread, which TensorRT takes
        self._runtime = api.Runtime(self._log.native)
        if manifest.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            # Such a plan carries the runtime that it needs; its hash stands in the manifest.
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(
                f"{title_of(api)} cannot deserialise {plan}: {'; '.join(self._log.errors) or 'no reason given'}",
                expected=f"a plan for this GPU, and {len(content):,} bytes or more of its memory; {free:,} are free",
                fix=f"build it again: {manifest.command or 'vitesse build'}",
            )
        self._native = engine
        self._open = True
        self._sessions: weakref.WeakSet[TensorRtSession] = weakref.WeakSet()
        self.inputs, self.outputs = tensors_of(engine)
        self.settings = RuntimeSettings(api, engine, options, plan=plan, device=driver.device)
        # One cap for all sessions; the weights are not ours to count.
        self.device_pool = Pool(driver, cap_bytes=options.memory_bytes)
        self.host_pool = Pool(driver, host=True)
        self.captures_graphs = options.cuda_graph and not options.plain and not self.settings.library_graphs

    def session(self) -> TensorRtSession:
        """Open a session.

        Raises:
            BackendError: no memory for its buffers and contexts, or the engine is closed.
        """
        self.check_open()
        made = TensorRtSession(self)
        self._sessions.add(made)
        return made

    def largest_shapes(self) -> tuple[Shapes, ...]:
        """Return the largest input shapes of every profile; the fixed ones where there is no profile."""
        profiles = self.profiles or (Profile({}),)
        return tuple(
            tuple((info.name, _largest(info, profile)) for info in self.inputs) for profile in profiles
        )

    def check_open(self) -> None:
        """Raise BackendError once the engine is closed."""
        if not self._open:
            raise BackendError("this engine is closed", expected="an open one", fix="backend.load(artifact)")

    def said(self) -> tuple[str, ...]:
        """Return the errors that the library has logged since this was last asked."""
        errors = self._log.errors
        self._log.clear()
        return errors

    def close(self) -> None:
        """Close the sessions made from it, keep the runtime cache, release weights and memory."""
        if not self._open:
            return
        self._open = False
        with ExitStack() as leaving:
            leaving.callback(self.host_pool.close)
            leaving.callback(self.device_pool.close)
            leaving.callback(self._let_go)
            leaving.callback(self.settings.close)
            for session in tuple(self._sessions):
                leaving.callback(session.close)

    def _let_go(self) -> None:
        """Destroy the engine before the runtime that made it."""
        del self._native
        del self._runtime


def _largest(info: TensorInfo, profile: Profile) -> Shape:
    """The largest shape of an input; one that no profile names has no free dimension."""
    if info.name in profile.inputs:
        return profile.inputs[info.name].max
    return tuple(int(size) for size in info.shape)
