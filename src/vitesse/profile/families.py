"""Operators that do the same work under the names of several runtimes, so that before and after can be compared."""

from __future__ import annotations

_FAMILIES = {
    "convolution": (
        "Conv",
        "FusedConv",
        "QLinearConv",
        "NhwcConv",
        "Convolution",
        "GroupConvolution",
        "ConvTranspose",
    ),
    "linear layer": (
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FusedGemm",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "FullyConnected",
        "FullyConnectedQuantizedLegacy",
    ),
    "attention": ("Attention", "MultiHeadAttention", "ScaledDotProductAttention", "Subgraph", "Softmax"),
    "normalisation": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "BatchNormalization",
        "MVN",
        "RMSNorm",
    ),
    "elementwise": (
        *(
            "Add",
            "Sub",
            "Subtract",
            "Mul",
            "Multiply",
            "Div",
            "Divide",
            "MulAdd",
            "QLinearAdd",
            "Pow",
            "Sqrt",
            "Erf",
        ),
        *(
            "Relu",
            "Gelu",
            "FastGelu",
            "BiasGelu",
            "QuickGelu",
            "Sigmoid",
            "QLinearSigmoid",
            "Tanh",
            "Clip",
            "Swish",
        ),
    ),
    "quantise and cast": ("QuantizeLinear", "DequantizeLinear", "FakeQuantize", "Cast", "Convert"),
    "layout": (
        *(
            "Transpose",
            "Reshape",
            "Concat",
            "Slice",
            "StridedSlice",
            "Split",
            "Gather",
            "Expand",
            "Tile",
            "Broadcast",
        ),
        *("Squeeze", "Unsqueeze", "Flatten", "Shape", "ShapeOf", "Reorder", "ReorderInput", "ReorderOutput"),
    ),
    "pooling": ("MaxPool", "AveragePool", "GlobalAveragePool", "QLinearAveragePool", "AvgPool"),
}
_FAMILY_OF = {operator: family for family, operators in _FAMILIES.items() for operator in operators}


def family(operator: str) -> str:
    """Return the kind of work an operator does, or its own name when it belongs to no family.

    OpenVINO's Subgraph, compiled from several operators, counts as attention: in a transformer that is what it holds.
    """
    return _FAMILY_OF.get(operator, operator)
