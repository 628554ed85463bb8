"""Operations of one operator by the shapes of its tensors; see `costs` for what is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import onnx_ir as ir

Shape = tuple[int, ...]
ShapeOf = Callable[[ir.Value | None], Shape | None]

# Operations per element of the result.
PER_ELEMENT: Mapping[str, int] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "PRelu", "QLinearAdd"), 1),
    **dict.fromkeys(("Relu", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Tanh"), 1),
    **dict.fromkeys(("Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN"), 1),
    **dict.fromkeys(("And", "Or", "Not", "Xor", "Sign"), 1),
    **dict.fromkeys(("Sin", "Cos", "Floor", "Ceil", "Round", "LeakyRelu", "Sum", "Mean"), 1),
    **dict.fromkeys(("Clip", "BatchNormalization", "QuantizeLinear", "DequantizeLinear"), 2),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softplus"), 3),  # 1 / (1 + exp(−x))
    **dict.fromkeys(("Swish", "QuickGelu", "Mish", "HardSwish", "Elu"), 4),
    "RMSNormalization": 4,  # square, sum, divide, scale
    "SimplifiedLayerNormalization": 4,
    "Gelu": 5,  # x · (1 + erf(x / √2)) / 2
    "Softmax": 5,  # max, subtract, exp, sum, divide
    "LogSoftmax": 5,
    "LayerNormalization": 7,  # mean, subtract, square, sum, divide, scale, shift
    "InstanceNormalization": 7,
    "GroupNormalization": 7,
    "SkipLayerNormalization": 8,
    "Resize": 8,  # four neighbours, weighted and summed
    "GridSample": 8,
}
_SOFTMAX = PER_ELEMENT["Softmax"]
# They move, pick or make numbers, but compute none.
_MOVES = frozenset(
    {
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand"),
        *(
            "EyeLike",
            "Flatten",
            "Gather",
            "GatherElements",
            "GatherND",
            "Identity",
            "NonMaxSuppression",
            "NonZero",
        ),
        *("OneHot", "Pad", "Range", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze"),
    }
)
_REDUCTIONS = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"),
        *("GlobalAveragePool", "GlobalMaxPool", "ArgMax", "ArgMin", "CumSum"),
    }
)


def flops_of(node: ir.Node, shape_of: ShapeOf) -> float | None:
    """Return the operations of one call; 0 where numbers only move, None when shape or operator are unknown."""
    counter = _COUNTERS.get(node.op_type)
    if counter is not None:
        return counter(node, shape_of)
    output = shape_of(node.outputs[0])
    if node.op_type in PER_ELEMENT:
        return None if output is None else float(PER_ELEMENT[node.op_type] * prod(output))
    if node.op_type in _REDUCTIONS:
        source = shape_of(node.inputs[0])
        return None if source is None else float(prod(source))
    return 0.0 if node.op_type in _MOVES else None


def _matmul(node: ir.Node, shape_of: ShapeOf) -> float | None:
    # The quantised form has scale and zero point behind each operand; what is left first is an operand either way.
    left, output = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if left is None or output is None:
        return None
    turned = "transA" in node.attributes and node.attributes["transA"].as_int()
    return 2.0 * prod(output) * left[-2 if turned else -1]


def _gemm(node: ir.Node, shape_of: ShapeOf) -> float | None:
    left, output = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if left is None or output is None:
        return None
    turned = "transA" in node.attributes and node.attributes["transA"].as_int()
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    return 2.0 * prod(output) * left[0 if turned else -1] + (prod(output) if biased else 0)


def _conv(node: ir.Node, shape_of: ShapeOf) -> float | None:
    quantised = node.op_type == "QLinearConv"
    weight, output = shape_of(node.inputs[3 if quantised else 1]), shape_of(node.outputs[0])
    if weight is None or output is None:
        return None
    bias = 8 if quantised else 2
    biased = node.op_type != "ConvInteger" and len(node.inputs) > bias and node.inputs[bias] is not None
    # The kernel is (out, in / groups, …): what it holds per output channel is what each output number sums over.
    return 2.0 * prod(output) * prod(weight[1:]) + (prod(output) if biased else 0)


def _conv_transpose(node: ir.Node, shape_of: ShapeOf) -> float | None:
    source, weight = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    # The kernel is (in, out / groups, …): every input number is spread over that.
    return None if source is None or weight is None else 2.0 * prod(source) * prod(weight[1:])


def _pool(node: ir.Node, shape_of: ShapeOf) -> float | None:
    output = shape_of(node.outputs[0])
    return None if output is None else float(prod(output) * prod(node.attributes["kernel_shape"].as_ints()))


def _attention(node: ir.Node, shape_of: ShapeOf) -> float | None:
    """Two products and a softmax; inputs (batch, tokens, heads · width) or (batch, heads, tokens, width)."""
    query, key, value = (shape_of(one) for one in node.inputs[:3])
    if query is None or key is None or value is None:
        return None
    if len(query) == 4:
        heads, width, values = query[1], query[3], value[3]
    else:
        heads = node.attributes["num_heads" if node.domain else "q_num_heads"].as_int()
        kept = heads if node.domain else node.attributes["kv_num_heads"].as_int()
        width, values = query[-1] // heads, value[-1] // kept
    scores = query[0] * heads * query[-2] * key[-2]
    return float(scores * (2 * width + _SOFTMAX + 2 * values))


def _einsum(node: ir.Node, shape_of: ShapeOf) -> float | None:
    """Every combination of indices costs one multiplication per further operand and one addition."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        shape = shape_of(value)
        if shape is None:
            return None
        lengths |= _labelled(term, shape)
    return float(max(len(terms), 1) * prod(lengths.values()))


def _labelled(term: str, shape: Shape) -> dict[str, int]:
    """Name the axes of one operand; those under an ellipsis are counted from the right, as they broadcast."""
    front, dots, back = term.partition("...")
    if not dots:
        return dict(zip(term, shape, strict=True))
    hidden = shape[len(front) : len(shape) - len(back)]
    named = dict(zip(front, shape, strict=False)) | dict(zip(reversed(back), reversed(shape), strict=False))
    return named | {f".{at}": length for at, length in enumerate(reversed(hidden)) if length > 1}


_COUNTERS: Mapping[str, Callable[[ir.Node, ShapeOf], float | None]] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger"), _matmul),
    **dict.fromkeys(("Gemm", "FusedGemm"), _gemm),
    **dict.fromkeys(("Conv", "FusedConv", "QLinearConv", "ConvInteger"), _conv),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
}
