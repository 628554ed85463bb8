"""Processor files as the hub has them, held against the Pillow-based processors of transformers on photographs."""

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs torch: pip install 'vitesse[huggingface]'")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'vitesse[huggingface]'"
)

from vitesse.data.preprocess import place, prepare  # noqa: E402
from vitesse.errors import SpecError  # noqa: E402
from vitesse.sources.huggingface.processor import (  # noqa: E402
    BILINEAR,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OF_MODEL_TYPE,
    PROCESSORS,
    preprocessing_of,
)
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task  # noqa: E402

PHOTOGRAPHS = sorted((Path(__file__).parents[2] / "examples" / "fashion" / "detr" / "calib").glob("*.jpg"))[
    :2
]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
# Module and name of the processor, its file of some year, and what it means for a graph of a fixed size.
FILES: dict[str, tuple[str, dict[str, Any], Preprocessing]] = {
    "ViT of 2021, which names no class": (
        "vit.ViT",
        {"do_normalize": True, "do_resize": True, "size": 224, **HALF},
        Preprocessing((224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    "ViT of 2023": (
        "vit.ViT",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_rescale": True,
            "rescale_factor": 0.00392156862745098,
            "resample": 2,
            "size": {"height": 384, "width": 384},
            **HALF,
        },
        Preprocessing((384, 384), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    "Swin of 2022, prepared as ViT but bicubic": (
        "vit.ViT",
        {"feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224, **IMAGENET},
        Preprocessing((224, 224), resample="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    "DeiT of 2022, stretched before the crop": (
        "deit.DeiT",
        {
            "feature_extractor_type": "DeiTFeatureExtractor",
            "do_center_crop": True,
            "crop_size": 224,
            "resample": 3,
            "size": 256,
            **IMAGENET,
        },
        Preprocessing(
            (224, 224),
            Resize.SQUASH,
            "bicubic",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_ratio=0.875,
        ),
    ),
    "BEiT, whose file has a crop size that is not used": (
        "beit.Beit",
        {
            "feature_extractor_type": "BeitFeatureExtractor",
            "do_center_crop": False,
            "crop_size": 224,
            "reduce_labels": False,
            "resample": 2,
            "size": 224,
            **HALF,
        },
        Preprocessing((224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    "DINOv2": (
        "bit.Bit",
        {
            "image_processor_type": "BitImageProcessor",
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "resample": 3,
            "size": {"shortest_edge": 256},
            **IMAGENET,
        },
        Preprocessing(
            (224, 224),
            Resize.CROP,
            "bicubic",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_ratio=0.875,
        ),
    ),
    "RT-DETR, which does not normalise": (
        "rt_detr.RTDetr",
        {
            "image_processor_type": "RTDetrImageProcessor",
            "do_normalize": False,
            "do_pad": False,
            "do_convert_annotations": True,
            "format": "coco_detection",
            "resample": 2,
            "size": {"height": 640, "width": 640},
            **IMAGENET,
        },
        Preprocessing((640, 640)),
    ),
    "RF-DETR": (
        "detr.Detr",
        {
            "image_processor_type": "RfDetrImageProcessorFast",
            "do_pad": False,
            "size": {"height": 560, "width": 560},
            **IMAGENET,
        },
        Preprocessing((560, 560), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    "pixels that are not rescaled, one mean for all channels": (
        "vit.ViT",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_rescale": False,
            "image_mean": 127.5,
            "image_std": 64,
        },
        Preprocessing((224, 224), scale=1.0, mean=(127.5,) * 3, std=(64.0,) * 3),
    ),
}
DETR_2021 = {"feature_extractor_type": "DetrFeatureExtractor", "max_size": 1333, "size": 800, **IMAGENET}
DETR_2024 = {
    "image_processor_type": "ConditionalDetrImageProcessor",
    "do_pad": True,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    **IMAGENET,
}


def theirs(name: str, config: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """One image through transformers' Pillow-based processor: float32 (3, H, W)."""
    module, stem = name.split(".")
    pil = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(pil, f"{stem}ImageProcessorPil").from_dict(config)
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def ours(rules: Preprocessing, image: np.ndarray) -> np.ndarray:
    spec = ModelSpec(Task.CLASSIFICATION, Decode.LOGITS, "images", {"logits": "logits"}, rules)
    return prepare(image, spec)


def photograph(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The photograph as if it had been taken at `size` (height, width)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size[1], size[0])))


def read(config: dict[str, Any], **options: Any) -> Preprocessing:
    return preprocessing_of(config, default_size=(48, 64), **options)


@pytest.mark.parametrize("title", FILES)
def test_a_file_of_the_hub_is_read_as_its_processor_reads_it(title: str) -> None:
    name, config, expected = FILES[title]
    rules = read(config, model_type="vit")
    assert rules == expected
    # 1e-5 of a normalised value is a thousandth of a grey level
    for path in PHOTOGRAPHS:
        for size in ((300, 416), (640, 480), (224, 224)):
            image = photograph(path, size)
            np.testing.assert_allclose(ours(rules, image), theirs(name, config, image), atol=1e-5)


def test_the_comparison_would_notice_another_filter_or_crop() -> None:
    name, config, rules = FILES["DINOv2"]
    image = photograph(PHOTOGRAPHS[0], (300, 416))
    for wrong in ({"resample": 2}, {"size": {"shortest_edge": 257}}, {"image_std": 0.2}):
        found = ours(read({**config, **wrong}), image)
        assert np.abs(found - theirs(name, config, image)).max() > 0.1, wrong
    assert rules == read(config)


def test_an_uneven_rest_is_cropped_one_pixel_further_than_transformers_does() -> None:
    name, config, rules = FILES["DINOv2"]
    image = photograph(PHOTOGRAPHS[0], (256, 259))  # 35 columns too many: 17 or 18 at the left
    np.testing.assert_allclose(
        ours(rules, image)[:, :, :-1], theirs(name, config, image)[:, :, 1:], atol=1e-5
    )


@pytest.mark.parametrize("config", [DETR_2021, DETR_2024], ids=["2021", "2024"])
def test_detr_keeps_the_aspect_where_the_graph_allows_it(config: dict[str, Any]) -> None:
    rules = read(config, dynamic=True)
    assert (rules.size, rules.resize) == ((800, 1333), Resize.SHORTEST)
    for size in ((300, 417), (417, 300), (256, 256)):
        image = photograph(PHOTOGRAPHS[0], size)
        np.testing.assert_allclose(ours(rules, image), theirs("detr.Detr", config, image), atol=1e-5)


def test_detr_of_a_fixed_size_is_stretched_to_the_usual_photograph() -> None:
    rules = read(DETR_2021)
    assert (rules.size, rules.resize) == ((800, 1066), Resize.STRETCH)
    image = photograph(PHOTOGRAPHS[0], (480, 640))  # for such an image both ways are one
    np.testing.assert_allclose(ours(rules, image), theirs("detr.Detr", DETR_2021, image), atol=1e-5)


def test_where_the_longest_side_decides_the_sizes_are_those_of_the_original_detr() -> None:
    # transformers takes the unrounded short side for the long one: 1333 × 732; the original takes the rounded one
    image = photograph(PHOTOGRAPHS[0], (630, 1147))
    assert theirs("detr.Detr", DETR_2021, image).shape == (3, 732, 1333)
    assert ours(read(DETR_2021, dynamic=True), image).shape == (3, 732, 1332)


@pytest.mark.parametrize(
    ("config", "resize", "size"),
    [
        ({"size": {"shortest_edge": 800, "longest_edge": 800}}, Resize.STRETCH, (592, 800)),
        ({"size": {"longest_edge": 800}}, Resize.STRETCH, (592, 800)),
        ({"size": {"shortest_edge": 512}}, Resize.STRETCH, (512, 512)),
        ({"size": {"max_height": 800, "max_width": 1000}}, Resize.STRETCH, (800, 1000)),
        ({"size": [320, 256]}, Resize.STRETCH, (320, 256)),
        ({"size": None}, Resize.STRETCH, (800, 1056)),  # YOLOS wants multiples of 16
        ({"do_resize": False}, Resize.NONE, (48, 64)),
    ],
)
def test_every_form_of_a_size_of_yolos_has_one_meaning(
    config: dict[str, Any], resize: Resize, size: tuple[int, int]
) -> None:
    rules = read({"image_processor_type": "YolosImageProcessor", **config})
    assert (rules.resize, rules.size) == (resize, size)


@pytest.mark.parametrize("crop", range(8, 400, 7))
@pytest.mark.parametrize("extra", [1, 5, 32, 100])
def test_a_crop_resizes_to_exactly_the_size_of_the_file(crop: int, extra: int) -> None:
    config = {"image_processor_type": "BitImageProcessor", "size": crop + extra, "crop_size": crop}
    rules = read(config)
    assert ours(rules, np.zeros((crop + extra, crop + extra, 3), np.uint8)).shape == (3, crop, crop)
    assert place((100, 100), rules).resized == (crop + extra, crop + extra)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("ViT", "vit.ViT"),
        ("DeiT", "deit.DeiT"),
        ("Beit", "beit.Beit"),
        ("Bit", "bit.Bit"),
        ("Detr", "detr.Detr"),
        ("ConditionalDetr", "conditional_detr.ConditionalDetr"),
        ("DeformableDetr", "deformable_detr.DeformableDetr"),
        ("Yolos", "yolos.Yolos"),
        ("RTDetr", "rt_detr.RTDetr"),
    ],
)
def test_an_empty_file_means_the_defaults_of_transformers(stem: str, name: str) -> None:
    image = photograph(PHOTOGRAPHS[0], (480, 640))
    config = {"feature_extractor_type": f"{stem}FeatureExtractor"}
    np.testing.assert_allclose(ours(read(config), image), theirs(name, {}, image), atol=1e-5)


@pytest.mark.parametrize("stem", ["RfDetr", "DINOv3ViT"])
def test_the_defaults_of_processors_without_a_pillow_form_are_those_of_their_source(stem: str) -> None:
    """Importing these classes needs torchvision; their defaults are plain assignments in the file."""
    folder = Path(transformers.__file__).parent / "models" / {"RfDetr": "rf_detr"}.get(stem, "dinov3_vit")
    text = (folder / f"image_processing_{folder.name}.py").read_text(encoding="utf-8")
    body = text.partition(f"class {stem}ImageProcessor(")[2].partition("def ")[0]
    found = dict(re.findall(r"^    (size|resample|image_mean|image_std|do_center_crop) = (.+)$", body, re.M))
    defaults = PROCESSORS[stem]
    assert ast.literal_eval(found["size"]) == defaults.size
    assert found["resample"].endswith("BILINEAR") and defaults.resample == BILINEAR
    assert (found["image_mean"], found["image_std"]) == ("IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD")
    assert (defaults.mean, defaults.std, defaults.crop) == (IMAGENET_MEAN, IMAGENET_STD, None)
    assert "do_center_crop" not in found


def test_every_model_type_has_a_known_processor() -> None:
    for model_type, stem in OF_MODEL_TYPE.items():
        assert stem in PROCESSORS, model_type


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "the image processor DonutImageProcessor"),
        ({}, "no image processor for model type None"),
        ({"size": {"height": 224}}, r"size \{'height': 224\}"),
        ({"size": "large"}, "size large"),
        ({"size": 0}, "size"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean \[0.5, 0.5\]"),
        ({"resample": 9}, "resample 9"),
        ({"rescale_factor": -1}, "rescale_factor -1"),
        ({"do_center_crop": True, "crop_size": 256}, r"a crop to \(256, 256\) of an image of \(224, 224\)"),
        ({"do_center_crop": True, "crop_size": "x"}, "crop_size x"),
        ({"do_center_crop": True, "do_resize": False}, "do_center_crop without do_resize"),
    ],
)
def test_what_cannot_be_read_is_named(config: dict[str, Any], message: str) -> None:
    named = {"image_processor_type": "ViTImageProcessor"} if config else {}
    with pytest.raises(SpecError, match=message) as caught:
        read({**named, **config})
    assert "--spec spec.toml" in str(caught.value)
