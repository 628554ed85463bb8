"""Compile attention, norm and patches for compute capability 9.0 by their own tactics; facts about each as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from vitesse.backends.torch_cuda.candidates import DeviceFacts, Kernel
from vitesse.backends.torch_cuda.kernels import attention, attention_kernel, norm, patches

H100 = DeviceFacts((9, 0), 132, "NVIDIA H100")
TYPES = {
    **{torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8e4nv"},
    **{torch.uint8: "u8", torch.bfloat16: "bf16"},
}
# Arguments of a launch that are the compiler's, not the kernel's.
COMPILED_WITH = ("num_warps", "num_stages", "maxnreg")
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Recorder:
    """Stands in the place of a kernel and keeps what it would be launched with."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **named: self._launches.append((self._kernel, arguments, named))


def signature(value: Any) -> str:
    match value:
        case torch.Tensor():
            return "*" + TYPES[value.dtype]
        case TensorDescriptor():
            return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>".replace(" ", "")
        case float():
            return "fp32"
        case int() if value != 1:
            return "i32"
    return "constexpr"


def facts(launch: Launch) -> dict[str, Any]:
    """Compile as the launcher would on an H100: None and 1 are constants, multiples of 16 are known as such."""
    kernel, arguments, named = launch
    named |= {"DEPENDENT": True}
    options = {name: named.pop(name) for name in COMPILED_WITH if name in named}
    options["launch_pdl"] = True
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, arguments, strict=False))
    types = {name: signature(given[name]) if name in given else "constexpr" for name in names}
    constants = {name: {**given, **named}[name] for name in names if types[name] == "constexpr"}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(names)
        if types[name].startswith("*") or (types[name] == "i32" and given[name] % 16 == 0)
    }
    made = triton.compile(ASTSource(kernel, types, constants, aligned), GPUTarget("cuda", 90, 32), options)
    ptx = made.asm["ptx"]
    return {
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "tma": ptx.count("cp.async.bulk.tensor"),
        "waits": ptx.count("griddepcontrol.wait"),
        "loads": len(re.findall(r"ld\.global", ptx)),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", ptx)),
        "copies": len(re.findall(r"cp\.async\.c[ag]\.", ptx)),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.", ptx)),
        "stores": len(re.findall(r"st\.global", ptx)),
        "wide_stores": len(re.findall(r"st\.global\S*\.v[24]\.b32", ptx)),
        "shared_bytes": made.metadata.shared,
        **resources(made.asm["cubin"]),
    }


def resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        said = subprocess.run(
            [tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return {"registers": found["REG"], "stack_bytes": found["STACK"], "local_bytes": found["LOCAL"]}


def launches(
    kernel: Kernel, tensors: tuple[Any, ...], attributes: dict[str, Any], best: int
) -> Iterator[tuple[str, Launch]]:
    """The first kernel of the best tactics and of the last."""
    recorded: list[Launch] = []
    attention_kernel.attend = Recorder(ATTEND, recorded)
    attention_kernel.combine = Recorder(None, [])
    norm.normalise, patches.embed = Recorder(NORMALISE, recorded), Recorder(EMBED, recorded)
    *better, last = kernel.tactics(tensors, attributes, H100)
    for tactic in (*better[:best], last):
        kernel.prepare(tensors, attributes, tactic)(*tensors)
        yield tactic.text(), recorded.pop()


ATTEND, NORMALISE, EMBED = attention_kernel.attend, norm.normalise, patches.embed


def heads(images: int, sq: int, sk: int, number: int, size: int, **more: Any) -> tuple[Any, ...]:
    q = torch.empty(images, sq, number * size, dtype=more.pop("dtype", torch.float16))
    kv = q.new_empty(images, sk, 2 * number * size)
    attributes = {
        **{"heads": number, "head_size": size, "value_size": size},
        **{"scale": size**-0.5, "v_offset": number * size, **more},
    }
    return attention.KERNEL, (q, kv, kv), attributes


def rows(number: int, width: int, **more: Any) -> tuple[Any, ...]:
    x = torch.empty(number, width, dtype=torch.float16)
    return norm.KERNEL, (x, x[0], x[0], x if more else None), more


def pixels(images: int, side: int, patch: int, size: int) -> tuple[Any, ...]:
    weight = torch.empty(size, 3, patch, patch, dtype=torch.float16)
    positions = weight.new_empty((side // patch) ** 2, size)
    return (
        patches.KERNEL,
        (torch.empty(images, 3, side, side), weight, positions[:1], positions),
        {"patch": patch},
    )


CASES = {
    "attention ViT-B/16, batch 32": (heads(32, 197, 197, 12, 64), 4),
    "attention ViT-B/16, batch 1": (heads(1, 197, 197, 12, 64, out_scale=0.1), 3),
    "attention class token": (heads(32, 1, 197, 12, 64), 1),
    "attention ViT-H/14": (heads(8, 257, 257, 16, 80), 1),
    "attention DETR encoder": (heads(8, 1050, 1050, 8, 32), 1),
    "attention DETR decoder": (heads(1, 100, 1050, 8, 32), 2),
    "norm ViT-B": (rows(394, 768), 2),
    "norm ViT-L with a residual and E4M3": (rows(394, 1024, out_scale=0.1), 2),
    "norm DETR": (rows(1050, 256), 2),
    "patches ViT-B/16, batch 32": (pixels(32, 224, 16, 768), 2),
    "patches ViT-B/16, batch 1": (pixels(1, 224, 16, 768), 1),
    "patches ViT-H/14": (pixels(16, 224, 14, 1280), 1),
}

if __name__ == "__main__":
    found = {}
    for case, ((kernel, tensors, attributes), best) in CASES.items():
        for text, launch in launches(kernel, tensors, attributes, best):
            found[f"{case}: {text}"] = facts(launch)
    json.dump(found, sys.stdout, indent=1)
