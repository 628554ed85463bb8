"""Pictures as a server takes them; the numbers in comments are those of the catalogue of faults."""

import io
import json
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve import pictures
from serve.pictures import encoded, scene
from vitesse.data.images import decode_image
from vitesse.data.preprocess import feeds
from vitesse.serve import images
from vitesse.serve.images import feeds_of, picture_of, pixels_of
from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal
from vitesse.spec import Decode, ModelSpec, Preprocessing, Resize, Task

LIMITS = Limits()
SCENE = scene()


def classifier(size=(32, 32), **rules):
    return ModelSpec(
        Task.CLASSIFICATION, Decode.LOGITS, "pixels", {"logits": "logits"}, Preprocessing(size, **rules)
    )


def refused(body, limits=LIMITS):
    with pytest.raises(Refusal) as caught:
        pixels_of(body, limits)
    assert "Next step: " in caught.value.text
    assert "\n" not in caught.value.text
    return caught.value


@cache
def undecodable():
    jpeg, whole = encoded(SCENE, "JPEG"), encoded(SCENE)
    return {
        "31 empty": (b"", "the body is empty (0 bytes)"),
        "32 html": (pictures.HTML, "are no picture; expected JPEG, PNG, WebP or BMP"),
        "32 svg": (pictures.SVG, "begin with 3c 73 76 67"),
        "32 random": (pictures.RANDOM, "4096 bytes that begin with"),
        "33 half a JPEG": (jpeg[: len(jpeg) // 2], "is damaged: Truncated File Read"),
        "33 half a PNG": (whole[: len(whole) // 2], "is damaged"),
        "33 half a BMP": (encoded(SCENE, "BMP")[:4000], "is damaged"),
        "33 half a WebP": (encoded(SCENE, "WEBP")[:200], "cannot decode"),
        "34 the header of a JPEG": (jpeg[:20], "cannot decode"),
        "34 the header of a PNG": (pictures.png(8, 8, None), "cannot decode"),
        "34 the magic of a JPEG": (b"\xff\xd8\xff", "cannot decode"),
        "34 the magic of a PNG": (pictures.SIGNATURE, "cannot decode"),
        "34 the magic of a BMP": (b"BM", "cannot decode"),
        "34 the magic of a WebP": (b"RIFF\0\0\0\0WEBP", "cannot decode"),
        "35 bad check sum": (pictures.bad_crc(), "cannot decode"),
        "36 no width": (pictures.png(0, 8), "cannot decode"),
        "36 no height": (pictures.png(8, 0), "cannot decode"),
        "40 zTXt bomb": (
            pictures.png(8, 8, pictures.rows(8, 8), before=[pictures.text_bomb(200 << 20)]),
            "MAX_TEXT_CHUNK",
        ),
        "40 iCCP bomb": (
            pictures.png(8, 8, pictures.rows(8, 8), before=[pictures.profile_bomb(200 << 20)]),
            "MAX_TEXT_CHUNK",
        ),
        "40 many zTXt bombs": (
            pictures.png(8, 8, pictures.rows(8, 8), before=[pictures.text_bomb(1 << 20)] * 60),
            "more than 16 compressed comments and profiles",
        ),
        "40 many zTXt bombs behind the picture": (
            pictures.png(8, 8, pictures.rows(8, 8), after=[pictures.text_bomb(1 << 20)] * 60),
            "more than 16 compressed comments and profiles",
        ),
        "40 many iCCP bombs": (
            pictures.png(8, 8, pictures.rows(8, 8), before=[pictures.profile_bomb(1 << 20)] * 60),
            "more than 16 compressed comments and profiles",
        ),
        "40 many chunks": (
            pictures.png(8, 8, pictures.rows(8, 8), before=[pictures.chunk(b"abCd")] * 100_000),
            "more than 10000 PNG chunks",
        ),
        "40 many segments": (pictures.jpeg_with_segments(100_000), "more than 4096 JPEG segments"),
        "40 filling bytes": (
            encoded(SCENE, "JPEG")[:2] + b"\xff" * 2_000_000 + encoded(SCENE, "JPEG")[2:],
            "more than 65536 bytes between JPEG segments",
        ),
        "40 many scans": (pictures.jpeg_with_scans(2000, 1500, 300), "more than 64 JPEG scans"),
    }


@cache
def too_large():
    return {
        "37 144 megapixels of 1 bit": pictures.png(12_000, 12_000, bytes(12_000 * 1501), depth=1, colour=0),
        "38 60000×60000 without data": pictures.png(60_000, 60_000),
        "39 largest dimensions a PNG can say": pictures.png(2**31 - 1, 2**31 - 1),
        "38 a WebP of 14000×11000": pictures.webp_of(14_000, 11_000),
        "a side above the limit": pictures.png(16_385, 1000),
    }


@pytest.mark.parametrize("case", undecodable())
def test_what_is_no_whole_picture_is_answered_400_and_a_good_one_after_it_is_taken(case):
    body, words = undecodable()[case]
    refusal = refused(body)
    assert (refusal.status, refusal.code) == (400, "bad_image")
    assert refusal.text.startswith("cannot decode the image")
    assert words in refusal.text
    assert np.array_equal(pixels_of(encoded(SCENE), LIMITS), SCENE)


@pytest.mark.parametrize("case", [case for case in too_large() if "WebP" not in case])
def test_too_many_pixels_are_answered_413_by_the_header_alone(case):
    refusal = refused(too_large()[case])
    assert (refusal.status, refusal.code) == (413, "too_large")
    assert "expected sides of at most 16384 and at most 50000000 pixels" in refusal.text


@pytest.mark.parametrize("case", ["no canvas", *too_large()])
def test_too_large_pictures_never_reach_the_decoder(case, monkeypatch):
    body = {**too_large(), "no canvas": pictures.webp_of(16_000, 16_000)}[case]
    monkeypatch.setattr(images, "rgb_image", lambda *_, **__: pytest.fail("decoded"))
    assert refused(body).status in {400, 413}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(image_pixels=64 * 48 - 1), "at most 3071 pixels"),
        (Limits(image_side=63), "sides of at most 63"),
    ],
)
def test_the_limits_are_those_of_the_server(limits, words):
    assert words in refused(encoded(SCENE), limits).text
    assert pixels_of(encoded(SCENE), Limits(image_pixels=64 * 48, image_side=64)).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1, 1), "1×1 pixels (width×height); expected sides of at least 2"),
        ((1, 60_000), "expected sides of at least 2"),
        ((2, 101), "expected a longer side of at most 50 times the shorter one"),
    ],
)
def test_points_and_lines_are_answered_400_with_the_limit_they_break(size, words):  # 41
    width, height = size
    refusal = refused(pictures.png(width, height, pictures.rows(width, height)))
    assert (refusal.status, refusal.code) == (400, "bad_image")
    assert words in refusal.text


