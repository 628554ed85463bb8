"""What every operator is tested on: inputs, attributes and opset, by operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fusing import normal

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One node: inputs (None where one is left out), attributes, outputs and opset; the runtime is the expectation."""

    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 23


def case(*inputs: Any, outputs: int = 1, opset: int = 23, **attributes: Any) -> Case:
    """A case; lists become int64 arrays, and every array lies row by row."""
    arrays = [np.array(one, np.int64) if isinstance(one, list) else one for one in inputs]
    whole = tuple(None if one is None else np.array(one, order="C") for one in arrays)
    return Case(whole, attributes, outputs, opset)


def whole(*values: Any, dtype: Any = np.int64) -> Array:
    return np.array(values, dtype)


X = normal(2, 3, 4, seed=1)
SQUARE = normal(2, 3, 5, 6, seed=2)
POSITIVE = np.abs(X) + np.float32(0.1)
UNIT = np.tanh(X)
BOOLS = X > 0
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -2.5, 1.5], np.float32)
INTEGERS = np.random.default_rng(3).integers(-9, 9, (2, 3, 4))
POWERS = np.where(INTEGERS == 0, 3, INTEGERS)
E4M3 = ml_dtypes.float8_e4m3fn

ARITHMETIC: dict[str, list[Case]] = {
    **{
        name: [case(X)]
        for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish")
    },
    **{
        name: [case(X)]
        for name in ("Neg", "Relu", "Sigmoid", "Sign", "Sin", "Softsign", "Tan", "Tanh", "Atan")
    },
    **{name: [case(POSITIVE)] for name in ("Log", "Reciprocal", "Sqrt")},
    "Acos": [case(UNIT)],
    "Asin": [case(UNIT)],
    "Softplus": [case(X), case(X * 30)],
    "Round": [case(np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.4999], np.float32))],
    "IsNaN": [case(SPECIAL)],
    "IsInf": [case(SPECIAL), case(SPECIAL, detect_negative=0), case(SPECIAL, detect_positive=0)],
    "Not": [case(BOOLS)],
    **{name: [case(X, normal(3, 1)), case(INTEGERS, POWERS)] for name in ("Add", "Sub", "Mul", "Div")},
    **{name: [case(BOOLS, ~BOOLS[:1])] for name in ("And", "Or", "Xor")},
    **{
        name: [case(INTEGERS, POWERS[:, :1]), case(X, X[:1])]
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    "Pow": [case(X, np.float32(2)), case(POSITIVE, normal(4)), case(X, np.array(3, np.int64))],
    "PRelu": [case(X, POSITIVE[0])],
    **{name: [case(X), case(X, normal(3, 1), normal(4))] for name in ("Max", "Min", "Sum")},
    "Clip": [
        case(X, np.float32(-0.5), np.float32(0.5)),
        case(X, None, np.float32(0.5)),
        case(X, np.float32(0)),
        case(X),
    ],
    "Mod": [case(INTEGERS, POWERS), case(X, POSITIVE, fmod=1), case(INTEGERS, POWERS, fmod=1)],
    "Gelu": [case(X), case(X, approximate="tanh")],
    "HardSigmoid": [case(X * 3), case(X * 3, alpha=0.5, beta=0.1)],
    "Elu": [case(X), case(X, alpha=0.5)],
    "LeakyRelu": [case(X), case(X, alpha=0.3)],
    "Swish": [case(X, opset=24), case(X, opset=24, alpha=1.7)],
    "Where": [case(BOOLS, X, np.float32(0)), case(BOOLS[0], INTEGERS, INTEGERS[:1])],
    "Dropout": [case(X), case(X, np.float32(0.5)), case(X, outputs=2)],
    "Cast": [
        case(X, to=TensorProto.FLOAT16),
        case(X * 9, to=TensorProto.INT32),
        case(X, to=TensorProto.BOOL),
        case(INTEGERS, to=TensorProto.FLOAT),
        case(BOOLS, to=TensorProto.INT64),
        case(np.array([447, 449, 479, 1e4, -1e9, 0.3], np.float32), to=TensorProto.FLOAT8E4M3FN),
        case(np.array([447, 463, 1e4, -1e9, 0.3], np.float32), to=TensorProto.FLOAT8E4M3FN, saturate=0),
    ],
    "CastLike": [case(X, INTEGERS), case(X * 900, np.zeros(1, E4M3))],
}

