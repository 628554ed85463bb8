"""FP8 in its E4M3 form: one sign, four exponent and three mantissa bits, up to ±448, no infinities.

Source: Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv 2209.05433; in ONNX FLOAT8E4M3FN, which
QuantizeLinear and DequantizeLinear take from opset 19 on.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

LARGEST = 448.0
OPSET = 19
NUMBER: Any = np.dtype(ml_dtypes.float8_e4m3fn)


def to_e4m3(values: NDArray[np.floating]) -> NDArray[Any]:
    """Round to the nearest E4M3 number, ties to even; what is beyond ±448 becomes ±448, as QuantizeLinear does.

    Raises:
        ValueError: a value is NaN: a weight that is none cannot be stored.
    """
    if np.isnan(values).any():
        raise ValueError("NaN among the values to round")
    rounded: NDArray[Any] = np.clip(values, -LARGEST, LARGEST).astype(NUMBER)
    return rounded
