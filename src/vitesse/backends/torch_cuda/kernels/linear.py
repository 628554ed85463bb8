"""`triton.linear`: matrix products in 16 bits or E4M3 with the whole epilogue of steps.linear fused."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.dependence import launched_early
from vitesse.backends.torch_cuda.kernels.epilogue import approximate
from vitesse.backends.torch_cuda.kernels.gemm import gemm, persistent_gemm
from vitesse.backends.torch_cuda.kernels.linear_configs import GemmConfig, choices
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue, Operands, rows_of
from vitesse.backends.torch_cuda.steps import E4M3

# What a descriptor's rows must be a multiple of, and its base aligned to.
TMA_BYTES = 16
# Offsets in the kernels are 32 bits.
MOST_ELEMENTS = 2**31 - 1


def prepack(weight: Tensor) -> Tensor:
    """Return a constant weight [K, N] as the kernels read it: [N, K], contiguous."""
    return weight.t().contiguous()


class Counters:
    """Zeros by which programs that share a tile of [m, n] find the last of them; every launch leaves zeros.

    Each stream has its own, made with its first launch: on one stream launches follow each other, on two they may not.
    """

    def __init__(self, config: GemmConfig, m: int, n: int) -> None:
        self._tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
        self._needed = config.split_k > 1
        self._made: dict[int, Tensor] = {}

    def here(self, device: torch.device) -> Tensor | None:
        """Return those of torch's current stream; None without split_k."""
        if not self._needed:
            return None
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        if stream not in self._made:
            self._made[stream] = torch.zeros(self._tiles, dtype=torch.int32, device=device)
        return self._made[stream]


def launch(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_rows: int | None = None,
    activation: str = "",
    residual_first: bool = False,
    out: Tensor,
    out_scale: float = 0.0,
    config: GemmConfig,
    arrived: Tensor | None = None,
    column_sums: Tensor | None = None,
    epsilon: float = 0.0,
) -> None:
    """Write act(x · weightᵀ · scale + bias) + residual into `out`, or act(… + residual) with `residual_first`.

    Args:
        x: [M, K], float16, bfloat16 or E4M3; rows may lie apart, their elements are adjacent. TMA takes addresses and
            rows of a multiple of 16 bytes: what is not so is copied first, if K is.
        weight: [N, K], contiguous, of x's dtype: what `prepack` returns.
        scale, bias: [N], float32.
        residual: [residual_rows, N], any float dtype; row m takes m mod residual_rows (None: all M rows are there).
        out: [M, N], elements of a row adjacent; float16, bfloat16, float32, or E4M3 with `out_scale` above 0.
        arrived: with split_k, `Counters.here()`; left as zeros. Without it new zeros are made.
        column_sums: [N], float32, Σ over K of the weight: the rows of x are normalised first, by their mean and
            √(variance + epsilon); neither with split_k nor persistent.
    """
    m, k = x.shape
    n = weight.shape[0]
    described = config.operands == "descriptors"
    if described and not _describable(x):
        x = x.clone(memory_format=torch.contiguous_format)
    stored = described and _describable(out) and config.block_n * out.element_size() >= TMA_BYTES
    rows = m if residual_rows is None else residual_rows
    operands = (
        _described(x, config.block_m, config.block_k) if described else x,
        _described(weight, config.block_n, config.block_k) if described else weight,
        _described(out, config.block_m, config.block_n) if stored else out,
        *(scale, bias, residual),
    )
    sizes = (m, n, k, x.stride(0), out.stride(0), 0 if residual is None else residual.stride(0), rows)
    numbers = (*sizes, 1.0 / out_scale if out_scale > 0 else 1.0)
    constants = (
        _tile(config)
        | launched_early(x.device)
        | {
            "ACTIVATION": activation,
            "APPROXIMATE": approximate(out.dtype),
            "RESIDUAL_FIRST": residual_first,
            "SHARED_ROWS": rows != m,
            "OUT_DESCRIPTOR": stored,
            "EVEN_K": k % config.block_k == 0,
            "PROMOTED": None if config.fast_sum or x.dtype != E4M3 else config.block_k,
        }
    )
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    if config.persistent:
        programs = min(tiles, _multiprocessors(x.device))
        persistent_gemm[(programs,)](*operands, *numbers, PROGRAMS=programs, **constants)
        return
    partial = None
    if config.split_k > 1:
        partial = torch.empty(config.split_k * m * n, dtype=torch.float32, device=x.device)
        arrived = Counters(config, m, n).here(x.device) if arrived is None else arrived
    shared = (column_sums, partial, arrived)
    gemm[(tiles, config.split_k)](*operands, *shared, *numbers, epsilon, SPLIT=config.split_k, **constants)


