"""Would this plan run here, and if not, why? Asked before the library sees it, because deserialising runs code.

Some of it the manifest answers alone (whole file, installed version, compute capability, driver); TensorRT for RTX is
then asked itself, where there is a GPU. What could not be asked is "unknown", and unknown is never "runs".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitesse.backends.cuda.driver import CudaError, Device
from vitesse.backends.tensorrt.api import Api, load_api, title_of, version_of
from vitesse.backends.tensorrt.features import features_of
from vitesse.backends.tensorrt.manifest import (
    BACKENDS,
    ManifestError,
    PlanManifest,
    capability_name,
    read_manifest,
)
from vitesse.backends.tensorrt.validity import validity_of
from vitesse.errors import MissingExtra

Verdict = Literal["runs", "suboptimal", "refused", "unknown"]


@dataclass(frozen=True)
class Fitness:
    """Whether a plan runs on a machine.

    Args:
        verdict: "runs"; "suboptimal" (it runs, another build would be faster); "refused"; "unknown" (not everything
            could be asked, as without a GPU).
        reasons: what differs or could not be asked, one sentence each; empty for "runs".
        fix: the next step, best a command; empty for "runs".
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    fix: str = ""

    @property
    def usable(self) -> bool:
        """Whether the plan may be deserialised."""
        return self.verdict in ("runs", "suboptimal")


@dataclass
class _Findings:
    """What was found so far, by weight."""

    refused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    suboptimal: list[str] = field(default_factory=list)
    fixes: list[str] = field(default_factory=list)

    def refuse(self, reason: str, fix: str = "") -> None:
        self.refused.append(reason)
        self.fixes += [fix] * bool(fix)

    def fitness(self, rebuild: str, plan: Path) -> Fitness:
        reasons = (*self.refused, *self.unknown, *self.suboptimal)
        if not reasons:
            return Fitness("runs")
        if self.refused:
            return Fitness("refused", reasons, next(iter(self.fixes), rebuild))
        if self.unknown:
            check = f"check it on the machine that will run it: vitesse check {plan.name}"
            return Fitness("unknown", reasons, check)
        return Fitness("suboptimal", reasons, rebuild)


def fitness(plan: Path, *, api: Api | None = None, device: Device | None) -> Fitness:
    """Judge a plan by its manifest, the installed library and the GPU; nothing is deserialised, nothing raises.

    Args:
        plan: the plan file, its manifest beside it.
        api: the module that would run it; None = the one that the manifest names, imported.
        device: the GPU that would run it; None = there is none, and "runs" cannot be the answer.
    """
    return examine(plan, api=api, device=device)[0]


def examine(
    plan: Path, *, api: Api | None = None, device: Device | None, sha256: str = ""
) -> tuple[Fitness, PlanManifest | None, bytes]:
    """Judge a plan as `fitness` does, and return the manifest and exactly the bytes that were judged.

    Who deserialises these bytes, and does not read the file again, runs what was checked. `sha256` is another hash
    that the file must have, such as the one in the ledger of the run. The bytes are empty unless they may be used.
    """
    try:
        content = plan.read_bytes()
        manifest = read_manifest(plan)
    except OSError as error:
        return Fitness("refused", (f"{plan} cannot be read: {error.strerror}",), "check the path"), None, b""
    except ManifestError as error:
        return Fitness("refused", (error.what,), error.fix), None, b""
    rebuild = rebuild_command(manifest)
    changed = _changed(content, manifest, sha256)
    if changed:
        return Fitness("refused", (changed,), f"copy it again with its manifest, or {rebuild}"), manifest, b""
    found = _Findings()
    _check_module(found, manifest, api)
    try:
        api = api or load_api(manifest.module)
    except MissingExtra as error:
        found.refuse(error.what, error.fix)
        api = None
    if api is not None:
        _check_version(found, manifest, api)
    if device is None:
        found.unknown.append("there is no GPU here to run it on")
    else:
        _check_device(found, manifest, device, api)
        if api is not None and not found.refused:
            _ask(found, content, api)
    judged = found.fitness(_rebuild_here(manifest, device, rebuild), plan)
    return judged, manifest, content if judged.usable else b""


def rebuild_command(manifest: PlanManifest) -> str:
    """Return what to type to build the plan again, in words that follow "or"."""
    target = BACKENDS[manifest.module]
    capabilities = ",".join(manifest.compute_capabilities)
    # Of enterprise TensorRT a plan is for the GPU that built it; only TensorRT for RTX takes a list.
    what = f"{target}:{capabilities}" if target == "tensorrt-rtx" and capabilities else target
    return f"build it again: {manifest.command or f'vitesse build MODEL.onnx --target {what}'}"


