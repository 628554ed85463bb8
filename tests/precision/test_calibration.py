"""Ranges are those of the data, of the tensors that integers will hold, read as a stream."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrating import CHANNELS, CONV, LAYERS, LINEAR, PRODUCT, SIDE, Images, network
from vitesse.errors import BackendError, DataError, ModelError
from vitesse.precision.calibration import calibrate, channel_axes
from vitesse.recipe import METHODS, Int8Options

MINMAX = Int8Options(method="minmax")


def test_ranges_are_the_smallest_and_largest_value_of_all_images(tmp_path: Path) -> None:
    images = Images(5)
    ranges = calibrate(network(tmp_path), images, LAYERS, MINMAX, symmetric=False)
    low, high = min(one.min() for one in images.arrays), max(one.max() for one in images.arrays)
    assert ranges.by_tensor["image"] == (low, high)
    assert ranges.by_tensor["maps"] == pytest.approx((2 * low, 2 * high)), "what a convolution makes"
    assert ranges.by_tensor["tokens"] == pytest.approx((0, 2 * high)), "behind the ReLU"
    assert ranges.images == 5
    assert ranges.method == "minmax"


def test_symmetric_ranges_reach_as_far_below_zero_as_above(tmp_path: Path) -> None:
    ranges = calibrate(network(tmp_path), Images(), LAYERS, MINMAX, symmetric=True)
    assert ranges.symmetric
    assert all(low == -high < 0 for low, high in ranges.by_tensor.values())


def test_a_constant_that_a_product_reads_has_its_own_range(tmp_path: Path) -> None:
    ranges = calibrate(network(tmp_path), Images(), LAYERS, MINMAX, symmetric=False)
    assert ranges.by_tensor["table"] == (-3.0, 1.0)


def test_layers_with_weights_get_statistics_of_the_channels_they_read(tmp_path: Path) -> None:
    images = Images(4)
    ranges = calibrate(network(tmp_path), images, LAYERS, MINMAX, symmetric=True)
    together = np.concatenate(images.arrays)
    assert set(ranges.channels) == {"image", "mixed"}
    np.testing.assert_array_equal(ranges.channels["image"].abs_max, np.abs(together).max(axis=(0, 2, 3)))
    np.testing.assert_allclose(ranges.channels["image"].mean, together.mean(axis=(0, 2, 3)), atol=1e-6)
    assert ranges.channels["mixed"].abs_max.shape == (2,)


def test_a_product_of_attention_needs_both_factors_and_a_linear_layer_not_its_output() -> None:
    assert channel_axes([PRODUCT]) == {"tokens": None, "table": None}
    assert channel_axes([LINEAR]) == {"mixed": -1}
    assert channel_axes([CONV]) == {"image": 1, "maps": None}
    assert channel_axes([CONV, replace(CONV, activation="maps", output="more")]) == {
        "image": 1,
        "maps": 1,
        "more": None,
    }


def test_a_tensor_read_along_two_axes_has_a_range_but_no_channels() -> None:
    assert channel_axes([CONV, replace(LINEAR, activation="image")])["image"] is None


def test_every_method_of_the_recipe_is_there_and_they_differ(tmp_path: Path) -> None:
    source, images = network(tmp_path), Images(40)
    images.arrays[7][0, 0, 0, 0] = 300.0
    highs = {
        method: calibrate(
            source, images, [CONV], Int8Options(method=method, percentile=99), symmetric=True
        ).by_tensor["image"][1]
        for method in METHODS
    }
    assert highs["minmax"] == 300
    assert highs["percentile"] < 4
    assert len(set(highs.values())) > 2, highs


def test_the_percentile_of_the_options_counts(tmp_path: Path) -> None:
    source, images = network(tmp_path), Images(40)
    highs = [
        calibrate(source, images, [CONV], Int8Options(percentile=share), symmetric=True).by_tensor["image"][1]
        for share in (60, 90, 99)
    ]
    # 60, 90 and 99 % of a normal distribution lie within 0.84, 1.64 and 2.58 deviations.
    assert highs == pytest.approx([0.84, 1.64, 2.58], rel=0.06)


def test_one_image_is_held_at_a_time(tmp_path: Path) -> None:
    alive = most = 0

    class Watched(dict[str, np.ndarray]):
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            super().__init__(image=np.ones((1, CHANNELS, SIDE, SIDE), np.float32))

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Stream:
        def __iter__(self) -> Iterator[Watched]:
            return (Watched() for _ in range(8))

    calibrate(network(tmp_path), Stream(), LAYERS, MINMAX, symmetric=True)
    assert most <= 2, "the next image is made while the last one is still named, and no other"


def test_a_generator_is_refused_because_it_can_be_read_only_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"read only once(.|\n)*a generator"):
        calibrate(network(tmp_path), (image for image in Images()), LAYERS, MINMAX, symmetric=True)


def test_no_calibration_image_is_an_error_with_the_option_to_name_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no calibration image was read(.|\n)*--calib-data"):
        calibrate(network(tmp_path), [], LAYERS, MINMAX, symmetric=True)


def test_no_layer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no layer to calibrate"):
        calibrate(network(tmp_path), Images(), [], MINMAX, symmetric=True)


def test_a_layer_of_another_graph_is_an_error_with_its_tensor(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tensor `elsewhere`"):
        calibrate(
            network(tmp_path), Images(), [replace(LINEAR, activation="elsewhere")], MINMAX, symmetric=True
        )


def test_a_feed_that_does_not_fit_is_the_runtimes_refusal(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime cannot run"):
        calibrate(network(tmp_path), [{"image": np.zeros(1, np.float32)}], LAYERS, MINMAX, symmetric=True)


def test_an_image_that_makes_infinity_is_an_error_and_no_range(tmp_path: Path) -> None:
    images = Images()
    images.arrays[1][0, 2, 1, 1] = 3e38  # doubled by the convolution
    with pytest.raises(ModelError, match="`maps` holds NaN or infinity"):
        calibrate(network(tmp_path), images, LAYERS, MINMAX, symmetric=True)
