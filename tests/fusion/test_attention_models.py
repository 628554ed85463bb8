"""Attention in exports of real modules: found as often as the module has it, with the numbers unchanged."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from fusing import run
from shared_data import shared
from vitesse.fusion import clean_model, fuse_model

torch = pytest.importorskip("torch", reason="exports need torch")
pytestmark = pytest.mark.usefixtures("operators_listed_once")
B, N, M, E, H = 2, 7, 9, 24, 3
F = torch.nn.functional


class Projected(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Self-attention as timm (packed) and most others (separate) write it, with or without torch's own operator."""

    def __init__(self, packed: bool, operator: bool, einsum: bool = False) -> None:
        super().__init__()
        self.packed, self.operator, self.einsum = packed, operator, einsum
        self.qkv = torch.nn.Linear(E, 3 * E)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(E, E) for _ in range(3))
        self.out = torch.nn.Linear(E, E)

    def forward(self, x: Any) -> Any:
        b, n, _ = x.shape
        scale = (E // H) ** -0.5
        if self.einsum:
            q, k, v = (part(x).view(b, n, H, E // H) for part in self.parts)
            weights = torch.einsum("bqhd,bkhd->bhqk", q * scale, k).softmax(-1)
            return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, E))
        if self.packed:
            q, k, v = self.qkv(x).reshape(b, n, 3, H, E // H).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (part(x).view(b, n, H, E // H).transpose(1, 2) for part in self.parts)
        if self.operator:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, E))


class Multihead(torch.nn.Module):  # type: ignore[misc,name-defined]
    """torch.nn.MultiheadAttention as torchvision's ViT calls it."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention, self.need_weights = torch.nn.MultiheadAttention(E, H, batch_first=True), need_weights

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class Decoder(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A DETR decoder layer's two attentions, sequence first; the memory has another length than the queries."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.own, self.cross = torch.nn.MultiheadAttention(E, H), torch.nn.MultiheadAttention(E, H)
        self.position = torch.nn.Parameter(torch.randn(N, 1, E))

    def forward(self, x: Any, memory: Any, padding: Any) -> Any:
        q = x + self.position
        x = x + self.own(q, q, x)[0]
        return (
            x + self.cross(x + self.position, memory, memory, key_padding_mask=padding, need_weights=False)[0]
        )


def exported(module: Any, inputs: dict[str, Any], opset: int, batch_axes: dict[str, int]) -> onnx.ModelProto:
    dynamic = {name: {axis: torch.export.Dim("batch", min=1, max=64)} for name, axis in batch_axes.items()}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic or None,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    return program.model_proto


EXPORTS: dict[str, tuple[Callable[[], Any], int, bool]] = {
    "packed, opset 18, dynamic batch": (lambda: Projected(packed=True, operator=False), 18, True),
    "packed, torch's operator, opset 20": (lambda: Projected(packed=True, operator=True), 20, False),
    "packed, torch's operator, opset 23": (lambda: Projected(packed=True, operator=True), 23, True),
    "separate, torch's operator, opset 18, dynamic batch": (
        lambda: Projected(False, operator=True),
        18,
        True,
    ),
    "Einsum, opset 20": (lambda: Projected(packed=False, operator=False, einsum=True), 20, True),
    "MultiheadAttention, opset 18, dynamic batch": (lambda: Multihead(need_weights=False), 18, True),
    "MultiheadAttention with weights, opset 20": (lambda: Multihead(need_weights=True), 20, False),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_self_attention_becomes_one_operator_on_three_axes(name: str) -> None:
    module, opset, dynamic = EXPORTS[name]
    torch.manual_seed(0)
    made = module()
    x = torch.randn(B, N, E)
    model = exported(made, {"x": x}, opset, {"x": 0} if dynamic else {})
    result = fuse_model(clean_model(model).model)
    found = Counter(node.op_type for node in result.model.graph.node)
    assert found["Attention"] == result.changes["attention_heads"] == 1
    assert not found.keys() & {"Softmax", "Transpose", "Reshape", "Einsum", "Slice", "Gather"}
    with torch.no_grad():
        expected = made.double()(x.double()).numpy()
    np.testing.assert_allclose(run(result.model, {"x": x.numpy()})[0], expected, atol=1e-5)


@pytest.mark.parametrize("need_weights", [False, True], ids=["four axes", "batch and heads merged"])
def test_decoder_with_a_padding_mask_has_both_attentions_fused(need_weights: bool) -> None:
    torch.manual_seed(0)
    module = Decoder(need_weights)
    inputs = {"x": torch.randn(N, B, E), "memory": torch.randn(M, B, E), "padding": torch.zeros(B, M).bool()}
    inputs["padding"][1, 5:] = True
    model = exported(module, inputs, 18, {"x": 1, "memory": 1, "padding": 0})
    result = fuse_model(clean_model(model).model)
    found = Counter(node.op_type for node in result.model.graph.node)
    assert found["Attention"] == result.changes["attention"] == result.changes["attention_heads"] == 2
    assert found["Softmax"] == 0
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    with torch.no_grad():
        expected = module.double()(
            *(t.double() if t.is_floating_point() else t for t in inputs.values())
        ).numpy()
    np.testing.assert_allclose(run(result.model, feeds)[0], expected, atol=1e-5)


def test_deimv2_has_its_three_attentions_fused_and_its_deformable_softmaxes_left_alone() -> None:
    model = onnx.load(shared("deimv2") / "deimv2_hgnetv2_atto_coco.onnx")
    result = fuse_model(clean_model(model).model)
    found = Counter(node.op_type for node in result.model.graph.node)
    # 10 softmaxes: 3 of self-attention; 3 of deformable attention, 3 of box distributions, 1 of a quality estimate.
    assert Counter(node.op_type for node in model.graph.node)["Softmax"] == 10
    assert found["Attention"] == result.changes["attention"] == result.changes["attention_heads"] == 3
    assert found["Softmax"] == 7
    image = np.random.default_rng(0).random((1, 3, 320, 320), np.float32)
    feeds = {"images": image, "orig_target_sizes": np.array([[320, 320]], np.int64)}
    at = [output.name for output in model.graph.output].index("scores")
    # Scores come sorted; labels and boxes of nearly equal scores may change places.
    np.testing.assert_allclose(run(result.model, feeds)[at], run(model, feeds)[at], atol=2e-5)
