from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'vitesse[huggingface]'"
)

from fusing import ops, run  # noqa: E402
from sources.detector_rows import LABELS, QUERIES, ROWS, RT_DETR, RT_DETR_FILE, RT_RESNET, save, tiny_model  # noqa: E402
from sources.examining import made  # noqa: E402
from sources.model_rows import ModelRow  # noqa: E402
from vitesse.data.postprocess import decode  # noqa: E402
from vitesse.data.results import Detections  # noqa: E402
from vitesse.errors import UsageError  # noqa: E402
from vitesse.export.torch_onnx import Network, TorchSource, trace  # noqa: E402
from vitesse.fusion import clean_model, fuse_model  # noqa: E402
from vitesse.sources.huggingface.detectors import DETECTORS  # noqa: E402
from vitesse.sources.huggingface.family import Family  # noqa: E402
from vitesse.sources.huggingface.loading import open_huggingface  # noqa: E402
from vitesse.sources.source import ExportOptions  # noqa: E402
from vitesse.spec import Decode, Resize  # noqa: E402

BY_NAME = {row.name: row for row in ROWS}
MASKED = ("DETR", "Conditional DETR", "DAB-DETR", "Table Transformer")
FIXED_SIZE = frozenset({"batch"})
ANY_SIZE = frozenset({"batch", "height", "width"})
# What transformers decodes each architecture with; the table of its image processors says which.
POST_PROCESSING = {
    "detr": "DetrImageProcessorPil",
    "table-transformer": "DetrImageProcessorPil",
    "yolos": "YolosImageProcessorPil",
    "conditional_detr": "ConditionalDetrImageProcessorPil",
    "dab-detr": "ConditionalDetrImageProcessorPil",
    "deformable_detr": "DeformableDetrImageProcessorPil",
    "lw_detr": "DeformableDetrImageProcessorPil",
    "rt_detr": "RTDetrImageProcessorPil",
    "rt_detr_v2": "RTDetrImageProcessorPil",
    "d_fine": "RTDetrImageProcessorPil",
    # That of RF-DETR needs torchvision; by default it keeps as many pairs as there are queries, as RT-DETR's does.
    "rf_detr": "RTDetrImageProcessorPil",
}


def built(row: ModelRow, folder: Path, dynamic: frozenset[str] = FIXED_SIZE) -> Network:
    source = row.source(folder)
    assert isinstance(source, TorchSource)
    return source.build(ExportOptions(size=row.size, dynamic=dynamic))


def images(row: ModelRow, batch: int = 3) -> Any:
    return torch.randn(batch, 3, *row.size, generator=torch.Generator().manual_seed(5))


def untouched(row: ModelRow, folder: Path) -> Any:
    return getattr(transformers, row.loader).from_pretrained(folder).eval()


def furthest(found: Any, outputs: Any) -> float:
    with torch.no_grad():
        return max(
            float((a - b).abs().max())
            for a, b in zip(found, (outputs.logits, outputs.pred_boxes), strict=True)
        )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_exported_answers_as_transformers_does(row: ModelRow, tmp_path: Path) -> None:
    network = built(row, tmp_path)
    with torch.no_grad():
        expected = untouched(row, tmp_path)(pixel_values=images(row))
        assert furthest(network.module(images(row)), expected) < 1e-5
        assert furthest(network.module(images(row) * 1.1), expected) > 1e-4, (
            "the test would not see a difference"
        )


@pytest.mark.parametrize("name", MASKED)
def test_padding_is_masked_as_transformers_does(name: str, tmp_path: Path) -> None:
    row = BY_NAME[name]
    network = built(row, tmp_path, ANY_SIZE)
    padded, valid = images(row), torch.tensor([[64, 96], [40, 96], [64, 50]])
    mask = torch.zeros(3, *row.size, dtype=torch.long)
    for image, (height, width) in enumerate(valid.tolist()):
        mask[image, :height, :width] = 1
    with torch.no_grad():
        model = untouched(row, tmp_path)
        assert furthest(network.module(padded, valid), model(pixel_values=padded, pixel_mask=mask)) < 1e-5
        assert furthest(network.module(padded, valid), model(pixel_values=padded)) > 1e-3, (
            "the mask is without effect"
        )


def test_a_graph_of_any_size_is_fed_with_images_of_any_size(tmp_path: Path) -> None:
    fixed, open_ = built(BY_NAME["DETR"], tmp_path).spec, built(BY_NAME["DETR"], tmp_path, ANY_SIZE).spec
    assert (fixed.preprocessing.resize, fixed.preprocessing.size) == (Resize.STRETCH, (64, 96))
    assert fixed.valid_size_input is None
    assert (open_.preprocessing.resize, open_.valid_size_input) == (Resize.SHORTEST, "valid_sizes")


def test_the_spec_says_what_the_files_of_the_model_say(tmp_path: Path) -> None:
    source = BY_NAME["DETR"].source(tmp_path)
    assert isinstance(source, TorchSource)
    spec = source.build(ExportOptions()).spec
    assert (spec.image_input, dict(spec.outputs)) == ("images", {"logits": "logits", "boxes": "boxes"})
    assert (spec.decode, spec.labels, spec.preprocessing.size) == (Decode.DETR_SOFTMAX, LABELS, (800, 1066))
    dynamic = source.build(ExportOptions(dynamic=ANY_SIZE)).spec
    assert (dynamic.preprocessing.size, dynamic.preprocessing.resize) == ((800, 1333), Resize.SHORTEST)


