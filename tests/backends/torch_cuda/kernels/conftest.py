"""What Triton 3.6's interpreter gets wrong, put right for the tests of kernels on the CPU.

Loop bounds: an array of one element, which NumPy 2.4 does not take for a Python integer. Narrow floats: rounding 7.83
to E4M3 loses the carry and gives 4, and bfloat16 is cut instead of rounded. Products of bfloat16: those of its bits.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if find_spec("torch") is None or find_spec("triton") is None:
    interpreter: Any = None
else:
    import torch
    from triton.runtime import interpreter

FLOATS = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2",
}
BITS = {1: (np.uint8, "uint8"), 2: (np.uint16, "int16"), 4: (np.uint32, "int32")}


def rounded(bits: Any, source: Any, target: Any, mode: Any = None) -> Any:
    """The bits of floats in another type, rounded to nearest even as the hardware does."""
    given = torch.from_numpy(np.array(bits, order="C").view(np.uint8).copy())
    made = given.view(getattr(torch, FLOATS[source.name])).to(getattr(torch, FLOATS[target.name]))
    unsigned, view = BITS[made.itemsize]
    return made.view(getattr(torch, view)).numpy().view(unsigned).reshape(np.shape(bits))


def with_integers(patch: Any) -> Any:
    """Let what patches Triton's tensors for the interpreter also take a loop bound out of its array."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched


def with_bfloat16(dot: Any) -> Any:
    """Let products of bfloat16 be those of the numbers."""
    single = interpreter.tl.float32

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar != interpreter.tl.bfloat16:
            return operand
        values = rounded(operand.data, operand.dtype.scalar, single).view(np.float32)
        return interpreter.TensorHandle(values, single)

    return lambda self, a, b, *others: dot(self, wide(a), wide(b), *others)


@pytest.fixture(autouse=True)
def interpreted_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreter is None:
        return
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_integers(interpreter._patch_lang_tensor))
    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(builder, "create_dot", with_bfloat16(builder.create_dot))