MATRICES: dict[str, list[Case]] = {
    "MatMul": [
        case(X, normal(2, 4, 5)),
        case(X, normal(4, 5)),
        case(X, normal(4)),
        case(normal(4), normal(4, 3)),
    ],
    "Gemm": [
        case(X[0], normal(4, 5)),
        case(X[0], normal(4, 5), normal(5)),
        case(X[0], normal(5, 4), normal(3, 1), transB=1, alpha=0.5, beta=2.0),
        case(X[0], normal(3, 5), None, transA=1, alpha=0.5),
    ],
    "Einsum": [
        case(X, normal(2, 5, 4), equation="bij, bkj -> bik"),
        case(X, equation="bii" if X.shape[1] == X.shape[2] else "bij->b"),
        case(X, normal(4, 5), equation="...j,jk->...k"),
    ],
    "Attention": [
        case(normal(2, 5, 12), normal(2, 7, 12), normal(2, 7, 6, seed=3), q_num_heads=3, kv_num_heads=3),
        case(normal(2, 3, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 4, seed=3), scale=0.3),
        case(normal(2, 5, 12), normal(2, 7, 4), normal(2, 7, 4, seed=3), q_num_heads=3, kv_num_heads=1),
        case(*[normal(2, 5, 12, seed=at) for at in range(3)], normal(5, 5), q_num_heads=3, kv_num_heads=3),
        case(*[normal(2, 5, 12, seed=at) for at in range(3)], q_num_heads=2, kv_num_heads=2, is_causal=1),
        case(*[normal(2, 2, 5, 8, seed=at) for at in range(3)], normal(5, 5) > -1, is_causal=0),
        case(*[normal(2, 2, 5, 8, seed=at) for at in range(3)], normal(5, 5), is_causal=1),
    ],
}

NORMALISATION: dict[str, list[Case]] = {
    "Softmax": [case(X), case(X, axis=1), case(X * 100, axis=0)],
    "LogSoftmax": [case(X), case(X, axis=1)],
    "LayerNormalization": [
        case(X, normal(4), normal(4, seed=5)),
        case(X, normal(4), epsilon=0.1),
        case(X, normal(3, 4), normal(3, 4, seed=5), axis=1),
        case(X, normal(4), normal(4, seed=5), outputs=3),
        case(X.astype(np.float16), normal(4).astype(np.float16), normal(4, seed=5).astype(np.float16)),
    ],
    "RMSNormalization": [case(X, normal(4)), case(X, normal(3, 4), axis=1, epsilon=0.1)],
    "BatchNormalization": [case(SQUARE, normal(3), normal(3, seed=1), normal(3, seed=2), np.abs(normal(3)))],
    "InstanceNormalization": [case(SQUARE, normal(3), normal(3, seed=1), epsilon=0.1)],
    "GroupNormalization": [
        case(normal(2, 6, 5), normal(6), normal(6, seed=1), num_groups=3),
        case(normal(2, 6, 5), normal(3), normal(3, seed=1), num_groups=3, opset=18),
    ],
    "LpNormalization": [case(X), case(X, p=1, axis=1)],
}

QUANTISATION: dict[str, list[Case]] = {
    "QuantizeLinear": [
        case(X, np.float32(0.02), np.array(3, np.int8)),
        case(X, np.float32(0.02), np.array(120, np.uint8)),
        case(X, np.float32(0.02)),
        case(X, np.abs(normal(3)) / 30, whole(1, 0, -5, dtype=np.int8), axis=1),
        case(X * 300, np.float32(0.7), np.zeros((), E4M3)),
        case(X * 3, np.abs(normal(4)), output_dtype=TensorProto.FLOAT8E4M3FN, axis=-1),
        case(X.astype(np.float16), np.float16(0.013), np.zeros((), E4M3)),
        case(np.array([0.5, 1.5, -0.5, -1.5, 2.5], np.float32), np.float32(1), np.array(0, np.int8)),
    ],
    "DequantizeLinear": [
        case(whole(-128, 0, 127, dtype=np.int8), np.float32(0.3), np.array(5, np.int8)),
        case(whole(0, 128, 255, dtype=np.uint8), np.float32(0.3), np.array(128, np.uint8)),
        case(INTEGERS.astype(np.int8), normal(3), whole(1, 0, -5, dtype=np.int8), axis=1),
        case(INTEGERS.astype(np.int32), np.float32(0.3)),
        case((X * 50).astype(E4M3), np.float32(0.3), np.zeros((), E4M3)),
        case((X * 50).astype(E4M3), normal(4).astype(np.float16), axis=2),
    ],
}