def test_anchors_follow_the_size_that_is_exported(tmp_path: Path) -> None:
    trained_at = {**RT_DETR, "anchor_image_size": [64, 96]}
    model = tiny_model("RTDetrForObjectDetection", trained_at, RT_RESNET)
    source = open_huggingface(str(save(model, tmp_path, RT_DETR_FILE)))
    larger = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = source.build(ExportOptions(size=(96, 128))).module(larger)
        with pytest.raises(RuntimeError):
            model(pixel_values=larger)
        model.config.anchor_image_size = None
        assert furthest(found, model(pixel_values=larger)) < 1e-5


@pytest.mark.parametrize("family", DETECTORS, ids=lambda family: family.model_type)
def test_outputs_are_decoded_as_transformers_decodes_them(family: Family, tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.loader == family.loader)
    spec = built(row, tmp_path).spec
    random = np.random.default_rng(3)
    softmax = family.decode is Decode.DETR_SOFTMAX
    # more pairs of query and class than are kept, where a fixed number is kept
    shape = (2, 40 if family.top_k else QUERIES)
    outputs = {
        "logits": random.standard_normal((*shape, len(LABELS) + softmax), np.float32),
        "boxes": random.uniform(0.1, 0.9, (*shape, 4)).astype(np.float32),
    }
    sizes = [(480, 640), (333, 517)]
    expected = transformers_detections(family, outputs, sizes)
    for found, wanted in zip(decode(outputs, spec, sizes), expected, strict=True):
        assert isinstance(found, Detections)
        order = np.argsort(-wanted["scores"], kind="stable")
        np.testing.assert_allclose(found.scores, wanted["scores"][order], atol=1e-6)
        np.testing.assert_array_equal(found.labels, wanted["labels"][order])
        np.testing.assert_allclose(found.boxes_xyxy, wanted["boxes"][order], atol=1e-2)
    other = Decode.DETR_SIGMOID if softmax else Decode.DETR_SOFTMAX
    wrong = decode(outputs, replace(spec, decode=other, labels=()), sizes)[0]
    assert isinstance(wrong, Detections)
    assert not np.array_equal(wrong.scores[:QUERIES], np.sort(expected[0]["scores"])[::-1][:QUERIES])


def transformers_detections(
    family: Family, outputs: Mapping[str, Any], sizes: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    processor = getattr(transformers, POST_PROCESSING[family.model_type])()
    raw = SimpleNamespace(
        logits=torch.from_numpy(outputs["logits"]), pred_boxes=torch.from_numpy(outputs["boxes"])
    )
    found = processor.post_process_object_detection(raw, threshold=-1.0, target_sizes=sizes)
    return [{key: value.numpy() for key, value in image.items()} for image in found]


MASKING = {"CumSum", "Sin", "Cos", "And", "Not", "Less", "GatherND", "Resize", "BatchNormalization"}


@pytest.mark.slow
def test_without_padding_no_mask_is_left_in_the_graph(tmp_path: Path) -> None:
    row = BY_NAME["DETR"]
    assert row.dynamic == FIXED_SIZE
    assert not ops(made(row, tmp_path / "whole").fused).keys() & MASKING
    network = built(row, tmp_path)
    plain = replace(network, module=Plain(untouched(row, tmp_path)))
    as_it_is = fuse_model(clean_model(trace(plain, ExportOptions(size=row.size))).model).model
    assert {"CumSum", "Resize", "And"} <= ops(as_it_is).keys(), "the test would not see a mask"


class Plain(torch.nn.Module):
    """A detector called as its documentation says."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Any) -> Any:
        outputs = self.model(pixel_values=pixels)
        return outputs.logits, outputs.pred_boxes


def class_heads(model: onnx.ModelProto, outputs: int) -> int:
    """Linear layers with that many outputs."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"}]
    return Counter(outputs in shapes.get(node.input[1], ()) for node in products)[True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "heads"),
    # the head that picks the proposals of the first stage, and that of the last decoder layer
    [("RT-DETR", 2), ("RT-DETR v2", 2), ("D-FINE", 2), ("Deformable DETR, two-stage", 2), ("RF-DETR", 2)],
)
def test_class_heads_of_other_layers_are_not_in_the_graph(name: str, heads: int, tmp_path: Path) -> None:
    model = made(BY_NAME[name], tmp_path).fused
    assert class_heads(model, len(LABELS)) == heads
    assert "BatchNormalization" not in ops(model)


@pytest.mark.slow
def test_a_table_transformer_takes_any_size_and_mixed_sizes(tmp_path: Path) -> None:
    row = BY_NAME["Table Transformer"]
    source = row.source(tmp_path).export(ExportOptions(size=row.size, dynamic=ANY_SIZE))
    fused = fuse_model(clean_model(source.model).model).model
    assert ops(fused)["Attention"] == 2, "the note in the table says how many"
    feeds = {
        "images": np.random.default_rng(2).standard_normal((3, 3, 90, 130), np.float32),
        "valid_sizes": np.array([[90, 130], [64, 90], [33, 130]]),
    }
    expected = source.reference(feeds)
    for name, array in zip(expected, run(fused, feeds), strict=True):
        np.testing.assert_allclose(array, expected[name], atol=1e-4)


def test_what_a_family_cannot_do_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    source = BY_NAME["RT-DETR"].source(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"height,width: RTDetrForObjectDetection.* cannot leave that open"):
        source.export(ExportOptions(dynamic=ANY_SIZE))


def test_a_size_that_does_not_fit_the_strides_is_refused_with_one_that_does(tmp_path: Path) -> None:
    source = BY_NAME["RT-DETR"].source(tmp_path)
    with pytest.raises(UsageError) as caught:
        source.export(ExportOptions(size=(100, 96)))
    assert "an image size of 100×96 (height×width)" in str(caught.value)
    assert "multiples of 32" in str(caught.value)
    assert "--size 96x96" in str(caught.value)


def test_auxiliary_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--keep-aux"):
        BY_NAME["DETR"].source(tmp_path).export(ExportOptions(keep_aux=True))
