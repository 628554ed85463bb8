import base64
import io

import numpy as np
import pytest
from PIL import Image

from report.sample import scene
from vitesse.errors import RunFolderError
from vitesse.report.pictures import LARGEST_BYTES, LARGEST_SIDE, embed


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def _noise(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_small_picture_is_embedded_bit_for_bit():
    original = scene(((10, 10, 50, 50),))
    embedded = embed(original)
    assert embedded.uri.startswith("data:image/png;base64,")
    assert base64.b64decode(embedded.uri.split(",", 1)[1]) == original
    assert (embedded.width, embedded.height) == (480, 360)


def test_a_large_picture_is_scaled_down_with_its_aspect_and_stays_small():
    embedded = embed(_noise(2000, 1000))
    assert embedded.uri.startswith("data:image/jpeg;base64,")
    assert (embedded.width, embedded.height) == (LARGEST_SIDE, LARGEST_SIDE // 2)
    assert _decoded(embedded.uri).size == (embedded.width, embedded.height)
    assert len(embedded.uri) < 4 * LARGEST_BYTES


def test_a_heavy_picture_of_few_pixels_is_stored_as_jpeg():
    heavy = _noise(400, 300)
    assert len(heavy) > LARGEST_BYTES
    assert embed(heavy).uri.startswith("data:image/jpeg")


@pytest.mark.parametrize("content", [b"", b"not a picture", scene(())[:200]])
def test_a_damaged_picture_is_named_with_the_next_step(content):
    with pytest.raises(RunFolderError) as caught:
        embed(content)
    assert "cannot be decoded" in caught.value.what
    assert "report-data.json" in caught.value.fix
