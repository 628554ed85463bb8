"""What was cached is what would be seen again, and is used for nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrating import CONV, LAYERS, Images, network
from vitesse.artifact import Artifact
from vitesse.errors import StorageError
from vitesse.precision import calibration_cache
from vitesse.precision.calibration import calibrate, channel_axes
from vitesse.precision.layers import Layer
from vitesse.precision.ranges import Ranges
from vitesse.recipe import METHODS, Int8Options


def calibrated(
    source: Artifact,
    images: Images,
    cache: Path | None,
    *,
    method: str = "mse",
    symmetric: bool = True,
    data_key: str = "data",
    layers: tuple[Layer, ...] = LAYERS,
) -> Ranges:
    options = Int8Options(method=method)
    return calibrate(source, images, layers, options, symmetric=symmetric, cache=cache, data_key=data_key)


def same(one: Ranges, other: Ranges) -> bool:
    return (
        dict(one.by_tensor) == dict(other.by_tensor)
        and (one.images, one.method, one.symmetric) == (other.images, other.method, other.symmetric)
        and list(one.channels) == list(other.channels)
        and all(
            np.array_equal(getattr(one.channels[name], part), getattr(other.channels[name], part))
            and getattr(one.channels[name], part).dtype == getattr(other.channels[name], part).dtype
            for name in one.channels
            for part in ("abs_max", "mean")
        )
    )


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_second_run_reads_no_image_and_gets_the_same_bits(tmp_path: Path) -> None:
    source, images = network(tmp_path), Images()
    fresh = calibrated(source, images, tmp_path / "cache")
    assert images.passes == 1
    cached = calibrated(source, images, tmp_path / "cache")
    assert images.passes == 1
    assert same(fresh, cached)
    assert not same(fresh, calibrated(source, Images(seed=1), None)), "the comparison can fail"


def test_another_method_needs_no_new_pass_and_gets_what_it_would_have_found(tmp_path: Path) -> None:
    source, images = network(tmp_path), Images()
    for method in METHODS:
        for symmetric in (True, False):
            cached = calibrated(source, images, tmp_path / "cache", method=method, symmetric=symmetric)
            assert same(cached, calibrated(source, Images(), None, method=method, symmetric=symmetric))
    assert images.passes == 1


def test_other_images_another_model_and_other_tensors_are_other_questions(tmp_path: Path) -> None:
    images, cache = Images(), tmp_path / "cache"
    calibrated(network(tmp_path), images, cache)
    calibrated(network(tmp_path), images, cache, data_key="other data")
    calibrated(network(tmp_path, "louder", scale=2.0), images, cache)
    calibrated(network(tmp_path), images, cache, layers=(CONV,))
    calibrated(network(tmp_path), images, cache, layers=(replace(CONV, channel_axis=2), *LAYERS[1:]))
    assert images.passes == 5
    assert len(list(cache.iterdir())) == 5


def test_another_version_of_the_runtime_is_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images()
    calibrated(network(tmp_path), images, tmp_path / "cache")
    monkeypatch.setattr(calibration_cache.onnxruntime, "__version__", "0.0")
    calibrated(network(tmp_path), images, tmp_path / "cache")
    assert images.passes == 2


def test_without_a_key_of_the_data_nothing_is_kept(tmp_path: Path) -> None:
    images = Images()
    for _ in range(2):
        calibrated(network(tmp_path), images, tmp_path / "cache", data_key="")
    assert images.passes == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_calibrated_anew_and_replaced(tmp_path: Path, share: float) -> None:
    source, images, cache = network(tmp_path), Images(), tmp_path / "cache"
    fresh = calibrated(source, images, cache)
    content = only_file(cache).read_bytes()
    only_file(cache).write_bytes(content[: int(len(content) * share)])
    assert same(fresh, calibrated(source, images, cache))
    assert images.passes == 2
    assert same(fresh, calibrated(source, images, cache))
    assert images.passes == 2, "the damaged file was replaced by a good one"


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    source, cache = network(tmp_path), tmp_path / "cache"
    calibrated(source, Images(), cache)
    path, key = only_file(cache), calibration_cache.key_of(source.sha256, "data", channel_axes(LAYERS))
    content, whole = path.read_bytes(), calibration_cache.load(cache, key)
    assert whole is not None
    noticed = 0
    for at in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        found = calibration_cache.load(cache, key)
        noticed += found is None
        # Some bytes say nothing about the arrays, such as the time of writing.
        assert found is None or all(
            np.array_equal(found.histograms[name].counts, whole.histograms[name].counts)
            and found.histograms[name].high == whole.histograms[name].high
            for name in whole.histograms
        ), f"byte {at} of {len(content)}"
    assert noticed > len(content) / 11 / 2


def test_numbers_changed_by_a_tool_that_writes_valid_files_are_not_trusted(tmp_path: Path) -> None:
    source, images, cache = network(tmp_path), Images(), tmp_path / "cache"
    fresh = calibrated(source, images, cache)
    with np.load(only_file(cache)) as stored:
        arrays = dict(stored)
    arrays["ends"] = arrays["ends"] * 10
    np.savez(only_file(cache), **arrays)
    assert same(fresh, calibrated(source, images, cache))
    assert images.passes == 2


def test_a_file_renamed_to_another_key_is_not_trusted(tmp_path: Path) -> None:
    source, images, cache = network(tmp_path), Images(), tmp_path / "cache"
    calibrated(source, Images(seed=9), cache, data_key="others")
    wrong = only_file(cache)
    expected = calibrated(source, images, cache)
    right = next(path for path in cache.iterdir() if path != wrong)
    right.write_bytes(wrong.read_bytes())
    assert same(expected, calibrated(source, images, cache))
    assert images.passes == 2


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        calibrated(network(tmp_path), Images(), tmp_path / "cache")
