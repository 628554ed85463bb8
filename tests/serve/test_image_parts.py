import time
from contextlib import suppress

import pytest

from serve import pictures
from serve.pictures import chunk, encoded, png, rows, scene
from vitesse.serve.image_parts import (
    MOST_CHUNKS,
    MOST_COMPRESSED,
    MOST_FILLING,
    MOST_SCANS,
    MOST_SEGMENTS,
    check_parts,
    stated_size,
)
from vitesse.serve.refusals import Refusal

ROWS = rows(8, 8)


def of_chunks(count):
    """A PNG of `count` chunks in all: IHDR, IDAT, IEND and empty ones."""
    return png(8, 8, ROWS, before=[chunk(b"abCd")] * (count - 3))


def of_segments(count):
    """A JPEG of `count` segments before its scan."""
    own = pictures.jpeg_with_segments(0)
    frame = sum(own.count(bytes([0xFF, marker])) for marker in (0xE0, 0xDB, 0xC0, 0xC4))
    return pictures.jpeg_with_segments(count - frame)


def of_filling(count):
    """A JPEG with `count` filling bytes behind its first marker."""
    data = encoded(scene(), "JPEG")
    return data[:2] + b"\xff" * count + data[2:]


def of_scans(count):
    """A progressive JPEG of `count` scans."""
    own = pictures.jpeg_with_scans(64, 48, 0).count(b"\xff\xda")
    return pictures.jpeg_with_scans(64, 48, count - own)


@pytest.mark.parametrize(
    ("make", "most", "words"),
    [
        (of_chunks, MOST_CHUNKS, "PNG chunks"),
        (of_segments, MOST_SEGMENTS, "JPEG segments"),
        (of_scans, MOST_SCANS, "JPEG scans"),
        (of_filling, MOST_FILLING, "bytes between JPEG segments"),
        (
            lambda count: png(8, 8, ROWS, after=[pictures.text_bomb(9)] * count),
            MOST_COMPRESSED,
            "compressed comments and profiles",
        ),
    ],
)
def test_as_many_parts_as_allowed_pass_and_one_more_does_not(make, most, words):
    check_parts(make(most))
    with pytest.raises(Refusal, match=f"more than {most} {words}") as caught:
        check_parts(make(most + 1))
    assert (caught.value.status, caught.value.code) == (400, "bad_image")


def test_parts_behind_the_end_of_the_picture_are_not_counted():
    check_parts(png(8, 8, ROWS) + chunk(b"zTXt") * 100)
    check_parts(of_scans(10) + b"\xff\xda\x00\x02" * 1000)


def test_the_data_of_a_sequential_jpeg_is_not_searched():
    check_parts(encoded(scene(), "JPEG")[:-2] + b"\xff\xda\x00\x02" * 1000)


def test_markers_inside_a_segment_are_data():
    data = encoded(scene(), "JPEG", progressive=True)
    comment = b"\xff\xda\x00\x02" * 1000
    check_parts(data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_size_is_read_where_encoders_state_it_and_from_no_less_than_the_header(form):
    data = encoded(scene(16, 12), form)
    sizes = {stated_size(data[:length]) for length in range(len(data) + 1)}
    assert stated_size(data) == (16, 12) and sizes == {None, (16, 12)}


@pytest.mark.parametrize(
    "body",
    [
        encoded(scene(), "BMP"),
        png(0, 8),
        png(8, 0),
        of_filling(1),
        pictures.jpeg_with_segments(40),
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 1_000_000,
    ],
    ids=["other format", "no width", "no height", "filling", "behind many segments", "segments of no length"],
)
def test_a_size_that_does_not_stand_there_is_left_to_the_decoder(body):
    assert stated_size(body) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_every_beginning_of_a_file_is_read_without_an_error(form):
    data = encoded(scene(16, 12), form)
    for length in range(len(data)):
        check_parts(data[:length])


@pytest.mark.parametrize(
    "filling", [b"\xff\xff", b"\xff\x00", b"\xff\xd0", b"\xff\xd8", b"\xff\x01", b"\x00\x00"]
)
def test_filling_bytes_are_passed_over_in_time_that_grows_with_their_number_only(filling):
    data = encoded(scene(), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    for hostile in (data[:2] + filling * 1_000_000 + data[2:], data[:end] + filling * 1_000_000 + data[end:]):
        began = time.thread_time()
        with suppress(Refusal):
            check_parts(hostile)
        assert time.thread_time() - began < 1
