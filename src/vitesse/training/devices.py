"""Lightning Fabric as the loop needs it: one device or several of a host, and the number format of the computation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators.cuda import CUDAAccelerator, num_cuda_devices
from torch.multiprocessing.spawn import ProcessRaisedException

from vitesse.errors import MissingExtra, UsageError, VitesseError
from vitesse.training.options import TrainOptions

_AMPERE = (8, 0)
# The function comes without types.
_cuda_was_used: Callable[[], bool] = torch.cuda.is_initialized


def open_fabric(options: TrainOptions) -> Fabric:
    """Return the devices of `options`, not launched yet.

    Several devices are processes forked from this one, which share its images in memory until they write to them.

    Raises:
        MissingExtra: CUDA is asked for and not here.
        UsageError: more devices than there are, or CUDA was used before the processes could be forked.
    """
    # It announces every process that it starts.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    cuda = CUDAAccelerator.is_available() if options.accelerator == "auto" else options.accelerator == "cuda"
    if cuda:
        _check_cuda(options.devices)
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=options.devices,
        strategy="ddp_fork" if options.devices > 1 else "auto",
        precision=_precision(options.precision, cuda=cuda, forked=options.devices > 1),
    )


def device_before(options: TrainOptions | None) -> torch.device:
    """Where to score a network before it is trained: on the device of the training.

    On the CPU where nothing is trained, or on several devices: those must not be touched before they are shared out.
    """
    if options is None or options.devices > 1:
        return torch.device("cpu")
    device: torch.device = open_fabric(options).device
    return device


def launch(fabric: Fabric, work: Callable[[Fabric], Any]) -> Any:
    """Run `work` in every process and return what the first one's returned.

    Raises:
        VitesseError: a process ended with an error, which is quoted.
    """
    try:
        return fabric.launch(work)
    except ProcessRaisedException as error:
        # The text is a traceback; its lines are indented, and the error's first line is not.
        failure = [line for line in error.msg.splitlines() if line.strip() and not line.startswith(" ")][-1]
        raise VitesseError(
            f"process {error.error_index} of {fabric.world_size} failed: {failure}",
            fix="repeat the command: it goes on from the last checkpoint; devices=1 shows the error alone",
        ) from error


def _check_cuda(devices: int) -> None:
    there = num_cuda_devices()
    if there == 0:
        raise MissingExtra(
            "no CUDA device is here",
            expected="an NVIDIA GPU that this PyTorch was built for",
            cause="no driver, or a CPU build of PyTorch",
            fix="choose accelerator cpu",
        )
    if devices > there:
        raise UsageError(f"{devices} devices are asked for, {there} are here", fix=f"choose devices {there}")
    if devices > 1 and _cuda_was_used():
        raise UsageError(
            "CUDA was used in this process before the training",
            expected="a process that has not touched CUDA, because those of the devices are forked from it",
            cause="a model was scored or moved to the GPU before",
            fix="score on the CPU before the training, or choose devices 1",
        )


def _precision(name: str, *, cuda: bool, forked: bool) -> Literal["32-true", "bf16-mixed"]:
    if name == "bf16-mixed":
        return "bf16-mixed"
    # Asking a device for its capability uses CUDA, after which nothing can be forked: several GPUs on one host that
    # trains are taken to be Ampere or later.
    if name == "auto" and cuda and (forked or torch.cuda.get_device_capability() >= _AMPERE):
        return "bf16-mixed"
    return "32-true"