def computed(
    x: Tensor, weight: Tensor, residual: Tensor | None, epilogue: Epilogue, config: GemmConfig, **others: Any
) -> tuple[Tensor]:
    """Return what `launch` writes for x [..., K], weight [N, K] and a residual [..., N], as a step's outputs.

    Args:
        others: keywords of `launch`: scale, bias, arrived, column_sums, epsilon.
    """
    n = weight.shape[0]
    rows = rows_of(residual, n)
    out = torch.empty((*x.shape[:-1], n), dtype=epilogue.dtype, device=x.device)
    launch(
        x.reshape(-1, x.shape[-1]),
        weight,
        residual=rows,
        residual_rows=None if rows is None else rows.shape[0],
        activation=epilogue.activation,
        residual_first=epilogue.residual_first,
        out=out.view(-1, n),
        out_scale=epilogue.out_scale,
        config=config,
        **others,
    )
    return (out,)


class TritonLinear:
    """The kernels of gemm.py for the step `Linear`."""

    name = "triton.linear"
    step = "Linear"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why not: float32, an old GPU, a tensor beyond 32-bit offsets."""
        node, out = Operands.of(tensors), Epilogue.of(attributes).dtype
        if node.x.dtype not in (torch.float16, torch.bfloat16, E4M3):
            return f"takes float16, bfloat16 and float8_e4m3fn, not {node.x.dtype}"
        if node.weight.dtype != node.x.dtype:
            return f"x is {node.x.dtype}, its weight {node.weight.dtype}"
        needed = (8, 9) if E4M3 in (node.x.dtype, out) else (8, 0)
        if device.capability < needed:
            return f"needs compute capability {needed[0]}.{needed[1]}, this is {device.capability}"
        largest = max(node.m * node.k, node.m * node.n, node.n * node.k)
        return "" if 0 < largest <= MOST_ELEMENTS else f"{largest} elements in one tensor"

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the configurations that linear_configs ranks highest for this shape and device."""
        node = Operands.of(tensors)
        bytes_each = node.x.dtype.itemsize
        described = device.capability >= (9, 0) and node.k * bytes_each % TMA_BYTES == 0
        found = choices(
            node.m,
            node.n,
            node.k,
            bytes_each,
            device.sms,
            descriptors=described,
            residual=node.residual is not None,
        )
        return [Tactic(self.name, config.document()) for config in found]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepack the weight, scale and bias; the call computes the step."""
        node, epilogue = Operands.of(tensors), Epilogue.of(attributes)
        config = GemmConfig.of(tactic.config)
        n, weight = node.n, prepack(node.weight)
        scale = None if node.scale is None else node.scale.float().expand(n).contiguous()
        bias = None if node.bias is None else node.bias.float().contiguous()
        arrived = Counters(config, node.m, n)

        def run(x: Tensor, *others: Tensor | None) -> tuple[Tensor]:
            residual = others[3] if len(others) > 3 else None
            return computed(
                x, weight, residual, epilogue, config, scale=scale, bias=bias, arrived=arrived.here(x.device)
            )

        return run


def _tile(config: GemmConfig) -> dict[str, Any]:
    """What both kernels take of a configuration, and how it is compiled."""
    return {
        "DESCRIPTORS": config.operands == "descriptors",
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP": config.group,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _describable(tensor: Tensor) -> bool:
    """Whether TMA takes a matrix where it lies."""
    return tensor.stride(0) * tensor.element_size() % TMA_BYTES == 0 and tensor.data_ptr() % TMA_BYTES == 0


def _described(tensor: Tensor, height: int, width: int) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [height, width])


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        # The interpreter walks over the tiles with as many programs as make it walk.
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


KERNEL = TritonLinear()
