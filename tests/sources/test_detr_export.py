from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")

from fusing import ops, run  # noqa: E402
from sources.detr_models import BASIC, TINY, padded, random_detr, save  # noqa: E402
from sources.examining import made  # noqa: E402
from sources.own_rows import ROWS  # noqa: E402
from vitesse.errors import NotVerified, UsageError  # noqa: E402
from vitesse.export.exporting import export_source  # noqa: E402
from vitesse.fusion import clean_model, fuse_model  # noqa: E402
from vitesse.sources.detr_checkpoint import open_detr  # noqa: E402
from vitesse.sources.source import Exported, ExportOptions  # noqa: E402

SIZE = (75, 110)
OPEN = frozenset({"batch", "height", "width"})
(OPEN_ROW,) = (row for row in ROWS if row.name == "DETR, any size")
# By hand: two norms an encoder layer, three a decoder layer, one in front of the heads.
NORMS = 2 * TINY.encoder_layers + 3 * TINY.decoder_layers + 1
ATTENTIONS = TINY.encoder_layers + 2 * TINY.decoder_layers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("detr") / "tiny.pth", random_detr())


def exported(checkpoint: Path, **settings: object) -> Exported:
    options = ExportOptions(**{"size": SIZE, **settings})  # type: ignore[arg-type]
    return open_detr(checkpoint, None).export(options)


@pytest.fixture(scope="module")
def fixed(checkpoint: Path) -> Exported:
    # four heads do not show in the weights, and eight divide the width as well: everything here holds with eight
    return exported(checkpoint)


@pytest.fixture(scope="module")
def with_aux(checkpoint: Path) -> Exported:
    return exported(checkpoint, keep_aux=True)


