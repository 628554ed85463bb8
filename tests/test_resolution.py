"""Dynamic resolution: what engines are built for, rows of the ledger, and a real detector in buckets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fusing import graph
from shared_data import shared
from vitesse.artifact import Artifact, Provenance, Store
from vitesse.backends.protocol import LoadOptions, TensorInfo
from vitesse.backends.tensorrt.bucket_profiles import profiles_for
from vitesse.backends.tensorrt.options import Profile, ShapeRange
from vitesse.benchmark.fresh_process import FreshProcess
from vitesse.course import Course
from vitesse.data.buckets import choose_buckets, with_buckets
from vitesse.data.dataset import open_dataset
from vitesse.data.images import decode_image
from vitesse.data.postprocess import decode
from vitesse.data.preprocess import feeds
from vitesse.data.results import Detections
from vitesse.data.split import find_images
from vitesse.errors import SpecError, UsageError
from vitesse.ledger import Row, Verdict
from vitesse.measure import Candidate, opened
from vitesse.metadata import read_spec, serialise
from vitesse.progress import Silent
from vitesse.recipe import DataOptions, MeasureOptions, Recipe, SourceOptions
from vitesse.resolution import resolution_rows
from vitesse.run import RunFolder
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task
from vitesse.stages import clean, fuse, open_model

pytestmark = pytest.mark.usefixtures("short_races", "operators_listed_once")
BUCKETS = ((800, 1088), (1088, 800), (608, 1344))
RULES = Preprocessing((800, 1333), Resize.SHORTEST, buckets=BUCKETS)
DETECTOR = ModelSpec(
    Task.DETECTION,
    Decode.DETR_SOFTMAX,
    "images",
    {"logits": "logits", "boxes": "boxes"},
    RULES,
    valid_size_input="valid_sizes",
)
OPEN = (
    TensorInfo("images", ("batch", 3, "height", "width"), "float32"),
    TensorInfo("valid_sizes", ("batch", 2), "int64"),
)
RECIPE = Recipe(
    target="onnxruntime",
    precisions=("fp32",),
    max_drop=100.0,
    measure=MeasureOptions(seconds=0.05, min_rounds=6, parity_images=2, threads=1),
    data=DataOptions(calib_images=8),
)


def test_every_bucket_is_a_profile_of_its_own() -> None:
    found = profiles_for(DETECTOR, OPEN, (1, 4, 8))
    assert found == tuple(
        Profile(
            {
                "images": ShapeRange((1, 3, *size), (4, 3, *size), (8, 3, *size)),
                "valid_sizes": ShapeRange((1, 2), (4, 2), (8, 2)),
            }
        )
        for size in BUCKETS
    )


def test_one_profile_covers_all_buckets_and_is_best_at_the_largest() -> None:
    (found,) = profiles_for(DETECTOR, OPEN, (1, 2, 2), covering=True)
    assert found.inputs["images"] == ShapeRange((1, 3, 608, 800), (2, 3, 800, 1088), (2, 3, 1088, 1344))


def test_channels_last_tensors_and_fixed_ones_are_as_the_graph_has_them() -> None:
    rules = replace(RULES, layout="NHWC", buckets=((64, 96),))
    spec = replace(DETECTOR, preprocessing=rules, valid_size_input=None)
    open_batch = TensorInfo("images", ("N", 64, 96, 3), "float32")
    (found,) = profiles_for(spec, (open_batch,), (1, 1, 3))
    assert found.inputs == {"images": ShapeRange((1, 64, 96, 3), (1, 64, 96, 3), (3, 64, 96, 3))}
    fixed = TensorInfo("images", (2, 64, 96, 3), "float32")
    assert profiles_for(spec, (fixed,), (2, 2, 2)) == (), "nothing is open"


def test_without_buckets_the_one_size_of_the_rule_is_the_shape() -> None:
    spec = replace(DETECTOR, preprocessing=Preprocessing((64, 96), Resize.LETTERBOX))
    (found,) = profiles_for(spec, OPEN, (1, 1, 1))
    assert found.inputs["images"].max == (1, 3, 64, 96)


def test_what_no_profile_can_be_made_for_is_said() -> None:
    with pytest.raises(UsageError, match=r"batch sizes \(4, 1, 8\)"):
        profiles_for(DETECTOR, OPEN, (4, 1, 8))
    with pytest.raises(SpecError, match="names no buckets: every image makes a tensor of its own size"):
        profiles_for(with_buckets(DETECTOR, ()), OPEN, (1, 1, 1))
    fixed = TensorInfo("images", ("batch", 3, 800, 1088), "float32")
    with pytest.raises(
        SpecError, match=r"`images` is \['batch', 3, 800, 1088\], .* ask for \[1, 3, 1088, 800\]"
    ):
        profiles_for(DETECTOR, (fixed,), (1, 1, 1))
    mask = TensorInfo("mask", ("batch", "height", "width"), "bool")
    with pytest.raises(SpecError, match=r"the input `mask` .* has open dimensions and no part in the spec"):
        profiles_for(DETECTOR, (*OPEN, mask), (1, 1, 1))


@pytest.fixture
def without_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and start-up are measured in processes of their own, which take most of a row's time."""
    left_out = FreshProcess(unmeasured="left out in this test")
    monkeypatch.setattr("vitesse.measure.fresh_process", lambda *given: left_out)


