"""Decomposed GELU → Gelu (opset 20), exact (erf) and tanh-approximated (Hendrycks and Gimpel 2016,
arXiv:1606.08415).

exact: x · ½ · (1 + erf(x / √2)); tanh: x · ½ · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), in the orders and
factorings exporters write. The sigmoid form x · σ(1.702 x) is another function and stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import OrValue

from vitesse.fusion.rules import Fusion, FusionRule, LeftAlone, either, scalar

# Constants stored as float16 are off by up to 2**-11.
_TOLERANCE = 6e-4
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_EXPECTED = {
    "half": 0.5,
    "one": 1.0,
    "root_two": math.sqrt(2.0),
    "inverse_root_two": math.sqrt(0.5),
    "outer": math.sqrt(2.0 / math.pi),
    "cubic": 0.044715,
    "three": 3.0,
    "two": 2.0,
    "unit": 1.0,
}


def _erf_gate(op: Any, x: Any, names: dict[str, Any]) -> Any:
    """1 + erf(x / √2)."""
    argument = OrValue([op.Div(x, names["root_two"]), op.Mul(x, names["inverse_root_two"])])
    return op.Add(op.Erf(argument), names["one"])


def _tanh_gate(op: Any, x: Any, names: dict[str, Any]) -> Any:
    """1 + tanh(√(2/π) (x + 0.044715 x³)), also with the bracket written x (1 + 0.044715 x²)."""
    squared = OrValue([op.Mul(x, x), op.Pow(x, names["two"])])
    cubed = OrValue([op.Pow(x, names["three"]), either(op.Mul, x, squared)])
    scaled_cube = OrValue(
        [
            op.Mul(cubed, names["cubic"]),
            either(op.Mul, op.Mul(x, names["cubic"]), squared),
            either(op.Mul, x, op.Mul(squared, names["cubic"])),
        ]
    )
    factored = either(op.Mul, x, op.Add(op.Mul(squared, names["cubic"]), names["unit"]))
    bracket = OrValue([either(op.Add, x, scaled_cube), factored])
    return op.Add(op.Tanh(op.Mul(bracket, names["outer"])), names["one"])


class _Gelu(FusionRule):
    """x · ½ · gate, grouped as `grouping` says; the root may have its operands swapped."""

    def __init__(self, approximate: str, grouping: str, swapped: bool) -> None:
        super().__init__(f"gelu_{approximate}_{grouping}{'_swapped' if swapped else ''}")
        self._approximate, self._grouping, self._swapped = approximate, grouping, swapped

    def pattern(
        self,
        op: Any,
        x: Any,
        half: Any,
        one: Any,
        root_two: Any,
        inverse_root_two: Any,
        outer: Any,
        cubic: Any,
        three: Any,
        two: Any,
        unit: Any,
    ) -> Any:
        names = {
            "one": one,
            "root_two": root_two,
            "inverse_root_two": inverse_root_two,
            "outer": outer,
            "cubic": cubic,
            "three": three,
            "two": two,
            "unit": unit,
        }
        gate = (_erf_gate if self._approximate == "none" else _tanh_gate)(op, x, names)
        groupings: dict[str, Callable[[], tuple[Any, Any]]] = {
            "half_x": lambda: (op.Mul(x, half), gate),
            "half_gate": lambda: (x, op.Mul(gate, half)),
            "half_last": lambda: (either(op.Mul, x, gate), half),  # never swapped: constants stand right
        }
        factors = groupings[self._grouping]()
        return op.Mul(*(factors[::-1] if self._swapped else factors))

    def plan(self, *, x: ir.Value, **constants: ir.Value | None) -> ir.Value:
        if x.dtype not in _FLOATS:
            raise LeftAlone(f"the input is {x.dtype}, not floating point")
        for name, expected in _EXPECTED.items():
            value = constants.get(name)
            if value is None:
                continue
            number = scalar(value)
            if number is None:
                raise LeftAlone(f"the factor that should be {expected:.6g} is not a constant scalar")
            if not math.isclose(number, expected, rel_tol=_TOLERANCE):
                raise LeftAlone(f"a constant is {number:.6g} where GELU has {expected:.6g}")
        return x

    def build(self, op: Any, plan: ir.Value) -> Any:
        return op.Gelu(plan, approximate=self._approximate)


GELU = Fusion(
    "gelu",
    tuple(
        _Gelu.rule(approximate, grouping, swapped)
        for approximate in ("none", "tanh")
        for grouping, swapped in (
            ("half_x", False),
            ("half_x", True),
            ("half_gate", False),
            ("half_gate", True),
            ("half_last", False),
        )
    ),
    opset=20,
)