CONVOLUTIONS: dict[str, list[Case]] = {
    "Conv": [
        case(SQUARE, normal(4, 3, 3, 3)),
        case(SQUARE, normal(4, 3, 3, 3), normal(4), strides=[2, 1], pads=[1, 1, 1, 1]),
        case(SQUARE, normal(4, 3, 3, 3), pads=[0, 1, 2, 3]),
        case(SQUARE, normal(6, 1, 3, 3), group=3, dilations=[2, 2]),
        case(SQUARE, normal(4, 3, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
        case(SQUARE, normal(4, 3, 2, 3), auto_pad="SAME_LOWER"),
        case(SQUARE, normal(4, 3, 2, 2), auto_pad="VALID", kernel_shape=[2, 2]),
        case(X, normal(5, 3, 2), pads=[1, 0]),
        case(normal(1, 2, 4, 4, 4), normal(3, 2, 2, 2, 2)),
    ],
    "ConvTranspose": [
        case(SQUARE, normal(3, 4, 2, 2), normal(4), strides=[2, 2]),
        case(SQUARE, normal(3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        case(SQUARE, normal(3, 2, 3, 3), pads=[0, 1, 2, 1]),
        case(normal(1, 4, 5), normal(4, 1, 3), group=4),
    ],
    "MaxPool": [
        case(SQUARE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        case(SQUARE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        case(SQUARE, kernel_shape=[2, 3], pads=[0, 1, 1, 2]),
        case(SQUARE, kernel_shape=[2, 2], dilations=[2, 2]),
        case(SQUARE, kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        case(X, kernel_shape=[2]),
    ],
    "AveragePool": [
        case(SQUARE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        case(SQUARE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        case(SQUARE, kernel_shape=[2, 3], pads=[0, 1, 1, 2]),
        case(SQUARE, kernel_shape=[2, 3], pads=[0, 1, 1, 2], count_include_pad=1),
        case(SQUARE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    ],
    "GlobalAveragePool": [case(SQUARE)],
    "GlobalMaxPool": [case(SQUARE)],
}

_SCALES, _SIZES = np.array([1, 1, 1.6, 0.7], np.float32), [2, 3, 8, 3]
_GRID = np.tanh(normal(2, 4, 3, 2)) * np.float32(1.3)
SAMPLING: dict[str, list[Case]] = {
    "Resize": [
        *(
            case(SQUARE, None, _SCALES, coordinate_transformation_mode=coordinates, nearest_mode=rounding)
            for coordinates in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
            for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        ),
        case(SQUARE, None, None, _SIZES),
        case(SQUARE, None, None, [10, 12], axes=[2, 3], mode="linear"),
        case(SQUARE, None, _SCALES, mode="linear"),
        case(SQUARE, None, None, _SIZES, mode="linear", coordinate_transformation_mode="align_corners"),
        case(SQUARE, None, None, _SIZES, mode="cubic"),
        case(SQUARE, None, _SCALES, mode="cubic", coordinate_transformation_mode="pytorch_half_pixel"),
        case(SQUARE, np.zeros(0, np.float32), _SCALES, mode="linear", opset=13),
    ],
    "GridSample": [
        *(
            case(SQUARE, _GRID, mode=mode, padding_mode=padding, align_corners=corners)
            for mode in ("linear", "nearest", "cubic")
            for padding in ("zeros", "border", "reflection")
            for corners in (0, 1)
        ),
        case(SQUARE, _GRID, mode="bicubic", opset=16),
    ],
}

_TENSOR = numpy_helper.from_array
SHAPES: dict[str, list[Case]] = {
    "Shape": [case(X), case(X, start=1), case(X, start=-2, end=-1)],
    "Size": [case(X)],
    "Reshape": [
        case(X, [0, -1]),
        case(X, [4, 6]),
        case(normal(0, 3), [0, 5], allowzero=1),
        case(np.float32(3), [1]),
    ],
    "Transpose": [case(X), case(X, perm=[2, 0, 1])],
    "Flatten": [case(X), case(X, axis=0), case(X, axis=-1)],
    "Squeeze": [
        case(X[:1, :, :1]),
        case(X[:1, :, :1], [-1]),
        case(X[:1, :, :1], axes=[0], opset=11),
    ],
    "Unsqueeze": [case(X, [0, -1]), case(X, [3, 1]), case(X, axes=[1], opset=11)],
    "Concat": [case(X, X[:, :1], axis=1), case(X, axis=-1)],
    "Split": [
        case(X, [1, 3], axis=2, outputs=2),
        case(normal(2, 5), axis=-1, num_outputs=3, outputs=3),
        case(X, axis=1, outputs=3, opset=13),
        case(X, axis=2, split=[3, 1], outputs=2, opset=11),
    ],
    "Slice": [
        case(X, [1], [2]),
        case(X, [0, -3], [2**62, -1], [0, 2]),
        case(X, [-1], [-(2**62)], [2], [-1]),
        case(X, [3], [0], [2], [-2]),
        case(X, [0], [4], [-1], [3]),
        case(X, [2], [1], [0]),
    ],
    "Expand": [case(X[:, :1], [2, 3, 4]), case(X, [1]), case(X[0, :1], [5, 1, 3, 1])],
    "Tile": [case(X, [2, 1, 3])],
    "Pad": [
        case(X, [0, 1, 0, 0, 0, 2]),
        case(X, [0, -1, 1, 0, 0, -2], np.float32(7)),
        case(X, [1, 2], None, [-1]),
        case(INTEGERS, [1, 2], np.array(5, np.int64), [1]),
        *(case(X, [0, 1, 2, 0, 2, 3], mode=mode) for mode in ("edge", "reflect", "wrap")),
    ],
    "DepthToSpace": [case(normal(2, 8, 3, 2), blocksize=2, mode=mode) for mode in ("DCR", "CRD")],
    "SpaceToDepth": [case(normal(2, 3, 4, 6), blocksize=2)],
}

INDEXING: dict[str, list[Case]] = {
    "Constant": [
        case(value=_TENSOR(X)),
        case(value_int=3),
        case(value_ints=[3, 4]),
        case(value_float=0.5),
        case(value_floats=[0.5, 2.0]),
    ],
    "ConstantOfShape": [case([2, 3]), case([2, 0]), case([4], value=_TENSOR(whole(7))), case([])],
    "Range": [
        case(*(np.array(one, np.int64) for one in (2, 11, 3))),
        case(*(np.float32(one) for one in (5, 1, -0.5))),
        case(*(np.array(one, np.int64) for one in (3, 3, 1))),
    ],
    "EyeLike": [case(X[0]), case(X[0], k=-1, dtype=TensorProto.INT64)],
    "Gather": [
        case(X, [[0, 2], [-1, 1]], axis=1),
        case(X, np.array(1, np.int64)),
        case(X, np.array(-1, np.int32), axis=-1),
    ],
    "GatherElements": [case(X, [[[0, -1, 1, 0]], [[1, 0, 0, -2]]], axis=1)],
    "GatherND": [
        case(X, [[0, 1], [1, -1]]),
        case(X, [[0, 1, 3]]),
        case(X, [[[1], [-1]], [[0], [2]]], batch_dims=1),
    ],
    "ScatterElements": [
        case(X, [[[0, 2, 1, 0]]], normal(1, 1, 4), axis=1),
        case(X, [[[0, -1, 0, 0]]], normal(1, 1, 4), axis=1),
        *(
            case(X, [[[0, 0, 1, 1], [0, 1, 1, 0]]], normal(1, 2, 4), axis=1, reduction=reduction)
            for reduction in ("add", "mul", "max", "min")
        ),
    ],
    "ScatterND": [
        case(X, [[0, 1], [1, -1]], normal(2, 4)),
        *(case(X, [[0], [0]], normal(2, 3, 4), reduction=one) for one in ("add", "mul", "max", "min")),
    ],
    "Trilu": [case(X), case(X, np.array(1, np.int64)), case(X, np.array(-1, np.int64), upper=0)],
    "OneHot": [
        case([[0, 2], [-1, 5]], np.array(4, np.int64), np.array([0, 3], np.float32)),
        case([0, 2], np.array(3, np.int64), np.array([1, 5], np.float32), axis=0),
    ],
    "NonZero": [case(BOOLS), case(np.array([[1, 0, 3], [0, 5, 0]], np.int64))],
    "TopK": [case(X, [2], outputs=2), case(X, [2], outputs=2, axis=1, largest=0)],
}

_REDUCED = [case(X, [1]), case(X, [0, -1], keepdims=0), case(X), case(X, noop_with_empty_axes=1)]
REDUCTIONS: dict[str, list[Case]] = {
    **{
        name: [*_REDUCED, case(X, axes=[1], opset=11), case(INTEGERS, [1])]
        for name in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
    },
    **{name: [*_REDUCED, case(X, axes=[-1], opset=11)] for name in ("ReduceMean", "ReduceL1", "ReduceL2")},
    "ReduceSumSquare": _REDUCED,
    "ReduceLogSumExp": _REDUCED[:3],
    **{
        name: [
            case(INTEGERS.astype(np.float32), axis=2),
            case(INTEGERS.astype(np.float32), axis=-1, keepdims=0, select_last_index=1),
        ]
        for name in ("ArgMax", "ArgMin")
    },
    "CumSum": [
        case(X, np.array(1, np.int64)),
        case(X, np.array(-1, np.int64), exclusive=1),
        case(X, np.array(0, np.int64), reverse=1, exclusive=1),
    ],
}

CASES: dict[str, list[Case]] = {
    **ARITHMETIC,
    **MATRICES,
    **NORMALISATION,
    **QUANTISATION,
    **CONVOLUTIONS,
    **SAMPLING,
    **SHAPES,
    **INDEXING,
    **REDUCTIONS,
}


def onnx_type(array: Array) -> int:
    """The type of an array, as ONNX numbers it."""
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
