from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fusing import normal, ops, run
from sources import vit_files as files

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from sources.examining import made  # noqa: E402
from sources.own_rows import ROWS as OWN_ROWS  # noqa: E402
from vitesse.fusion import clean_model, fuse_model  # noqa: E402
from vitesse.sources.source import Exported, ExportOptions  # noqa: E402
from vitesse.sources.vit import Block, Pooling, ViT, ViTConfig, resized  # noqa: E402
from vitesse.sources.vit_checkpoint import open_vit  # noqa: E402
from vitesse.sources.vit_resnet import StemConfig  # noqa: E402

ANY_SIZE = frozenset({"batch", "height", "width"})
ROWS = {row.name: row for row in OWN_ROWS}
# Rows of the table open the same checkpoint, and export it with these options.
AS_ROWS = (({}, ROWS["ViT, one size"]), ({"dynamic": ANY_SIZE, "size": (8, 12)}, ROWS["ViT, any size"]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Export the tiny checkpoint; what several tests want is made once."""

    @cache
    def exported(token: bool = True, **options: Any) -> Exported:
        for shared, row in AS_ROWS:
            if token and options == shared:
                return made(row, tmp_path_factory.mktemp("row")).exported
        path = files.save(tmp_path_factory.mktemp("vit") / "vit.npz", files.arrays(token=token))
        return open_vit(path).export(ExportOptions(**options))

    return exported


def finished(model: onnx.ModelProto) -> onnx.ModelProto:
    return fuse_model(clean_model(model).model).model


def largest_difference(found: Exported, model: onnx.ModelProto, *shape: int) -> float:
    feeds = {"images": normal(*shape)}
    wanted = found.reference(feeds)["logits"]
    assert wanted.std() > 0.1
    return float(np.abs(run(model, feeds)[0] - wanted).max())


@pytest.mark.parametrize(
    "options", [{}, {"opset": 21, "dynamic": frozenset()}], ids=["default", "fixed batch"]
)
def test_the_graph_has_one_node_for_every_norm_attention_and_gelu_and_never_asks_for_the_batch(
    exported: Callable[..., Exported], options: dict[str, Any]
) -> None:
    found = exported(**options)
    assert ops(found.model)["LayerNormalization"] == 5 and ops(found.model)["Conv"] == 1
    model = finished(found.model)
    counted = ops(model)
    assert (counted["LayerNormalization"], counted["Attention"], counted["Gelu"]) == (5, 2, 2)
    assert not set(counted) & {"Shape", "Gather", "Expand", "Concat", "Where", "Identity"}, counted
    for batch in (1,) if options else (1, 3):
        for graph in (found.model, model):
            assert largest_difference(found, graph, batch, 3, 8, 8) < 1e-5


def test_after_the_last_attention_only_the_class_token_is_computed(exported: Callable[..., Exported]) -> None:
    model = onnx.shape_inference.infer_shapes(exported().model)
    shapes = {
        value.name: [entry.dim_value for entry in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    norms = [shapes[node.output[0]][1] for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert norms == [5, 5, 5, 1, 1]


def test_computing_only_the_first_tokens_of_a_block_changes_none_of_them() -> None:
    torch.manual_seed(0)
    block = Block(ViTConfig((8, 8), 4, 8, 1, 2, 16, 3)).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x, 1), block(x)[:, :1])
        assert block(x, 2).shape == (2, 2, 8)


def test_a_graph_for_another_size_holds_the_resized_position_embedding(
    exported: Callable[..., Exported],
) -> None:
    found = exported(size=(16, 21))
    assert found.spec.preprocessing.size == (16, 21)
    assert "Resize" not in ops(found.model)
    assert largest_difference(found, finished(found.model), 3, 3, 16, 21) < 1e-5


@pytest.mark.parametrize("token", [True, False], ids=["class token", "gap"])
def test_height_and_width_can_stay_open(exported: Callable[..., Exported], token: bool) -> None:
    found = exported(token, dynamic=ANY_SIZE, size=(8, 12))
    assert found.stride == 4
    model = finished(found.model)
    assert ops(model)["Resize"] == 1 and ops(model)["Attention"] == 2
    for shape in ((1, 3, 8, 8), (3, 3, 20, 12), (2, 3, 12, 16)):
        for graph in (found.model, model):
            assert largest_difference(found, graph, *shape) < 1e-5


def test_the_open_graph_gives_what_the_fixed_one_gives(tmp_path: Path) -> None:
    images = torch.from_numpy(normal(2, 3, 12, 20))
    source = open_vit(files.save(tmp_path / "vit.npz", files.arrays()))
    fixed = source.build(ExportOptions(size=(12, 20))).module
    open_size = source.build(ExportOptions(dynamic=ANY_SIZE)).module
    with torch.no_grad():
        torch.testing.assert_close(open_size(images), fixed(images), atol=1e-5, rtol=0)


def test_sizes_of_the_grid_follow_from_the_image() -> None:
    plain = ViTConfig((224, 250), 16, 8, 1, 2, 16, 3)
    assert (plain.stride, plain.grid, plain.tokens) == (16, (14, 15), 14 * 15 + 1)
    hybrid = ViTConfig((224, 250), 1, 8, 1, 2, 16, 3, Pooling.GAP, stem=StemConfig(32, (1, 1, 1)))
    assert (hybrid.stride, hybrid.grid, hybrid.tokens) == (16, (14, 16), 14 * 16)


def test_resizing_keeps_the_corners() -> None:
    grid = torch.randn(1, 4, 3, 5)
    larger = resized(grid, (7, 9))
    assert larger.shape == (1, 4, 7, 9)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(larger[..., corner[0], corner[1]], grid[..., corner[0], corner[1]])


def test_attention_pooling_ends_in_one_vector() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig((8, 8), 4, 8, 2, 2, 16, 3, Pooling.MAP)).eval()
    names = Counter(name.split(".")[0] for name in model.state_dict())
    assert names["pool"] == 15 and names["position"] == 1
    with torch.no_grad():
        assert model(torch.zeros(5, 3, 8, 8)).shape == (5, 3)
