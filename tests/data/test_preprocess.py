import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shared_data import shared
from vitesse.data.images import decode_image
from vitesse.data.preprocess import feeds, prepare
from vitesse.errors import DataError, SpecError
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

NOISE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def spec_with(size=(32, 32), size_input=None, size_order="wh", **rules):
    return ModelSpec(
        Task.DETECTION,
        Decode.DETR_SOFTMAX,
        "images",
        {"logits": "logits", "boxes": "boxes"},
        Preprocessing(size, **rules),
        size_input=size_input,
        size_order=size_order,
    )


def by_formula(pixels, mean, std):
    """x / 255, minus mean, over std in float32, one step after the other, as torchvision does."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    return ((scaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def test_detr_normalisation_is_exact_to_the_last_bit():
    every_value = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    tensor = prepare(every_value, spec_with((16, 16), resize=Resize.NONE, **IMAGENET))
    assert tensor.dtype == np.float32
    assert np.array_equal(tensor, by_formula(every_value, **IMAGENET))


def test_vit_fashion_pixels_follow_its_readme_to_the_last_bit():
    path = sorted((shared("vit_fashion") / "val" / "9_Ankle-boot").iterdir())[0]
    gray = np.asarray(Image.open(path).resize((56, 56), Image.Resampling.BILINEAR))
    expected = (
        np.repeat(gray[None], 3, axis=0).astype(np.float32) / np.float32(255) - np.float32(0.5)
    ) / np.float32(0.5)
    half = (0.5, 0.5, 0.5)
    assert np.array_equal(prepare(decode_image(path), spec_with((56, 56), mean=half, std=half)), expected)


def test_detr_fashion_pixels_follow_its_readme_to_the_last_bit():
    path = shared("detr_fashion") / "val" / "000001.jpg"
    pixels = np.asarray(Image.open(path))
    tensor = prepare(decode_image(path), spec_with((256, 256), resize=Resize.NONE, **IMAGENET))
    assert np.array_equal(tensor, by_formula(pixels, **IMAGENET))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_stretch_is_pillows_resize(resample):
    resized = Image.fromarray(NOISE).resize((24, 40), Image.Resampling[resample.upper()])
    expected = by_formula(np.asarray(resized), (0, 0, 0), (1, 1, 1))
    assert np.array_equal(prepare(NOISE, spec_with((40, 24), resample=resample)), expected)


def test_letterbox_pads_right_and_below_with_zeros_after_normalising():
    tensor = prepare(NOISE, spec_with((40, 40), resize=Resize.LETTERBOX, **IMAGENET))
    resized = np.asarray(Image.fromarray(NOISE).resize((40, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(tensor[:, :24], by_formula(resized, **IMAGENET))
    assert not tensor[:, 24:].any()


def test_crop_takes_the_centre_of_the_resized_image():
    tensor = prepare(NOISE, spec_with((28, 28), resize=Resize.CROP, crop_ratio=0.875))
    resized = np.asarray(Image.fromarray(NOISE).resize((53, 32), Image.Resampling.BILINEAR))
    centre = resized[2:30, 12:40]  # torchvision: round((53 - 28) / 2) = 12
    assert np.array_equal(tensor, by_formula(centre, (0, 0, 0), (1, 1, 1)))


def test_channels_last_and_bgr_move_channels_with_their_own_mean():
    plain = prepare(NOISE, spec_with(**IMAGENET))
    assert np.array_equal(prepare(NOISE, spec_with(layout="NHWC", **IMAGENET)), plain.transpose(1, 2, 0))
    assert np.array_equal(prepare(NOISE, spec_with(color="BGR", **IMAGENET)), plain[::-1])
    padded = {"size": (40, 40), "resize": Resize.LETTERBOX, **IMAGENET}
    last = prepare(NOISE, spec_with(layout="NHWC", **padded))
    assert np.array_equal(last, prepare(NOISE, spec_with(**padded)).transpose(1, 2, 0))


def test_image_of_the_wrong_size_is_refused_with_both_sizes_and_a_way_out():
    with pytest.raises(DataError) as caught:
        prepare(NOISE, spec_with((256, 256), resize=Resize.NONE), "street.jpg")
    for words in ("street.jpg is 80×48", "256×256", 'resize = "stretch"'):
        assert words in str(caught.value)


def test_thin_line_is_refused_before_cropping_makes_it_huge():
    with pytest.raises(DataError, match="scaled for the centre crop it would be"):
        prepare(np.zeros((1, 50_000, 3), np.uint8), spec_with((224, 224), resize=Resize.CROP))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"layout": "CHW"}, "layout is 'CHW'"),
        ({"color": "GBR"}, "color is 'GBR'"),
        ({"resample": "cubic"}, "resample is 'cubic'"),
        ({"std": (0.0, 1.0, 1.0)}, r"std \(0\.0, 1\.0, 1\.0\)"),
        ({"scale": 0.0}, r"scale is 0\.0"),
        ({"size": (0, 5)}, "size is"),
        ({"crop_ratio": 0.0}, "crop_ratio 0.0"),
    ],
)
def test_spec_with_an_impossible_rule_is_refused_by_name(rules, words):
    with pytest.raises(SpecError, match=words):
        prepare(NOISE, spec_with(**rules))


def test_batch_stacks_images_and_tells_original_sizes_in_the_graphs_order():
    images = [NOISE, NOISE[:20, :30]]
    batch = feeds(images, spec_with(size_input="sizes"))
    assert batch["images"].shape == (2, 3, 32, 32)
    assert np.array_equal(batch["images"][1], prepare(images[1], spec_with()))
    assert batch["sizes"].dtype == np.int64
    assert batch["sizes"].tolist() == [[80, 48], [30, 20]]
    assert feeds(images, spec_with(size_input="sizes", size_order="hw"))["sizes"].tolist() == [
        [48, 80],
        [20, 30],
    ]


def test_letterboxed_graph_is_told_the_size_of_its_tensor():
    batch = feeds([NOISE], spec_with((32, 40), size_input="sizes", resize=Resize.LETTERBOX))
    assert batch["sizes"].tolist() == [[40, 32]]


def test_error_in_a_batch_names_the_image():
    with pytest.raises(DataError, match=r"b\.jpg is 30×20"):
        feeds([NOISE, NOISE[:20, :30]], spec_with((48, 80), resize=Resize.NONE), ["a.jpg", "b.jpg"])


def test_256_pixel_image_is_prepared_in_under_a_millisecond():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    spec = spec_with((256, 256), resize=Resize.NONE, **IMAGENET)
    prepare(image, spec)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        prepare(image, spec)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_images_of_unlike_sizes_are_padded_to_the_largest_and_their_sizes_told():
    spec = replace(
        spec_with((20, 40), mean=(0.5, 0.5, 0.5), resize=Resize.SHORTEST), valid_size_input="valid"
    )
    wide, tall = np.full((10, 15, 3), 255, np.uint8), np.full((20, 10, 3), 255, np.uint8)
    given = feeds([wide, tall], spec)
    assert given["valid"].tolist() == [[20, 30], [40, 20]]
    images = given[spec.image_input]
    assert images.shape == (2, 3, 40, 30)
    assert (images[0, :, :20] == images[0, 0, 0, 0]).all()
    assert not images[0, :, 20:].any()
    assert not images[1, :, :, 20:].any()
    assert feeds([wide], spec)[spec.image_input].shape == (1, 3, 20, 30)
    assert prepare(tall, spec).shape == (3, 40, 20)


def test_images_of_unlike_sizes_are_refused_where_nothing_masks_the_padding():
    spec = spec_with((20, 40), resize=Resize.SHORTEST)
    images = [np.zeros((10, 15, 3), np.uint8), np.zeros((20, 10, 3), np.uint8)]
    with pytest.raises(DataError, match="would take padding for image"):
        feeds(images, spec)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(
    "rules",
    [
        {"resize": Resize.STRETCH},
        {"resize": Resize.LETTERBOX},
        {"resize": Resize.CROP, "crop_ratio": 0.875},
        {"resize": Resize.SQUASH, "crop_ratio": 0.875},
        {"resize": Resize.SHORTEST},
        {"resize": Resize.STRETCH, "layout": "NHWC", "color": "BGR", **IMAGENET},
        {"buckets": ((64, 96), (96, 64))},
        {"resize": Resize.NONE, "size": (48, 80)},
    ],
)
def test_an_image_of_pillow_is_prepared_as_its_pixels_are_to_the_last_bit(rules, resample):
    spec = spec_with(**{"size": (40, 40), "resample": resample, "size_input": "sizes", **rules})
    from_pixels, from_image = feeds([NOISE], spec), feeds([Image.fromarray(NOISE)], spec)
    assert {name: array.tobytes() for name, array in from_pixels.items()} == {
        name: array.tobytes() for name, array in from_image.items()
    }
    np.testing.assert_array_equal(prepare(NOISE, spec), prepare(Image.fromarray(NOISE), spec))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "rules", [{"resize": Resize.LETTERBOX}, {"resize": Resize.SHORTEST}, {"buckets": ((96, 96),)}]
)
def test_what_an_image_does_not_cover_is_zero_whatever_the_memory_held(rules, layout, monkeypatch):
    def used(shape, dtype):
        return np.full(shape, np.nan, dtype)

    spec = replace(spec_with((40, 40), layout=layout, **rules, **IMAGENET), valid_size_input="valid")
    expected = feeds([NOISE, NOISE.transpose(1, 0, 2)], spec)["images"]
    monkeypatch.setattr(np, "empty", used)
    found = feeds([NOISE, NOISE.transpose(1, 0, 2)], spec)["images"]
    assert np.isfinite(found).all() and (found == 0).any()
    np.testing.assert_array_equal(found, expected)
