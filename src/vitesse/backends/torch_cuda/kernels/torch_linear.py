"""`torch.linear`: PyTorch's own matrix products, with what they do not fuse as operators of its own after them."""

from __future__ import annotations

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors
from vitesse.backends.torch_cuda.kernels.linear_operands import Epilogue, Operands, rows_of
from vitesse.backends.torch_cuda.steps import ACTIVATIONS, E4M3, quantised

HALVES = (torch.float16, torch.bfloat16)
# _scaled_mm takes E4M3 in rows of a multiple of 16 bytes.
E4M3_MULTIPLE = 16


class TorchLinear:
    """addmm (with ReLU in its epilogue), or _scaled_mm for E4M3, for the step `Linear`.

    What is not fused works on the product rounded to the output's type, once more than the fused kernels round.
    """

    name = "torch.linear"
    step = "Linear"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or why not: E4M3 on an old GPU or in rows that _scaled_mm does not take."""
        node = Operands.of(tensors)
        if node.weight.dtype != node.x.dtype:
            return f"x is {node.x.dtype}, its weight {node.weight.dtype}"
        if node.x.dtype != E4M3:
            return "" if node.x.dtype in (torch.float32, *HALVES) else f"no matrix product of {node.x.dtype}"
        if device.capability < (8, 9):
            return f"E4M3 needs compute capability 8.9, this is {device.capability}"
        if node.k % E4M3_MULTIPLE or node.n % E4M3_MULTIPLE:
            return f"_scaled_mm takes K and N in multiples of {E4M3_MULTIPLE}, not {node.k} and {node.n}"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the product with each layout of the weight, or for E4M3 with each way to sum."""
        if Operands.of(tensors).x.dtype == E4M3:
            return [Tactic(self.name, {"fast_sum": fast}) for fast in (True, False)]
        return [Tactic(self.name, {"weight": layout}) for layout in ("nk", "kn")]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Lay the weight as the tactic has it and return the call."""
        node, epilogue = Operands.of(tensors), Epilogue.of(attributes)
        if node.x.dtype == E4M3:
            return _scaled(node, epilogue, bool(tactic.config["fast_sum"]))
        return _plain(node, epilogue, str(tactic.config["weight"]))


KERNEL = TorchLinear()


def finished(y: Tensor, residual: Tensor | None, epilogue: Epilogue) -> Tensor:
    """Return y [M, N] with activation, residual [R, N] (R divides M) and type of the output, one operator each."""
    act = ACTIVATIONS[epilogue.activation]
    if residual is None:
        y = act(y)
    else:
        # Rows that the batch shares are added to every image's.
        images = y.view(-1, *residual.shape)
        y = (act(images + residual) if epilogue.residual_first else act(images) + residual).view(y.shape)
    return quantised(y, epilogue.out_scale) if epilogue.out_scale > 0 else y.to(epilogue.dtype)


def _plain(node: Operands, epilogue: Epilogue, layout: str) -> Run:
    weight = node.weight.t().contiguous().t() if layout == "nk" else node.weight.contiguous()
    n = node.n
    bias = None if node.bias is None else node.bias.to(weight.dtype)
    relu = epilogue.activation == "relu" and bias is not None and node.scale is None
    relu = relu and (node.residual is None or not epilogue.residual_first)
    after = Epilogue(
        "" if relu else epilogue.activation, epilogue.residual_first, epilogue.dtype, epilogue.out_scale
    )
    scale = node.scale

    def run(x: Tensor, *others: Tensor | None) -> tuple[Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        if scale is not None:
            y = torch.mm(rows, weight).float() * scale
            y = y if bias is None else y + bias
        elif bias is None:
            y = torch.mm(rows, weight)
        elif relu:
            y = torch._addmm_activation(bias, rows, weight)
        else:
            y = torch.addmm(bias, rows, weight)
        residual = rows_of(others[3] if len(others) > 3 else None, n)
        return (finished(y, residual, after).view(*x.shape[:-1], n),)

    return run


def _scaled(node: Operands, epilogue: Epilogue, fast: bool) -> Run:
    """E4M3 products. One scale goes into the product; one for each column follows it, on the sums in float32."""
    weight = node.weight.t().contiguous().t()
    n = node.n
    one = torch.ones((), dtype=torch.float32, device=weight.device)
    inside = node.scale is None or node.scale.numel() == 1
    scale = one if node.scale is None or not inside else node.scale.float().reshape(())
    columns = None if inside else node.scale
    made = torch.float32 if not inside or epilogue.out_scale > 0 else epilogue.dtype
    # cuBLAS wants the bias in the 16 bits of the output; beside float32 it is added after.
    bias = None if node.bias is None else node.bias.to(made)
    fused = bias if made in HALVES else None

    def run(x: Tensor, *others: Tensor | None) -> tuple[Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        y = torch._scaled_mm(rows, weight, scale, one, bias=fused, out_dtype=made, use_fast_accum=fast)
        if columns is not None:
            y = y * columns
        if bias is not None and fused is None:
            y = y + bias
        residual = rows_of(others[3] if len(others) > 3 else None, n)
        return (finished(y, residual, epilogue).view(*x.shape[:-1], n),)

    return run