def classifier(folder: Path, sides: str, rules: Preprocessing) -> Artifact:
    """Says whether red, green or blue is brightest, in two convolutions; its tensor is zero where there is padding."""
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "x", {"logits": "y"}, rules)
    weights = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32) / 50
    weights[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Conv <pads = [1, 1, 1, 1]> (a, w) "
        "mean = GlobalAveragePool (b) y = Flatten (mean)"
    )
    model = graph(body, inputs=f"float[N,3,{sides}] x", outputs="float[N,3] y", w=weights)
    return Store(folder).put(serialise(model, spec), spec, Provenance("source"), suffix=".onnx")


def coloured(folder: Path) -> Path:
    """Photographs of three sizes, some landscape, some upright."""
    rng = np.random.default_rng(7)
    for index in range(24):
        height, width = ((200, 300), (300, 200), (240, 260))[index % 3]
        pixels = rng.integers(0, 120, (height, width, 3), np.uint8)
        pixels[..., rng.integers(3)] += 80
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def walk(folder: Path, artifact: Artifact, images: Path, count: int) -> tuple[list[Row], Course]:
    dataset = open_dataset(images, spec=artifact.spec)
    run = RunFolder(folder / "run")
    run.claim(artifact.sha256, dataset.sha256, artifact.spec)
    course = Course(artifact, dataset, RECIPE, run, Silent())
    return list(resolution_rows(course, artifact, count)), course


@pytest.mark.usefixtures("without_fresh_processes")
def test_an_open_model_is_measured_with_buckets_at_three_sizes(tmp_path: Path) -> None:
    rules = Preprocessing((256, 384), Resize.SHORTEST)
    artifact = classifier(tmp_path, "H,W", rules)
    rows, course = walk(tmp_path, artifact, coloured(tmp_path / "photos"), 2)
    assert [row.stage for row in rows] == ["buckets:2@256x384", "buckets:2@192x288", "buckets:2@128x192"]
    for row in rows:
        assert row.accuracy is not None
        assert row.accuracy.metric == "agreement"
        assert row.accuracy.images == 22  # two of 24 are held out
        assert row.latency_ms is not None
        assert row.verdict in (Verdict.PASS, Verdict.REJECTED)
        assert any("% of the tensors' pixels are padding, not masked" in note for note in row.notes)
    # 200×300 becomes 256×384, 300×200 the other way, 240×260 becomes 256×277: all 24 in two buckets, in this order
    assert "buckets, height×width (images in them): 256×384 (16), 384×256 (8)" in rows[0].notes
    padding = 1 - (16 * 256 * 384 + 8 * 256 * 277) / (24 * 256 * 384)
    assert f"{100 * padding:.1f} % of the tensors' pixels are padding" in " ".join(rows[0].notes)
    assert rows[0].artifact is not None
    stored = read_spec(onnx.load(course.folder.folder / rows[0].artifact.path))
    assert stored is not None
    assert stored.preprocessing == replace(rules, buckets=((256, 384), (384, 256)))


