"""Which layers may be quantised, into which blocks they fall, and what share of the operations they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest

from deimv2 import deimv2
from fashion import DETR, VIT, without_names
from fusing import graph, normal
from vitesse.errors import DataError
from vitesse.fusion import clean_model, fuse_model
from vitesse.precision.layers import Layer, blocks_of, flops_share, layers_of, node_names
from vitesse.profile.costs import Cost, costs_of

HEADS = ("class_embed", "bbox_embed", "score_head", "bbox_head", "lqe_layers")


def network(*, norm: bool = True) -> onnx.ModelProto:
    """Two convolutions, pooled; a projection, a product of activations, a norm and a head. Input (1, 3, 8, 8)."""
    last = "n = LayerNormalization(h, one, zero)" if norm else "n = Identity(h)"
    return graph(
        f"""a = Conv<pads = [1, 1, 1, 1]>(x, stem) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, conv)
            d = GlobalAveragePool(c) e = Flatten(d) f = MatMul(e, projection) t = Transpose<perm = [1, 0]>(f)
            s = MatMul(f, t) g = MatMul(s, f) h = Gemm<transB = 1>(g, wide, wide_bias) {last} y = MatMul(n, head)""",
        "float[1,3,8,8] x",
        "float[1,4] y",
        stem=normal(16, 3, 3, 3),
        conv=normal(16, 16, 3, 3),
        projection=normal(16, 16),
        wide=normal(24, 16),
        wide_bias=normal(24),
        one=np.ones(24, np.float32),
        zero=np.zeros(24, np.float32),
        head=normal(24, 4),
    )


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    return {
        name: fuse_model(clean_model(onnx.load(path)).model).model
        for name, path in (("detr", DETR), ("vit", VIT))
    }


def weights(layers: tuple[Layer, ...]) -> list[str]:
    return [layer.weight for layer in layers]


@pytest.mark.parametrize("norm", [True, False])
def test_the_first_convolution_the_head_and_products_of_activations_are_no_layers(norm: bool) -> None:
    assert weights(layers_of(network(norm=norm))) == ["conv", "projection", "wide"]


def test_a_layer_names_its_tensors_and_the_axis_of_its_channels() -> None:
    conv, projection, wide = layers_of(network())
    assert (conv.activation, conv.output, conv.channel_axis, conv.op_type) == ("b", "c", 1, "Conv")
    assert (projection.activation, projection.output, projection.channel_axis) == ("e", "f", -1)
    assert (wide.op_type, wide.weight, wide.factor) == ("Gemm", "wide", "")


def test_the_share_of_operations_has_the_first_convolution_and_the_head_in_the_whole() -> None:
    model = network()
    layers = layers_of(model)
    # 2 operations per multiply-add: stem 16·3·9·64 positions, conv 16·16·9·64, projection 16·16, wide 16·24 with
    # 24 additions of the bias, head 24·4.
    conv, projection, wide = 2 * 16 * 16 * 9 * 64, 2 * 16 * 16, 2 * 16 * 24 + 24
    whole = 2 * 16 * 3 * 9 * 64 + conv + projection + wide + 2 * 24 * 4
    assert [layer.flops for layer in layers] == [conv, projection, wide]
    assert flops_share(layers, model) == pytest.approx((conv + projection + wide) / whole)
    assert flops_share(layers[:1], model) == pytest.approx(conv / whole)
    assert flops_share([], model) == 0


def test_a_graph_is_counted_once_and_again_when_it_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[onnx.ModelProto] = []

    def count(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> tuple[Cost, ...]:
        counted.append(model)
        return costs_of(model, inputs)

    monkeypatch.setattr("vitesse.precision.layers.costs_of", count)
    monkeypatch.setattr("vitesse.precision.layers._counted", {})
    model = network()
    layers, same = layers_of(model), layers_of(onnx.load_from_string(model.SerializeToString()))
    assert layers == same and len(counted) == 1
    assert flops_share(layers, model) == flops_share(same, model) and len(counted) == 1
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    assert layers_of(model)[0].flops == 2 * (layers[0].flops or 0) and len(counted) == 2
    for _ in range(9):  # more than are remembered
        model.graph.name += "_"
        layers_of(model)
    assert layers_of(network()) == layers and len(counted) == 12
    monkeypatch.setattr("vitesse.precision.layers._LARGEST_BYTES", 1)
    assert layers_of(network()) == layers and len(counted) == 13


def test_without_known_shapes_the_share_cannot_be_told() -> None:
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value")
    assert all(layer.flops is None for layer in layers_of(model))
    with pytest.raises(DataError, match=r"not all shapes are known(.|\n)*input of fixed size"):
        flops_share(layers_of(model), model)


def test_weights_that_a_caller_may_replace_are_not_constant() -> None:
    model = network()
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("projection", onnx.TensorProto.FLOAT, [16, 16])
    )
    assert weights(layers_of(model)) == ["conv", "wide"]


def test_nodes_without_names_or_with_the_same_name_get_unique_ones() -> None:
    model = network()
    for node in model.graph.node[:2]:
        node.name = "twice"
    model.graph.node[3].name = "own"
    names = node_names(model.graph)
    assert names[:4] == ["twice", "Relu_b", "Conv_c", "own"]
    assert len(set(names)) == len(names)
    assert layers_of(model)[0].name == "Conv_c"


def attention(opset: int = 18) -> onnx.ModelProto:
    return graph(
        """f = Conv<strides = [4, 4]>(i, stem) g = Reshape(f, shape) x = Transpose<perm = [0, 2, 1]>(g)
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose<perm = [0, 2, 1]>(k)
           s = MatMul(q, t) z = Mul(s, scale) p = Softmax(z) o = MatMul(p, v) u = MatMul(o, wo)
           r = Add(u, x) y = LayerNormalization(r, one, zero)""",
        "float[1,3,16,16] i",
        "float[1,16,8] y",
        opset=opset,
        stem=normal(8, 3, 4, 4),
        shape=np.array([1, 8, 16], np.int64),
        scale=0.35,
        one=np.ones(8, np.float32),
        zero=np.zeros(8, np.float32),
        **{name: normal(8, 8, seed=at) for at, name in enumerate(("wq", "wk", "wv", "wo"))},
    )


def test_products_of_attention_are_layers_only_on_request_and_name_both_factors() -> None:
    model = attention()
    assert weights(layers_of(model)) == ["wq", "wk", "wv", "wo"]
    products = [layer for layer in layers_of(model, attention=True) if not layer.weight]
    assert [(one.activation, one.factor, one.output) for one in products] == [
        ("q", "t", "s"),
        ("p", "v", "o"),
    ]
    assert flops_share(products, model) == 0


def test_blocks_of_our_detr_are_its_modules(models: dict[str, onnx.ModelProto]) -> None:
    layers = layers_of(models["detr"])
    blocks = blocks_of(layers)
    assert 8 <= len(blocks) <= 40
    assert list(blocks)[:2] == ["backbone.layer1.0", "backbone.layer1.1"]
    sizes = {name: len(members) for name, members in blocks.items()}
    assert sizes["backbone.layer1.0"] == 4, "three convolutions and the shortcut"
    assert sizes["encoder.layers.0.attention"] == 4
    assert sizes["encoder.layers.0.mlp"] == 2
    assert sizes["decoder.layers.5.cross_attention"] == 4
    assert sizes["input_proj"] == 1
    assert sum(sizes.values()) == len(layers) == 107
    assert not any(head in layer.weight for layer in layers for head in HEADS)
    assert 0.7 < flops_share(layers, models["detr"]) < 0.9


def test_blocks_of_our_vit_are_attention_and_mlp_in_turn(models: dict[str, onnx.ModelProto]) -> None:
    blocks = blocks_of(layers_of(models["vit"]))
    assert list(blocks) == [f"blocks.{at}.{kind}" for at in range(6) for kind in ("attention", "mlp")]


@pytest.mark.parametrize("name", ["detr", "vit"])
def test_without_names_the_same_layers_fall_into_numbered_blocks(
    name: str, models: dict[str, onnx.ModelProto]
) -> None:
    named, bare = layers_of(models[name]), layers_of(without_names(models[name]))
    assert [(one.op_type, one.flops) for one in bare] == [(one.op_type, one.flops) for one in named]
    blocks = blocks_of(bare)
    assert 8 <= len(blocks) <= 40
    assert max(len(members) for members in blocks.values()) <= 6
    assert {block.rstrip("0123456789") for block in blocks} <= {
        "backbone.",
        "encoder.",
        "decoder.",
        "blocks.",
    }


@pytest.mark.slow
def test_a_foreign_detectors_heads_stay_wherever_they_stand() -> None:
    path, _ = deimv2()
    model = onnx.load(path)
    layers = layers_of(model)
    assert not any(head in layer.name for layer in layers for head in HEADS)
    blocks = blocks_of(layers)
    assert 8 <= len(blocks) <= 40
    assert {"backbone.stages.0.blocks.0", "encoder.fpn_block", "decoder.layers.1.cross_attention"} <= set(
        blocks
    )


def test_names_are_made_coarser_where_there_would_be_too_many_blocks() -> None:
    body, constants = ["a = Conv<strides = [4, 4]>(i, stem)"], {"stem": normal(4, 3, 4, 4)}
    last = "a"
    for at in range(60):
        body.append(
            f"c{at} = Conv(n{at - 1}, w{at}) n{at} = Relu(c{at})"
            if at
            else f"c0 = Conv({last}, w0) n0 = Relu(c0)"
        )
        constants[f"w{at}"] = normal(4, 4, 1, 1, seed=at)
    model = graph(" ".join(body) + " y = Identity(n59)", "float[1,3,8,8] i", "float[1,4,2,2] y", **constants)
    for node in model.graph.node:
        at = int(node.output[0][1:]) if node.output[0][1:] else 0
        node.name = f"/backbone/stages.{at // 10}/layers.{at}/{node.output[0]}"
    blocks = blocks_of(layers_of(model))
    assert list(blocks) == [f"backbone.stages.{at}" for at in range(6)]
