"""`separate.norm_linear`: the norm in one kernel and the product in another, whichever of those for `Linear` it is."""

from __future__ import annotations

from itertools import chain, zip_longest

from torch import Tensor

from vitesse.backends.torch_cuda.candidates import (
    Attributes,
    DeviceFacts,
    Run,
    Tactic,
    Tensors,
    kernels,
    tactic_of,
)
from vitesse.backends.torch_cuda.kernels.norm import KERNEL as NORM
from vitesse.backends.torch_cuda.kernels.norm_linear import layer_of

# A library that is absent here leaves its products out.
PRODUCTS = kernels(
    {
        "cublaslt.linear": "vitesse.backends.torch_cuda.kernels.cublaslt:KERNEL",
        "triton.linear": "vitesse.backends.torch_cuda.kernels.linear:KERNEL",
        "torch.linear": "vitesse.backends.torch_cuda.kernels.torch_linear:KERNEL",
    }
).found


# The norm's ranking hangs on its rows alone.
ANY_DEVICE = DeviceFacts((8, 0), 1, "any")


class SeparateNormLinear:
    """Kernel `separate.norm_linear`; see candidates.Kernel.

    A configuration is the tactic of a product as `Tactic.document` has it; the norm takes its own best guess.
    """

    name = "separate.norm_linear"
    step = "NormLinear"

    def refuses(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> str:
        """Refuse what the norm does, and what every product does."""
        said = NORM.refuses(_norm_of(tensors), {"wanted": "100"}, device)
        if said:
            return said
        reasons = [one.refuses(layer_of(tensors), attributes, device) for one in PRODUCTS.values()]
        return "" if "" in reasons else "; ".join(reasons)

    def tactics(self, tensors: Tensors, attributes: Attributes, device: DeviceFacts) -> list[Tactic]:
        """Return the products' tactics, the best guess of each first, then their second ones, and so on."""
        layer = layer_of(tensors)
        able = [one for one in PRODUCTS.values() if not one.refuses(layer, attributes, device)]
        ranked = zip_longest(*(one.tactics(layer, attributes, device) for one in able))
        return [Tactic(self.name, one.document()) for one in chain.from_iterable(ranked) if one is not None]

    def prepare(self, tensors: Tensors, attributes: Attributes, tactic: Tactic) -> Run:
        """Prepare both; the call computes one after the other."""
        rows = _norm_of(tensors)
        keywords = {"epsilon": attributes.get("epsilon", 1e-5), "wanted": "100"}
        norm = NORM.prepare(rows, keywords, NORM.tactics(rows, keywords, ANY_DEVICE)[0])
        product = tactic_of(dict(tactic.config))
        layer = PRODUCTS[product.kernel].prepare(layer_of(tensors), attributes, product)

        def run(*given: Tensor | None) -> tuple[Tensor | None, ...]:
            normalised, _, _ = norm(*_norm_of(given))
            _, weight, _, bias, residual = layer_of(given)
            return layer(normalised, weight, None, bias, residual)

        return run


def _norm_of(tensors: Tensors) -> Tensors:
    x, gain, shift = tensors[:3]
    return x, gain, shift, None


KERNEL = SeparateNormLinear()