@pytest.mark.parametrize(
    ("sides", "resize", "words"),
    [
        (
            "256,256",
            Resize.STRETCH,
            "the graph takes images of 256×256 only; export with --dynamic batch,height,width",
        ),
        ("H,W", Resize.CROP, "centre crops have one size"),
    ],
)
def test_a_model_of_one_size_is_left_out_with_the_reason(
    tmp_path: Path, sides: str, resize: Resize, words: str
) -> None:
    artifact = classifier(tmp_path, sides, Preprocessing((256, 256), resize))
    (row,), _ = walk(tmp_path, artifact, coloured(tmp_path / "photos"), 3)
    assert (row.stage, row.verdict, row.artifact) == ("buckets:3", Verdict.REJECTED, None)
    assert words in row.reason


@pytest.fixture(scope="module")
def open_detr(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The trained detector of the examples, exported with open height and width; it masks padding."""
    pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[torch]'")
    store = Store(tmp_path_factory.mktemp("open"))
    text = (Path(__file__).parents[1] / "examples" / "fashion" / "detr.toml").read_text()
    path = tmp_path_factory.mktemp("spec") / "open.toml"
    path.write_text(text.replace("size = [256, 256]", "size = [256, 320]").replace('"none"', '"shortest"'))
    options = SourceOptions(dynamic=("batch", "height", "width"))
    checkpoint = shared("detr_fashion") / "detr_fashion.pth"
    return open_model(checkpoint, spec=path, options=options, store=store)


Find = Callable[[ModelSpec, list[np.ndarray]], list[Detections]]


@pytest.fixture(scope="module")
def find(open_detr: Artifact) -> Find:
    def found(spec: ModelSpec, images: list[np.ndarray]) -> list[Detections]:
        with opened(Candidate(open_detr, LoadOptions())) as session:
            results = decode(
                session.run(feeds(images, spec)).outputs, spec, [image.shape[:2] for image in images]
            )
        assert all(isinstance(one, Detections) for one in results)
        return results

    return found


def scenes(count: int) -> list[np.ndarray]:
    return [decode_image(path) for path in find_images(shared("detr_fashion") / "val")[:count]]


def test_a_masked_bucket_gives_the_boxes_of_the_image_without_it(open_detr: Artifact, find: Find) -> None:
    """No token of padding is attended to; only convolutions at the border reach into it, so objects there may move."""
    looked_at = 0
    for scene in scenes(6):
        image = scene[:240]  # 256×273 at the scale of the rule, padded on both sides
        (alone,) = find(open_detr.spec, [image])
        (padded,) = find(with_buckets(open_detr.spec, ((320, 352),)), [image])
        right, bottom = alone.boxes_xyxy[:, 2], alone.boxes_xyxy[:, 3]
        for index in np.flatnonzero((alone.scores > 0.8) & (right < 190) & (bottom < 170)):
            same = (padded.labels == alone.labels[index]) & (padded.scores > 0.3)
            distances = np.abs(padded.boxes_xyxy[same] - alone.boxes_xyxy[index]).max(axis=1)
            assert distances.min() < 3, "pixels of a scene of 240×256"
            looked_at += 1
    assert looked_at >= 5


def test_detr_counts_whole_cells_so_sides_beside_its_stride_move_the_boxes(
    open_detr: Artifact, find: Find
) -> None:
    """200 rows are 6.25 cells of 32 pixels, and seven for the position embedding: boxes come out as if of 224 rows."""
    rules = replace(open_detr.spec.preprocessing, resize=Resize.NONE, buckets=((200, 256), (256, 256)))
    spec = replace(open_detr.spec, preprocessing=rules)
    as_read, as_meant = [], []
    for scene in scenes(8):
        (whole,) = find(spec, [scene])
        (cut,) = find(spec, [scene[:200]])
        for index in np.flatnonzero((whole.scores > 0.8) & (whole.boxes_xyxy[:, 3] < 160)):
            same = (cut.labels == whole.labels[index]) & (cut.scores > 0.3)
            for boxes, distances in (
                (cut.boxes_xyxy, as_read),
                (cut.boxes_xyxy * (1, 1.12, 1, 1.12), as_meant),
            ):
                distances.append(np.abs(boxes[same] - whole.boxes_xyxy[index]).max(axis=1).min(initial=50))
    assert len(as_read) >= 5
    assert np.median(as_meant) < np.median(as_read) / 2


def test_a_mask_that_lies_moves_the_boxes(open_detr: Artifact, find: Find) -> None:
    """The broken case of the test above: boxes read as relative to the tensor, as an unmasked graph means them."""
    (scene,) = scenes(1)
    spec = with_buckets(open_detr.spec, ((320, 352),))
    right, wrong = find(spec, [scene[:240]])[0], find_as_unmasked(open_detr, spec, scene[:240])
    best = np.argmax(right.scores)
    assert np.abs(right.boxes_xyxy[best] - wrong.boxes_xyxy[np.argmax(wrong.scores)]).max() > 8


def find_as_unmasked(artifact: Artifact, spec: ModelSpec, image: np.ndarray) -> Detections:
    fed = feeds([image], spec)
    with opened(Candidate(artifact, LoadOptions())) as session:
        outputs = session.run(fed).outputs
        (found,) = decode(outputs, replace(spec, valid_size_input=None), [image.shape[:2]])
    assert isinstance(found, Detections)
    return found


def test_images_of_one_bucket_answer_in_a_batch_as_they_do_alone(open_detr: Artifact, find: Find) -> None:
    images = [scene[: 200 + 10 * index] for index, scene in enumerate(scenes(3))]
    buckets = choose_buckets([image.shape[:2] for image in images], open_detr.spec.preprocessing, 1)
    spec = with_buckets(open_detr.spec, buckets)
    together = find(spec, images)
    for image, batched in zip(images, together, strict=True):
        (alone,) = find(spec, [image])
        np.testing.assert_allclose(batched.scores, alone.scores, atol=2e-3)
        sure = alone.scores > 0.5
        np.testing.assert_allclose(batched.boxes_xyxy[sure], alone.boxes_xyxy[sure], atol=0.5)


@pytest.mark.usefixtures("without_fresh_processes")
def test_the_detectors_accuracy_over_sizes_stands_in_the_ledger(open_detr: Artifact, tmp_path: Path) -> None:
    source = shared("detr_fashion")
    raw = json.loads((source / "instances_val.json").read_text())
    kept = raw["images"][:16]
    numbers = {image["id"] for image in kept}
    (tmp_path / "scenes" / "images").mkdir(parents=True)
    for index, image in enumerate(kept):
        picture = Image.open(source / "val" / image["file_name"])
        cut = 256 - 16 * (index % 3)  # scenes of three aspects; what lies below the cut is gone
        picture.crop((0, 0, 256, cut)).save(tmp_path / "scenes" / "images" / image["file_name"])
        image["height"] = cut
    whole = [
        entry
        for entry in raw["annotations"]
        if entry["image_id"] in numbers
        and entry["bbox"][1] + entry["bbox"][3]
        <= next(one["height"] for one in kept if one["id"] == entry["image_id"])
    ]
    labels = {**raw, "images": kept, "annotations": whole}
    (tmp_path / "scenes" / "annotations.json").write_text(json.dumps(labels))
    store = Store(tmp_path)
    fused = fuse(clean(open_detr, store).artifact, store).artifact
    rows, _ = walk(tmp_path, fused, tmp_path / "scenes", 2)
    assert [row.stage for row in rows] == ["buckets:2@256x320", "buckets:2@192x256", "buckets:2@128x160"]
    for row in rows:
        assert row.accuracy is not None
        assert row.accuracy.metric == "coco_ap"
        assert any("padding, masked by the graph" in note for note in row.notes)
    full, _, half = (row.accuracy.value for row in rows if row.accuracy is not None)
    assert full > 0.5, "scenes near the trained size are found"
    assert half < full - 0.2, "a model of one trained size loses at half of it"