def test_a_picture_at_the_limits_of_side_and_aspect_is_right():  # 41
    thin = scene(100, 2)
    assert np.array_equal(pixels_of(encoded(thin), LIMITS), thin)
    point = scene(1, 1)
    assert np.array_equal(pixels_of(encoded(point), Limits(image_side_least=1)), point)


@pytest.mark.parametrize("mode", pictures.modes(SCENE))
def test_every_way_of_storing_colour_shows_the_same_picture(mode):  # 42, 43
    body, expected = pictures.modes(SCENE)[mode]
    pixels = pixels_of(body, LIMITS)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)


def test_cmyk_comes_out_in_its_colours():  # 42
    pixels = pixels_of(pictures.cmyk((200, 30, 90)), LIMITS)
    assert np.abs(pixels.astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize("name", pictures.unsupported())
def test_pictures_of_other_formats_are_answered_415_by_name(name):  # 44
    refusal = refused(pictures.unsupported()[name])
    assert (refusal.status, refusal.code) == (415, "unsupported")
    assert f"the body is {name}" in refusal.text
    assert "expected JPEG, PNG, WebP or BMP" in refusal.text


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation, form):  # 45
    upright = Image.fromarray(SCENE)
    lying = {  # how the picture has to lie in the file for the tag to turn it upright
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for turn in lying:
        stored = stored.transpose(turn)
    lossless = (
        {"lossless": True} if form == "WEBP" else {"quality": 98, "subsampling": 0} if form == "JPEG" else {}
    )
    body = pictures.oriented(np.asarray(stored), orientation, form, **lossless)
    picture = picture_of(body, LIMITS)
    assert picture.size == (48, 64)
    assert np.abs(picture.pixels.astype(int) - SCENE).max() <= (12 if form == "JPEG" else 0)


def test_what_follows_a_picture_is_left_alone():  # 46
    for form in ("JPEG", "PNG", "BMP", "WEBP"):
        body = encoded(SCENE, form)
        assert np.array_equal(pixels_of(body + pictures.RANDOM, LIMITS), pixels_of(body, LIMITS))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP"])
def test_pixels_are_those_that_calibration_and_verification_saw(form):
    body = encoded(SCENE, form)
    assert np.array_equal(pixels_of(body, LIMITS), decode_image(body))


def test_the_several_pictures_of_a_phone_file_count_as_their_first():
    body = encoded(
        Image.fromarray(SCENE), "MPO", save_all=True, append_images=[Image.fromarray(SCENE[::-1].copy())]
    )
    assert Image.open(io.BytesIO(body)).format == "MPO"
    assert np.array_equal(pixels_of(body, LIMITS), decode_image(body))
    assert pixels_of(body, LIMITS).shape == (48, 64, 3)


def test_no_memory_is_the_servers_trouble_and_not_the_pictures(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    body = encoded(SCENE, "JPEG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    refusal = refused(body)
    assert (refusal.status, refusal.code, refusal.headers) == (503, "backend", {"Retry-After": "1"})


def test_whole_progressive_pictures_with_a_thumbnail_are_not_taken_for_hostile_ones():
    exif = Image.Exif()
    exif[0x010E] = "a description with \xff\xda in it" * 100
    body = encoded(scene(640, 480), "JPEG", progressive=True, exif=exif, icc_profile=pictures.RANDOM * 60)
    assert pixels_of(body, LIMITS).shape == (480, 640, 3)


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
def test_damaged_bytes_give_pixels_or_a_refusal_and_nothing_else(form, edits, keep):
    body = bytearray(encoded(scene(16, 12), form))
    for place, value in edits:
        body[int(place * len(body))] = value
    try:
        pixels = pixels_of(bytes(body[: round(keep * len(body))]), LIMITS)
    except Refusal as refusal:
        assert refusal.status in {400, 413, 415}
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


MEASURE = """
import json, sys, time
from pathlib import Path
from vitesse.serve.images import pixels_of
from vitesse.serve.limits import Limits
from vitesse.serve.refusals import Refusal

def peak_kib():  # of this program alone; ru_maxrss would begin with that of the process that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

for path in sys.argv[1:]:
    body = Path(path).read_bytes()
    before, began = peak_kib(), time.thread_time()
    try:
        pixels_of(body, Limits())
    except Refusal:
        pass
    cpu_ms = 1e3 * (time.thread_time() - began)
    peak_mb = (peak_kib() - before) / 1024
    print(json.dumps({"case": Path(path).name, "cpu_ms": cpu_ms, "peak_mb": peak_mb}))
"""


def measured(tmp_path: Path, bodies: dict[str, bytes]) -> dict[str, dict[str, float]]:
    """Processor time and rise of the peak of memory for each body, in a process of its own."""
    paths = [tmp_path / "warm", *(tmp_path / name.replace("/", " ") for name in bodies)]
    for path, body in zip(paths, [encoded(SCENE), *bodies.values()], strict=True):
        path.write_bytes(body)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["case"]: row for row in rows[1:]}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says the peak of memory on Linux only")
def test_bombs_cost_less_than_50_mb_and_100_ms(tmp_path):  # 37-40
    bombs = {case: body for case, (body, _) in undecodable().items() if case.startswith("40")}
    bombs |= {**too_large(), "37 pixels of 200 MB for 8×8": pictures.data_bomb(200 << 20)}
    for case, cost in measured(tmp_path, bombs).items():
        assert cost["peak_mb"] < 50, case
        assert cost["cpu_ms"] < 100, case


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says the peak of memory on Linux only")
def test_the_measurement_of_bombs_sees_a_picture_that_is_decoded(tmp_path):
    large = {"36 megapixels of 1 bit": pictures.png(6000, 6000, bytes(6000 * 751), depth=1, colour=0)}
    cost = measured(tmp_path, large)["36 megapixels of 1 bit"]
    assert cost["peak_mb"] > 50
    assert cost["cpu_ms"] > 100


def test_feeds_are_those_of_the_one_preprocessing():
    spec = classifier(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    batch = [SCENE, scene(80, 20)]
    found, expected = feeds_of(batch, spec), feeds(batch, spec)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_size_the_model_cannot_take_is_the_clients_mistake():
    with pytest.raises(Refusal, match=r"the image of 64×48 is 64×48.*expected 32×32") as caught:
        feeds_of([SCENE], classifier(resize=Resize.NONE))
    assert (caught.value.status, caught.value.code) == (400, "bad_image")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_fast_decoding_is_smaller_but_not_below_what_the_model_takes(orientation):
    body = pictures.oriented(scene(800, 600), orientation)
    whole = picture_of(body, LIMITS)
    for size, expected in (((100, 90), 4), ((150, 100), 4), ((151, 100), 2), ((600, 800), 1)):
        wanted = size if orientation == 1 else size[::-1]
        reduced = picture_of(body, LIMITS, reduced_for=classifier(wanted))
        assert reduced.size == whole.size == whole.pixels.shape[:2]
        assert reduced.pixels.shape[0] == -(-whole.size[0] // expected)
        assert reduced.pixels.shape[1] == -(-whole.size[1] // expected)


def test_a_fast_decoding_changes_the_feeds_by_little_and_not_by_nothing():
    body = encoded(scene(800, 600), "JPEG")
    spec = classifier((96, 96))
    whole = feeds_of([pixels_of(body, LIMITS)], spec)["pixels"]
    fast = feeds_of([pixels_of(body, LIMITS, fast_decode=True, spec=spec)], spec)["pixels"]
    difference = np.abs(whole - fast)
    assert 0 < difference.mean() < 2 / 255


def test_fast_decoding_leaves_other_formats_as_they_are():
    for form in ("PNG", "BMP", "WEBP"):
        body = encoded(scene(800, 600), form)
        assert np.array_equal(
            pixels_of(body, LIMITS, fast_decode=True, spec=classifier()), pixels_of(body, LIMITS)
        )


def test_fast_decoding_without_a_spec_is_a_mistake_of_the_program():
    with pytest.raises(ValueError, match="needs the spec"):
        pixels_of(encoded(SCENE, "JPEG"), LIMITS, fast_decode=True)


def test_16_bit_pictures_are_scaled_without_a_wide_copy():  # 43
    values = np.linspace(0, 65535, 1000 * 1000, dtype=np.uint16).reshape(1000, 1000)
    body = encoded(Image.fromarray(values))
    tracemalloc.start()
    try:
        pixels = pixels_of(body, LIMITS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(pixels[..., 0], np.round(values / 257).astype(np.uint8))
    assert peak < 8 * values.size  # one copy as 64-bit integers alone would be that


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP"])
def test_only_the_decoder_that_the_first_bytes_name_is_tried(form, monkeypatch):  # 47
    body, tried = encoded(SCENE, form), []
    opened = images.open_image

    def noted(stream, name, *, formats, max_pixels):
        tried.extend(formats)
        return opened(stream, name, formats=formats, max_pixels=max_pixels)

    monkeypatch.setattr(images, "open_image", noted)
    assert pixels_of(body, LIMITS).shape == SCENE.shape
    assert tried == [form]
