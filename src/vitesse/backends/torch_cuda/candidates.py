"""What can compute a step: the contract of kernel modules, and the table of those there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from vitesse.errors import ModelError

Run = Callable[..., tuple[Tensor | None, ...]]
Tensors = Sequence[Tensor | None]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class DeviceFacts:
    """What a kernel may ask of the device: compute capability, number of multiprocessors, name."""

    capability: tuple[int, int]
    sms: int
    name: str


@dataclass(frozen=True)
class Tactic:
    """One way to compute a step: the name of a kernel and one of its configurations; stands in the artifact as JSON.

    Args:
        kernel: "plain" (the function of steps.py), or the name of a kernel of KERNELS: "triton.linear", …
        config: what the kernel needs to do the same again, as JSON can hold it:
            {"block_m": 128, "block_n": 128, "block_k": 64, "num_warps": 8, "num_stages": 4}; {} where it has no choice.
            Under "parts" stand the documents of the tactics that it is made of, see problem.Composed.
    """

    kernel: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"kernel": self.kernel, "config": dict(self.config)}

    def text(self) -> str:
        """Return it in one line for tables and messages: `triton.linear block_m=128 num_warps=8`; parts in brackets."""
        said = [f"{key}={_short(value)}" for key, value in self.config.items() if key != "parts"]
        parts = [f"[{tactic_of(part).text()}]" for part in self.config.get("parts", ())]
        return " ".join([self.kernel, *said, *parts])


PLAIN = Tactic("plain")


def tactic_of(document: object) -> Tactic:
    """Read a tactic back.

    Raises:
        ModelError: it is not what `Tactic.document` writes.
    """
    match document:
        case {"kernel": str(kernel), "config": dict(config)}:
            return Tactic(kernel, config)
    raise ModelError(
        f"not a tactic: {json.dumps(document, default=str)[:200]}",
        expected='{"kernel": a name, "config": {…}}',
    )


class Kernel(Protocol):
    """One library's or one own way to compute a step; an instance stands in each kernel module as `KERNEL`."""

    name: str
    step: str

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why it cannot compute this node: a dtype, a shape, a capability, a missing library.

        Looks only at shapes, dtypes, strides and attributes: the tensors may be on `meta`.
        """
        ...

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return what is worth measuring for these shapes, best guess first; about 12 at most."""
        ...

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack the constants once and return the call that computes the node.

        Args:
            tensors: the node's inputs in order; constants are real and on the device, what changes with the image may
                be on `meta`.

        The returned `run(*tensors)` gets all of them in order and returns freshly allocated outputs as the function of
        steps.py does: the same shapes, dtypes and memory format. It can be captured in a CUDA graph: it does not
        synchronise, reads nothing back, and works on torch's current stream.
        """
        ...


# In the order in which they are tried where nothing has been measured: the first that does not refuse is taken.
KERNELS: Mapping[str, str] = {
    "torch.linear": "vitesse.backends.torch_cuda.kernels.torch_linear:KERNEL",
    "cublaslt.linear": "vitesse.backends.torch_cuda.kernels.cublaslt:KERNEL",
    "triton.linear": "vitesse.backends.torch_cuda.kernels.linear:KERNEL",
    "triton.norm": "vitesse.backends.torch_cuda.kernels.norm:KERNEL",
    "torch.norm": "vitesse.backends.torch_cuda.kernels.torch_norm:KERNEL",
    "separate.norm_linear": "vitesse.backends.torch_cuda.kernels.separate_norm_linear:KERNEL",
    "triton.norm_linear": "vitesse.backends.torch_cuda.kernels.norm_linear:KERNEL",
    "torch.attention": "vitesse.backends.torch_cuda.kernels.torch_attention:KERNEL",
    "triton.attention": "vitesse.backends.torch_cuda.kernels.attention:KERNEL",
    "torch.conv": "vitesse.backends.torch_cuda.kernels.torch_conv:KERNEL",
    "cudnn.conv": "vitesse.backends.torch_cuda.kernels.cudnn_conv:KERNEL",
    "triton.conv_1x1": "vitesse.backends.torch_cuda.kernels.conv_1x1:KERNEL",
    "triton.conv": "vitesse.backends.torch_cuda.kernels.conv:KERNEL",
    "torch.conv_pair": "vitesse.backends.torch_cuda.kernels.torch_conv_pair:KERNEL",
    "triton.conv_pair": "vitesse.backends.torch_cuda.kernels.conv_pair:KERNEL",
    "separate.conv_chain": "vitesse.backends.torch_cuda.kernels.separate_conv_chain:KERNEL",
    "triton.conv_chain": "vitesse.backends.torch_cuda.kernels.conv_chain:KERNEL",
    "separate.conv_pool": "vitesse.backends.torch_cuda.kernels.separate_conv_pool:KERNEL",
    "triton.stem_pool": "vitesse.backends.torch_cuda.kernels.stem_pool:KERNEL",
    "triton.max_pool": "vitesse.backends.torch_cuda.kernels.max_pool:KERNEL",
    "triton.quantise": "vitesse.backends.torch_cuda.kernels.quantise:KERNEL",
    "triton.patches": "vitesse.backends.torch_cuda.kernels.patches:KERNEL",
    "torch.patches": "vitesse.backends.torch_cuda.kernels.torch_patches:KERNEL",
}


@dataclass(frozen=True)
class Kernels:
    """The kernels that load here, and why others do not (name → reason).

    `on_cpu` has them considered on the CPU too, where plans otherwise run the plain functions: for tests.
    """

    found: Mapping[str, Kernel]
    missing: Mapping[str, str] = field(default_factory=dict)
    on_cpu: bool = False

    def of(self, step: str) -> list[Kernel]:
        """Return the kernels of a step, or of a standard operator such as "MaxPool", in the order of the table."""
        return [kernel for kernel in self.found.values() if kernel.step == step]


def kernels(table: Mapping[str, str] = KERNELS) -> Kernels:
    """Import every kernel module that loads here; one whose library is absent is left out with the reason."""
    found: dict[str, Kernel] = {}
    missing: dict[str, str] = {}
    known = all(place.partition(":")[0] in sys.modules for place in table.values())
    for name, place in table.items():
        module, _, attribute = place.partition(":")
        try:
            found[name] = getattr(import_module(module), attribute)
        except (ImportError, OSError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
    if not known and any(name.startswith("triton.") for name in found):
        # Imported here because Triton may be absent: then no kernel of it was found.
        from vitesse.backends.torch_cuda.kernels.keys import settle_keys

        settle_keys()
    return Kernels(found, missing)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:10] + "…"