@pytest.fixture(scope="module")
def open_size(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same checkpoint, traced at 64×96."""
    return made(OPEN_ROW, tmp_path_factory.mktemp("open")).exported


def mixed_batch() -> dict[str, np.ndarray]:
    """Another batch and another size than traced, no multiples of 32."""
    sizes = [(133, 77), (60, 77), (133, 41)]
    return {"images": padded(sizes, (133, 77)).numpy(), "sizes": np.array(sizes, np.int64)}


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((value.name for value in model.graph.output), run(model, feeds), strict=True))


def furthest(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert found.keys() == wanted.keys()
    return max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)


def negative_gathers(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Gather" and (constants.get(node.input[1], np.array(0)) < 0).any()
    ]


def test_the_fixed_graph_has_one_input_no_batch_norm_no_gather_and_real_layer_norms(fixed: Exported) -> None:
    counts = ops(fixed.model)
    assert [value.name for value in fixed.model.graph.input] == ["images"]
    assert [value.name for value in fixed.model.graph.output] == ["logits", "boxes"]
    assert counts["LayerNormalization"] == NORMS
    assert not counts.keys() & {"BatchNormalization", "Gather", "CumSum", "ReduceMean", "Sin", "Cos", "Where"}


def test_cleaning_folds_the_first_self_attention_away(fixed: Exported) -> None:
    cleaned = clean_model(fixed.model).model
    counts = ops(cleaned)
    # The first layer's queries see only themselves: their self-attention and its norm are constants.
    assert counts["Softmax"] == ATTENTIONS - 1
    assert counts["LayerNormalization"] == NORMS - 1
    feeds = {"images": padded([SIZE] * 3, SIZE).numpy()}
    assert furthest(outputs(cleaned, feeds), outputs(fixed.model, feeds)) < 1e-5


def test_every_other_attention_is_fused(fixed: Exported, open_size: Exported) -> None:
    for graph, feeds in (
        (fixed.model, {"images": padded([SIZE] * 3, SIZE).numpy()}),
        (open_size.model, mixed_batch()),
    ):
        fused = fuse_model(clean_model(graph).model).model
        assert ops(fused)["Attention"] == ATTENTIONS - 1
        assert ops(fused)["Softmax"] == 0
        assert furthest(outputs(fused, feeds), outputs(graph, feeds)) < 1e-4


def test_the_graph_with_all_heads_is_the_originals_and_its_last_layer_is_the_same_to_the_bit(
    fixed: Exported, with_aux: Exported
) -> None:
    feeds = {"images": padded([SIZE] * 3, SIZE).numpy()}
    stripped, original = outputs(fixed.model, feeds), outputs(with_aux.model, feeds)
    for name in ("logits", "boxes"):
        assert np.array_equal(stripped[name], original[name])
    assert original["aux_logits"].shape == (2, 3, 5, 4)
    assert original["aux_boxes"].shape == (2, 3, 5, 4)
    assert furthest(original, dict(with_aux.reference(feeds))) < 1e-4
    assert not np.allclose(original["aux_logits"][-1], original["logits"], atol=1e-3)
    # Stacked, taken by the index −1, heads on every layer: what stripping saves.
    assert len(negative_gathers(with_aux.model)) == 2
    assert not negative_gathers(fixed.model)
    assert ops(with_aux.model)["LayerNormalization"] == NORMS + TINY.decoder_layers - 1
    assert len(fixed.model.graph.node) < len(with_aux.model.graph.node)


def test_the_open_graph_answers_as_the_model_at_another_batch_and_size_than_traced(
    open_size: Exported,
) -> None:
    counts = ops(open_size.model)
    assert [value.name for value in open_size.model.graph.input] == ["images", "sizes"]
    assert open_size.spec.valid_size_input == "sizes"
    assert not counts.keys() & {"CumSum", "NonZero", "Loop", "If", "Resize", "BatchNormalization"}
    assert counts["LayerNormalization"] == NORMS
    assert not negative_gathers(open_size.model)
    feeds = mixed_batch()
    assert furthest(outputs(open_size.model, feeds), dict(open_size.reference(feeds))) < 1e-4


def test_in_the_open_graph_a_mixed_batch_gives_the_same_as_one_by_one(open_size: Exported) -> None:
    feeds = mixed_batch()
    together = outputs(open_size.model, feeds)
    for index in range(3):
        one = {name: array[index : index + 1] for name, array in feeds.items()}
        alone = outputs(open_size.model, one)
        assert furthest({n: a[index : index + 1] for n, a in together.items()}, alone) < 1e-4
    # The comparison can fail: with the padding taken for image the answer is another one.
    unmasked = outputs(open_size.model, feeds | {"sizes": np.array([(133, 77)] * 3, np.int64)})
    assert furthest(unmasked, together) > 1e-2


def test_the_open_graph_and_the_fixed_one_agree_on_images_that_fill_the_tensor(
    fixed: Exported, open_size: Exported
) -> None:
    images = padded([SIZE] * 2, SIZE).numpy()
    found = outputs(open_size.model, {"images": images, "sizes": np.array([SIZE] * 2, np.int64)})
    assert furthest(found, outputs(fixed.model, {"images": images})) < 1e-4


def test_a_graph_with_every_axis_fixed_takes_one_image(checkpoint: Path) -> None:
    graph = exported(checkpoint, dynamic=frozenset()).model
    assert [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim] == [1, 3, *SIZE]
    assert run(graph, {"images": padded([SIZE], SIZE).numpy()})[0].shape == (1, 5, 4)


def test_a_newer_opset_has_real_layer_norms_too(checkpoint: Path, fixed: Exported) -> None:
    newer = exported(checkpoint, opset=23).model
    assert newer.opset_import[0].version == 23
    assert fixed.model.opset_import[0].version == 18
    assert ops(newer)["LayerNormalization"] == NORMS
    feeds = {"images": padded([SIZE] * 3, SIZE).numpy()}
    assert furthest(outputs(newer, feeds), outputs(fixed.model, feeds)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        replace(BASIC, pre_norm=True),
        replace(TINY, dilation=True, depths=(1, 1, 1, 2), learned_cells=84, decoder_layers=1),
    ],
    ids=["18 pre-norm", "dc5 with learned positions"],
)
def test_other_variants_are_exported_with_open_size_and_verified(tmp_path: Path, config: object) -> None:
    path = save(tmp_path / "tiny-dc5.pth" if config.dilation else tmp_path / "tiny.pth", random_detr(config))  # type: ignore[attr-defined,arg-type]
    done = export_source(open_detr(path), ExportOptions(dynamic=OPEN, size=(96, 128)))
    assert "3×" in done.how["largest difference to the model itself"]


def test_an_export_that_differs_from_the_model_is_not_verified(fixed: Exported) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(fixed.model)
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "class_embed.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.ones(4, np.float32), bias.name))

    class Exports:
        title, identity = "tiny DETR", "0"

        def __init__(self, model: onnx.ModelProto) -> None:
            self.model = model

        def export(self, options: ExportOptions) -> Exported:
            return replace(fixed, model=self.model)

    assert export_source(Exports(fixed.model), ExportOptions()).content
    with pytest.raises(NotVerified, match="does not answer as the model itself"):
        export_source(Exports(broken), ExportOptions())


def test_auxiliary_heads_of_a_decoder_with_one_layer_are_a_usage_error(tmp_path: Path) -> None:
    path = save(tmp_path / "tiny.pth", random_detr(replace(TINY, decoder_layers=1)))
    with pytest.raises(UsageError, match="--keep-aux: this DETR has one decoder layer"):
        open_detr(path).export(ExportOptions(keep_aux=True, size=SIZE))


def test_the_nodes_know_the_module_that_they_come_from(fixed: Exported) -> None:
    scopes = collections.Counter(
        entry.value.split("'")[3].split(".")[0]
        for node in fixed.model.graph.node
        for entry in node.metadata_props
        if entry.value.count("'") > 3
    )
    assert {"backbone", "input_proj", "transformer", "class_embed", "bbox_embed"} <= scopes.keys()
