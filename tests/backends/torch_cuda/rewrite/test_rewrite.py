"""Whole transformers in fused steps: what is left beside them, and that the numbers are the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

pytest.importorskip("torch", reason="the PyTorch engine needs torch")

from backends.torch_cuda.rewrite.static_graphs import kinds, plain, static
from fashion import DETR, VIT
from fusing import normal, run
from vitesse.backends.torch_cuda.rewrite import rewrite
from vitesse.backends.torch_cuda.specialise import specialise
from vitesse.backends.torch_cuda.steps import DOMAIN, STEPS
from vitesse.errors import ModelError
from vitesse.fusion import clean_model, fuse_model
from vitesse.precision.half_casts import HalfGraph
from vitesse.scopes import path_of

STEPS_OF: Mapping[Path, Mapping[str, int]] = {
    # 6 blocks of queries+keys+values, projection and two layers; in the last block the query is of one token, apart.
    VIT: {":Linear": 26, ":Norm": 13, ":Attention": 6, ":Patches": 1, "Slice": 2, "Reshape": 1},
    # 30 convolutions; what is left is the way from the feature map to tokens, a view in channels_last.
    DETR: {
        ":Linear": 50,
        ":Norm": 24,
        ":Attention": 14,
        ":Conv": 30,
        "MaxPool": 1,
        "Reshape": 1,
        "Transpose": 1,
    },
}
APPLIED: Mapping[Path, Mapping[str, int]] = {
    VIT: {"patches": 1, "conv": 0, "attention": 6, "linear": 37, "positions": 0, "siblings": 11, "norm": 13},
    DETR: {
        "patches": 0,
        "conv": 30,
        "attention": 14,
        "linear": 77,
        "positions": 27,
        "siblings": 27,
        "norm": 24,
    },
}


@pytest.fixture(scope="module", params=[VIT, DETR], ids=lambda path: path.stem)
def fused(request: pytest.FixtureRequest) -> tuple[Path, onnx.ModelProto]:
    path: Path = request.param
    return path, fuse_model(clean_model(onnx.load(path)).model).model


def images_for(model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    (value,) = model.graph.input
    shape = [dimension.dim_value or 128 for dimension in value.type.tensor_type.shape.dim]
    return {value.name: normal(batch, *shape[1:])}


def far(found: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - wide) / np.linalg.norm(wide))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_transformer_is_nothing_but_steps_and_views(
    fused: tuple[Path, onnx.ModelProto], batch: int
) -> None:
    path, model = fused
    feeds = images_for(model, batch)
    made, applied, notes = rewrite(static(model, feeds))
    assert kinds(made) == STEPS_OF[path]
    assert APPLIED[path].items() <= applied.items()
    assert notes == ()
    for expected, found in zip(run(model, feeds), plain(made, feeds), strict=True):
        assert far(found, expected) < 1e-5


def test_float16_is_at_least_as_close_to_float32_as_before(fused: tuple[Path, onnx.ModelProto]) -> None:
    _, model = fused
    feeds = images_for(model, 4)
    before = static(HalfGraph(model).written(), feeds)
    made, _, _ = rewrite(before)
    exact, given, found = run(model, feeds), plain(before, feeds), plain(made, feeds)
    assert sum(map(far, found, exact)) <= sum(map(far, given, exact))


def test_the_graph_that_came_is_not_changed_and_the_new_one_has_its_signature(
    fused: tuple[Path, onnx.ModelProto],
) -> None:
    _, model = fused
    before = static(model, images_for(model, 2))
    text = ir.to_proto(before).SerializeToString(deterministic=True)
    made, _, _ = rewrite(before)
    assert ir.to_proto(before).SerializeToString(deterministic=True) == text
    for old, new in ((before.graph.inputs, made.graph.inputs), (before.graph.outputs, made.graph.outputs)):
        assert [(one.name, one.dtype, one.shape) for one in old] == [
            (one.name, one.dtype, one.shape) for one in new
        ]


def test_every_step_computes_the_shapes_and_types_that_stand_in_the_graph(
    fused: tuple[Path, onnx.ModelProto],
) -> None:
    _, model = fused
    made, _, _ = rewrite(static(model, images_for(model, 2)))
    for node in (node for node in made.graph if node.domain == DOMAIN):
        inputs = [None if one is None else on_meta(one) for one in node.inputs]
        attributes = {name: one.value for name, one in node.attributes.items()}
        for output, tensor in zip(node.outputs, STEPS[node.op_type](*inputs, **attributes), strict=False):
            if output.name and tensor is not None:
                assert tuple(output.shape or ()) == tuple(tensor.shape), node
                assert str(tensor.dtype) == "torch.float32" and output.dtype == ir.DataType.FLOAT


def test_steps_know_the_module_they_came_from(fused: tuple[Path, onnx.ModelProto]) -> None:
    path, model = fused
    made, _, _ = rewrite(static(model, images_for(model, 1)))
    steps = [node for node in made.graph if node.domain == DOMAIN]
    before = (path_of(node.name or "", node.metadata_props) for node in ir.from_proto(model).graph)
    if any(before):
        assert all(path_of(node.name or "", node.metadata_props) for node in steps), path


def test_a_graph_with_a_free_batch_is_refused() -> None:
    model = ir.from_proto(fuse_model(clean_model(onnx.load(VIT)).model).model)
    with pytest.raises(ModelError, match=r"(?s)the shape of .*expected: static shapes"):
        rewrite(model)


def on_meta(value: ir.Value) -> torch.Tensor:
    types = {ir.DataType.FLOAT: torch.float32}
    assert value.dtype is not None
    return torch.empty(
        tuple(int(length) for length in value.shape or ()), dtype=types[value.dtype], device="meta"
    )


def test_specialising_again_changes_nothing(fused: tuple[Path, onnx.ModelProto]) -> None:
    """A rewritten graph is one that the plan may specialise and run like any other."""
    _, model = fused
    feeds = images_for(model, 1)
    made, _, _ = rewrite(static(model, feeds))
    again = specialise(made, {name: array.shape for name, array in feeds.items()})
    assert kinds(again) == kinds(made)
