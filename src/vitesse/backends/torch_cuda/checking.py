"""Does a plan compute what its graph says? Held against plain torch on the graph as it was before any rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from vitesse.backends.torch_cuda.binding import Binder, Call, fed
from vitesse.backends.torch_cuda.comparing import disagreement, relative_error
from vitesse.backends.torch_cuda.execute import Plain
from vitesse.backends.torch_cuda.operators.constants import torch_dtype
from vitesse.errors import BackendError

# ‖y − y₀‖ / ‖y₀‖ of a whole network that the roundings of its lowest precision explain.
_WHOLE = {32: 1e-3, 16: 5e-2, 8: 0.25}
# What comes behind these jumps where two values are nearly equal, so that small differences say nothing.
_JUMPING = frozenset(
    {"TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
)
_BITS = {ir.DataType.FLOAT8E4M3FN: 8, ir.DataType.INT8: 8, ir.DataType.UINT8: 8, ir.DataType.FLOAT16: 16}
_SEED = 20


def example_feeds(static: ir.Model, device: torch.device) -> dict[str, Tensor]:
    """Return inputs for a static graph: normal noise, as normalised images are; ones where it takes no floats."""
    generator = torch.Generator().manual_seed(_SEED)
    made: dict[str, Tensor] = {}
    for value in fed(static.graph):
        assert value.shape is not None
        shape = tuple(int(length) for length in value.shape.numpy())
        dtype = torch_dtype(value.dtype, str(value.name))
        noise = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.ones(shape)
        made[str(value.name)] = noise.to(device, dtype)
    return made


def check_plan(
    static: ir.Model,
    calls: Sequence[Call],
    fused: ir.Graph,
    binder: Binder,
    feeds: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> None:
    """Hold a plan's outputs against those of plain torch on the static graph.

    Outputs behind a choice, such as TopK, are left out: which of two equal scores comes first says nothing.

    Args:
        static: the graph as specialised, before it was rewritten.
        calls, fused, binder: of the plan, to find the node at fault.
        feeds: what both are run on; `found` the plan's outputs for it.

    Raises:
        BackendError: an output differs by more than the roundings of the graph's types explain; names the first node
            whose tactic differs from its plain form, or says that the rewriting is at fault.
    """
    expected = Plain(static, binder.device).run(feeds)
    allowed = _WHOLE[_least_bits(static)]
    for name in _steady(static):
        error = relative_error(found[name], expected[name])
        if error <= allowed:
            continue
        raise BackendError(
            f"the plan's output {name!r} is off by {error:.1e} of its norm on random inputs",
            expected=f"at most {allowed:.0e}, against plain torch on the same graph",
            cause=_first_wrong(calls, fused, binder, feeds),
            fix="report it with the graph; load with LoadOptions(plain=True) until then",
        )


def _first_wrong(calls: Sequence[Call], fused: ir.Graph, binder: Binder, feeds: Mapping[str, Tensor]) -> str:
    """Run step by step, each tactic beside the plain function on the same tensors."""
    values: dict[ir.Value, Tensor | None] = {value: feeds[str(value.name)] for value in fed(fused)}
    for call, node in zip(calls, fused, strict=True):
        given = tuple(binder.given(node, number, values) for number in range(len(call.inputs)))
        made = call.run(*given)
        wanted = "".join(str(int(value is not None)) for value in call.outputs)
        plain = call.plain(*given)[: len(wanted)]
        said = disagreement(made[: len(wanted)], plain, wanted=wanted)
        if said:
            return f"node {call.row.node!r} ({call.row.step}, by {call.row.tactic}): {said}"
        values |= {value: one for value, one in zip(call.outputs, made, strict=False) if value is not None}
        for value in call.drops:
            values.pop(value, None)
    return "every step is right by itself: a rewrite of the graph is not"


def _least_bits(static: ir.Model) -> int:
    types = {
        value.dtype for node in static.graph for value in (*node.inputs, *node.outputs) if value is not None
    }
    floats = [
        _BITS.get(dtype, 16 if dtype == ir.DataType.BFLOAT16 else 32) for dtype in types if dtype is not None
    ]
    return min(floats, default=32)


def _steady(static: ir.Model) -> list[str]:
    """Names of the float outputs that no choice between values stands before."""
    behind: set[ir.Value] = set()
    for node in static.graph:
        if node.op_type in _JUMPING or any(value in behind for value in node.inputs if value is not None):
            behind.update(node.outputs)
    return [
        str(value.name)
        for value in static.graph.outputs
        if value not in behind and value.dtype is not None and value.dtype.is_floating_point()
    ]
