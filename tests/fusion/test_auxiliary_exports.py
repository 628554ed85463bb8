"""Detectors with auxiliary heads as torch exports them: equal answers to the bit, the heads run once, no pick left."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fusing import ops, run
from tiny_graphs import detector_spec
from vitesse import stages
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.fusion import Fused, clean_model
from vitesse.storage import sha256_of
from vitesse.verify.parity import ParityMeter

torch = pytest.importorskip("torch", reason="exporting needs torch")

pytestmark = pytest.mark.usefixtures("operators_listed_once")

LAYERS, WIDTH, CLASSES = 3, 16, 5
OUTPUTS = ("logits", "boxes", "other_logits", "other_boxes")
IMAGE = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


class Detector(torch.nn.Module):  # type: ignore[misc]
    """Decoder layers whose results are stacked; heads on the stack; the last layer picked, the others returned too."""

    def __init__(self, axis: int, refines: bool) -> None:
        super().__init__()
        nn = torch.nn
        self.axis, self.refines = axis, refines
        self.stem = nn.Conv2d(3, WIDTH, 8, 8)
        self.queries = nn.Parameter(torch.randn(7, WIDTH))
        layers = (nn.TransformerDecoderLayer(WIDTH, 2, 32, batch_first=True) for _ in range(LAYERS))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(WIDTH)
        self.classes = nn.Linear(WIDTH, CLASSES)
        self.boxes = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
        self.reference = nn.Linear(WIDTH, 4)

    def forward(self, images: Any) -> tuple[Any, ...]:
        memory = self.stem(images).flatten(2).transpose(1, 2)
        hidden = self.queries.unsqueeze(0).expand(images.shape[0], -1, -1)
        states, references = [], []
        for layer in self.layers:
            hidden = layer(hidden, memory)
            states.append(self.norm(hidden))
            references.append(self.reference(hidden))
        stack = torch.stack(states, self.axis)
        logits, boxes = self.classes(stack), self.boxes(stack)
        if self.refines:
            boxes = boxes + torch.stack(references, self.axis)
        boxes = boxes.sigmoid()
        if self.axis == 0:
            return logits[-1], boxes[-1], logits[:-1], boxes[:-1]
        return logits[:, -1], boxes[:, -1], logits, boxes


def exported(
    module: Any, images: Any, *, dynamo: bool = True, outputs: Sequence[str] = OUTPUTS
) -> onnx.ModelProto:
    """The model as torch's new or old exporter writes it, with an open batch."""
    batch: dict[str, Any] = (
        {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"images": {0: "batch"}}}
    )
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter says of itself that it is old
        torch.onnx.export(
            module.eval(),
            (images,),
            content,
            dynamo=dynamo,
            opset_version=18,
            input_names=["images"],
            output_names=list(outputs),
            verbose=False,
            **batch,
        )
    return onnx.load_from_string(content.getvalue())


def same_to_the_bit(before: onnx.ModelProto, done: Fused, feeds: dict[str, np.ndarray]) -> None:
    expected = dict(zip((value.name for value in before.graph.output), run(before, feeds), strict=True))
    assert [value.name for value in done.model.graph.output] == ["logits", "boxes"]
    for name, found in zip(("logits", "boxes"), run(done.model, feeds), strict=True):
        np.testing.assert_array_equal(found, expected[name])


