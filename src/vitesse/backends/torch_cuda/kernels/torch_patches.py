"""`torch.patches`: patch embedding by library calls, a convolution or a matrix product, and the concatenation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitesse.backends.torch_cuda.candidates import Attributes, DeviceFacts, Run, Tactic, Tensors


class TorchPatches:
    """The configuration says what makes the patches: {"by": "conv"} cuDNN, {"by": "gemm"} a copy and cuBLAS."""

    name = "torch.patches"
    step = "Patches"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Return "" or that the image is not whole patches."""
        image, patch = tensors[0], attributes["patch"]
        assert image is not None
        if image.shape[2] % patch or image.shape[3] % patch:
            return f"image of {image.shape[2]} × {image.shape[3]}: needs multiples of {patch}"
        return ""

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return both ways."""
        return [Tactic(self.name, {"by": "gemm"}), Tactic(self.name, {"by": "conv"})]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Lay the weight out as [C · patch², D] for the matrix product."""
        _, weight, tokens, positions = tensors
        assert weight is not None and tokens is not None and positions is not None
        patch, dtype = attributes["patch"], getattr(torch, attributes.get("out_dtype", "float16"))
        packed = weight.flatten(1).t().contiguous()
        conv = tactic.config["by"] == "conv"

        def run(*inputs: Tensor | None) -> tuple[Tensor]:
            image = inputs[0]
            assert image is not None
            pixels = image.to(weight.dtype)
            made = (
                F.conv2d(pixels, weight, stride=patch).flatten(2).transpose(1, 2)
                if conv
                else _gathered(pixels, patch) @ packed
            )
            out = torch.empty(
                (image.shape[0], len(tokens) + len(positions), packed.shape[1]),
                dtype=dtype,
                device=image.device,
            )
            out[:, : len(tokens)] = tokens
            # In float32 and rounded once: torch adds two 16-bit tensors so when it writes a third.
            torch.add(made, positions, out=out[:, len(tokens) :])
            return (out,)

        return run


KERNEL = TorchPatches()


def _gathered(image: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, patches, C · patch²], channels slowest."""
    batch, channels, height, width = image.shape
    split = image.view(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