def current_device(number: int = 0) -> tuple[Device | None, str]:
    """Return the GPU of that number, or None and why there is none; never raises and makes no CUDA context."""
    try:
        # Imported here because plans are built and checked on machines that have no CUDA packages.
        from vitesse.backends.cuda.bindings import device_of
    except ImportError as error:
        return None, f"{error.name or error} is not installed: pip install 'vitesse[gpu]'"
    try:
        return device_of(number), ""
    except CudaError as error:
        return None, error.what
    except RuntimeError as error:  # cuda-bindings, where the driver lacks a symbol
        return None, f"the CUDA runtime cannot be used: {error}"


def _changed(content: bytes, manifest: PlanManifest, sha256: str) -> str:
    found = hashlib.sha256(content).hexdigest()
    for wanted, where in ((manifest.plan_sha256, "its manifest"), (sha256, "the run's ledger")):
        if wanted and found != wanted:
            size = f"{len(content):,} bytes with sha256 {found[:12]}…"
            return f"the plan has {size}, {where} says {wanted[:12]}…: it was damaged, cut off or swapped"
    return "" if manifest.plan_sha256 else "its manifest holds no sha256 of the plan"


def _check_module(found: _Findings, manifest: PlanManifest, api: Api | None) -> None:
    name = getattr(api, "__name__", manifest.module)
    if name in BACKENDS and name != manifest.module:
        found.refuse(f"it was built by {manifest.module}, and {name} cannot read that")


def _check_version(found: _Findings, manifest: PlanManifest, api: Api) -> None:
    here, built = version_of(api), manifest.version
    if here == built:
        return
    said = f"it was built by {manifest.module} {built}, here is {here}"
    pin = f"pip install {manifest.module.replace('_', '-')}=={built}, or {rebuild_command(manifest)}"
    if not manifest.version_compatible:
        found.refuse(said, pin)
        return
    now, then = _numbers(here), _numbers(built)
    if now[:1] != then[:1] or now < then:
        found.refuse(
            f"{said}: a version-compatible plan runs on later versions of the same major release", pin
        )
    else:
        found.suboptimal.append(f"{said}: the version-compatible plan runs, with the tactics of {built}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _check_device(found: _Findings, manifest: PlanManifest, device: Device, api: Api | None) -> None:
    here = capability_name(device.compute_capability)
    major, minor = device.compute_capability
    offered = features_of(api).compute_capabilities if api is not None else ()
    built_for = manifest.compute_capabilities
    if api is not None and offered and here not in offered:
        found.refuse(
            f"compute capability {major}.{minor} ({device.name}) is not supported by "
            f"{title_of(api)}, which runs on {', '.join(offered)}",
            "build for --target tensorrt or --target cuda on this GPU",
        )
    elif built_for and here not in built_for:
        found.refuse(f"it was built for {', '.join(built_for)}, this is {device.name}, {here}")
    elif not built_for and not offered:
        found.unknown.append("its manifest does not say for which compute capability it was built")
    elif _another_gpu(manifest, device):
        found.suboptimal.append(
            f"its kernels were timed on {manifest.built_on.gpu}, this is {device.name}: others may be faster"
        )
    driver, then = device.driver_version, _numbers(manifest.built_on.driver)
    if then and driver < then:
        found.refuse(
            f"the driver here is for CUDA {'.'.join(map(str, driver))}, that of the build for CUDA "
            f"{manifest.built_on.driver}",
            f"update the NVIDIA driver, or {rebuild_command(manifest)}",
        )
    if manifest.plan_bytes > device.memory_bytes:
        found.refuse(
            f"it has {manifest.plan_bytes / 2**30:.1f} GiB of weights and kernels, {device.name} has "
            f"{device.memory_bytes / 2**30:.1f} GiB of memory",
            "use a smaller precision or model, or a GPU with more memory",
        )


def _another_gpu(manifest: PlanManifest, device: Device) -> bool:
    """Enterprise TensorRT times kernels on the GPU of the build; TensorRT for RTX chooses them where it runs."""
    return manifest.module == "tensorrt" and manifest.built_on.gpu != device.name


def _ask(found: _Findings, content: bytes, api: Api) -> None:
    """Ask the library itself, where it can be asked."""
    answer = validity_of(api, content)
    if answer is None or answer.verdict == "VALID":
        return
    said = f"TensorRT-RTX calls the plan {answer.verdict.lower()} here: {', '.join(answer.words)}"
    if answer.verdict == "INVALID":
        found.refuse(said)
    elif answer.verdict == "SUBOPTIMAL":
        found.suboptimal.append(said)
    else:
        found.unknown.append(f"{said}; Vitesse does not know this answer")


def _rebuild_here(manifest: PlanManifest, device: Device | None, rebuild: str) -> str:
    """The command, with a word on the GPU that is here where the plan was built for others."""
    here = "" if device is None else capability_name(device.compute_capability)
    missing = bool(here) and bool(manifest.compute_capabilities) and here not in manifest.compute_capabilities
    return f"for {here}, {rebuild}" if missing else rebuild