@pytest.fixture(scope="module", params=["new exporter", "old exporter"])
def usual(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Exported the usual way: the stack on axis 0, and on axis 1 with a stack of references added."""
    torch.manual_seed(0)
    dynamo, images = request.param == "new exporter", torch.from_numpy(IMAGE)
    plain, refining = (Detector(axis, axis == 1) for axis in (0, 1))
    return exported(plain, images, dynamo=dynamo), exported(refining, images, dynamo=dynamo)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["stacked in front", "stacked behind the batch, refined"])
def test_the_heads_of_an_exported_detector_run_on_its_last_layer(
    usual: tuple[onnx.ModelProto, onnx.ModelProto], which: int
) -> None:
    before = usual[which]
    done, whole = clean_model(before, ["logits", "boxes"]), clean_model(before)
    assert (done.changes["auxiliary_layers"], done.changes["auxiliary_outputs"]) == (2, 2)
    assert (whole.changes["auxiliary_layers"], whole.changes["auxiliary_outputs"]) == (0, 0)
    assert len(done.model.graph.node) < len(whole.model.graph.node)
    gone = ops(whole.model) - ops(done.model)
    assert gone["Gather"] + gone["Slice"] >= 2 and gone["Concat"] == 1 + which
    assert gone["LayerNormalization"] == LAYERS - 1  # of the layers that nobody reads
    for feeds in ({"images": IMAGE}, {"images": IMAGE[:1]}):
        same_to_the_bit(before, done, feeds)


@pytest.mark.slow
def test_the_cleaned_artifact_is_held_against_the_original_by_what_its_spec_reads(
    usual: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(usual[0].SerializeToString())
    artifact = Artifact(path, sha256_of(path), path.stat().st_size, detector_spec(), Provenance("source"))
    built = stages.clean(artifact, Store(tmp_path / "artifacts"))
    assert built.changes["auxiliary_outputs"] == 2
    meter = ParityMeter(artifact.spec)
    sides = (onnx.load(file) for file in (path, built.artifact.path))
    named = [
        dict(zip((value.name for value in side.graph.output), run(side, {"images": IMAGE}), strict=True))
        for side in sides
    ]
    meter.add(*named)
    assert [line.output for line in meter.table()] == ["logits", "boxes"]
    parity = meter.parity()
    assert parity is not None and parity.max_abs == 0.0
    assert not any(finding.kind == "missing" for finding in meter.findings())


@pytest.mark.slow
def test_rtdetr_of_transformers_loses_its_intermediate_predictions() -> None:
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], d_model=32,
        encoder_ffn_dim=32, encoder_attention_heads=2, decoder_layers=LAYERS, decoder_attention_heads=2,
        decoder_ffn_dim=32, decoder_in_channels=[32, 32, 32], num_queries=7, num_labels=CLASSES,
        auxiliary_loss=True, anchor_image_size=None,
    )  # fmt: skip

    class Outputs(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.RTDetrForObjectDetection(config).eval()

        def forward(self, images: Any) -> tuple[Any, ...]:
            found = self.model(images)
            return (
                found.logits,
                found.pred_boxes,
                found.intermediate_logits,
                found.intermediate_reference_points,
            )

    feeds = {"images": np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)}
    before = exported(Outputs(), torch.from_numpy(feeds["images"]))
    done = clean_model(before, ["logits", "boxes"])
    assert (done.changes["auxiliary_layers"], done.changes["auxiliary_outputs"]) == (2, 2)
    same_to_the_bit(before, done, feeds)


@pytest.mark.slow
def test_detr_of_transformers_runs_its_heads_on_the_last_layer() -> None:
    transformers = pytest.importorskip("transformers", reason="the model is from transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=32, encoder_layers=1,
        decoder_layers=LAYERS, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=7, num_labels=CLASSES, auxiliary_loss=True,
    )  # fmt: skip

    class Outputs(torch.nn.Module):  # type: ignore[misc]
        """What its training does: both heads on all layers."""

        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.DetrForObjectDetection(config).eval()

        def forward(self, images: Any) -> tuple[Any, ...]:
            states = self.model.model(images).intermediate_hidden_states
            logits = self.model.class_labels_classifier(states)
            boxes = self.model.bbox_predictor(states).sigmoid()
            return logits[-1], boxes[-1], logits[:-1], boxes[:-1]

    feeds = {"images": np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)}
    before = exported(Outputs(), torch.from_numpy(feeds["images"]))
    done = clean_model(before, ["logits", "boxes"])
    assert (done.changes["auxiliary_layers"], done.changes["auxiliary_outputs"]) == (2, 2)
    same_to_the_bit(before, done, feeds)
